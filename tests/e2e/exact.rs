//! Exact mode counts what the program itself counts: every version, static,
//! PIE and stripped, with and without size-specialised allocators.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use claw_ebpf::{
    probe::EveryPlan,
    target::{
        elf::Elf,
        go::binary::GoBinary,
        memory::{Memory, ProcessMemory},
    },
};
use serde_json::Value;

use crate::common::*;

/// By tenant and type: objects and bytes.
type Truth = BTreeMap<String, BTreeMap<String, [u64; 2]>>;

/// A fixture that waits until it is told to allocate.
struct Counting {
    what: String,
    child: Child,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Counting {
    fn start(version: &str, flags: &[&str], experiment: Option<&str>) -> Option<Self> {
        let program = build_with(version, "exact", flags, experiment)?;
        let mut child =
            Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut String::new()).unwrap();
        let what = format!("Go {version} {flags:?} {}", experiment.unwrap_or_default());
        Some(Self { what, stdin: child.stdin.take().unwrap(), out, child })
    }

    fn truth(&mut self) -> Truth {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn all_builds() -> Vec<Counting> {
    let stripped: &[&str] = &["-ldflags=-s -w"];
    let pie: &[&str] = &["-buildmode=pie", "-ldflags=-s -w"];
    let mut builds: Vec<(&str, &[&str], Option<&str>)> =
        VERSIONS.iter().map(|v| (*v, stripped, None)).collect();
    builds.extend([
        ("1.22.10", pie, None),
        ("1.26.6", pie, None),
        ("1.27.3", pie, None),
        ("1.27.3", &[], None),
        ("1.26.6", stripped, Some("sizespecializedmalloc")),
        ("1.27.3", stripped, Some("nosizespecializedmalloc")),
    ]);
    builds.into_iter().filter_map(|(v, flags, e)| Counting::start(v, flags, e)).collect()
}

/// Counts and bytes of one tenant's allocations by the fixture's own code.
fn counted(report: &Value, pid: u32, tenant: &str) -> BTreeMap<String, [u64; 2]> {
    let mut sums: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for a in report["allocations"].as_array().unwrap() {
        let ours = a["pid"] == pid && a["tenant"] == tenant;
        let function = a["site"]["function"].as_str().unwrap();
        let goroutine = a["kind"] == "goroutine";
        let name = match (goroutine, a["type"].as_str()) {
            _ if !ours => continue,
            // Made without `newproc`, by a function that it shares with it.
            (true, _) if function.starts_with("iter.Pull") => "coroutine",
            _ if !function.starts_with("main.") => continue,
            (true, _) => "goroutine",
            (false, name) => name.unwrap_or("?"),
        };
        let sum = sums.entry(name.to_owned()).or_default();
        sum[0] += a["count"].as_f64().unwrap() as u64;
        sum[1] += a["bytes"].as_f64().unwrap_or(0.0) as u64;
    }
    sums
}

/// Watch all from before they allocate until all have: the report, and what each
/// says itself.
fn watch(running: &mut [Counting], more: &[&str], env: &[(&str, &str)]) -> (Value, Vec<Truth>) {
    let mut args = vec!["watch", "--mode", "exact", "--max-overhead", "100%", "-q"];
    args.extend(["--format", "jsonl", "--interval", "2s"]);
    args.extend(more);
    let pids: Vec<String> = running.iter().map(|c| c.child.id().to_string()).collect();
    args.extend(pids.iter().flat_map(|p| ["--pid", p.as_str()]));
    let mut agent = claw(&args).envs(env.iter().copied()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines().map(Result::unwrap);
    // Every window is open and stays open.
    let open = |l: &String| l.contains("is counted without a gap");
    let waiting: Vec<String> = lines.by_ref().filter(open).take(running.len()).collect();
    assert_eq!(waiting.len(), running.len());
    for c in &mut *running {
        writeln!(c.stdin, "go").unwrap();
    }
    let truths: Vec<_> = running.iter_mut().map(Counting::truth).collect();
    // SAFETY: the child is ours and not reaped yet.
    unsafe { libc::kill(agent.id().cast_signed(), libc::SIGINT) };
    let last = lines.last().unwrap();
    agent.wait().unwrap();
    (serde_json::from_str(&last).unwrap(), truths)
}

/// Stacks that may be lost: the runtime's own, that are just being made.
const FEW_STACKS: u64 = 20;

/// The report says of each what it says itself.
fn compare(report: &Value, running: &[Counting], truths: &[Truth]) {
    let record = marked_line("exact", "main.go", "COUNT: record");
    for (c, truth) in running.iter().zip(truths) {
        let (what, pid) = (&c.what, c.child.id());
        let target = report["targets"].as_array().unwrap().iter().find(|t| t["pid"] == pid);
        let target = target.unwrap();
        assert_eq!(target["mode"], "exact", "{what}: {target:#}");
        assert_eq!(target["exact"]["coverage"], 1.0, "{what}: {target:#}");
        for (reason, n) in target["exact"]["lost"].as_object().unwrap() {
            let most = if reason == "exact_stacks_lost" { FEW_STACKS } else { 0 };
            assert!(n.as_u64().unwrap() <= most, "{what}: {reason}: {n}");
        }
        assert!(!truth.is_empty());
        for (tenant, by_type) in truth {
            let counted = counted(report, pid, tenant);
            for (name, want) in by_type {
                let got = counted.get(name).copied().unwrap_or_default();
                assert_eq!(got, *want, "{what}: {tenant} {name}: {counted:#?}");
            }
        }
        let line = report["allocations"]
            .as_array()
            .unwrap()
            .iter()
            .find(|a| a["pid"] == pid && a["type"] == "main.record" && a["tenant"] == "acme");
        assert_eq!(line.unwrap()["site"]["line"], record, "{what}");
    }
}

#[test]
#[ignore = "needs root and BPF"]
fn counts_are_those_of_the_program() {
    for attempt in 1.. {
        let mut running = all_builds();
        let (report, truths) = watch(&mut running, &[], &[]);
        // The kernel takes one stack at a time on each CPU: where a program is
        // preempted in the middle, the next one there gets none. Many do where
        // all CPUs are busy with other things too.
        let lost = |t: &Value| t["exact"]["lost"]["exact_stacks_lost"].as_u64().unwrap_or(0);
        let busy = report["targets"].as_array().unwrap().iter().any(|t| lost(t) > FEW_STACKS);
        if !busy || attempt == 3 {
            compare(&report, &running, &truths);
            return;
        }
    }
}

/// On kernels before 6.10 each probe is a perf event of its own.
#[test]
#[ignore = "needs root and BPF"]
fn counts_without_uprobe_multi() {
    let mut running = vec![Counting::start("1.27.3", &["-ldflags=-s -w"], None).unwrap()];
    let (report, truths) = watch(&mut running, &[], &[("CLAW_EBPF_WITHOUT_UPROBE_MULTI", "1")]);
    let log = report["execution_log"].as_array().unwrap();
    let detail = |l: &Value| l["detail"].as_str().unwrap().contains("a perf event each");
    assert!(log.iter().any(detail), "{log:#?}");
    compare(&report, &running, &truths);
}

/// `--stream` writes a line for each allocation, which are as many as the
/// program says, with its types and lines.
#[test]
#[ignore = "needs root and BPF"]
fn each_event_is_streamed() {
    let mut running = vec![Counting::start("1.26.6", &["-ldflags=-s -w"], None).unwrap()];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let (report, truths) = watch(&mut running, &["--stream", path.to_str().unwrap()], &[]);
    let lost = &report["targets"][0]["exact"]["lost"];
    assert_eq!(lost["stream_ring_full"], 0, "{lost:#}");
    let mut seen: BTreeMap<(String, String), [u64; 2]> = BTreeMap::new();
    let record = marked_line("exact", "main.go", "COUNT: record");
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["pid"], running[0].child.id(), "{event}");
        assert!(event["t_ns"].as_u64().unwrap() > 0 && event["tid"].as_u64().unwrap() > 0);
        if !event["function"].as_str().unwrap().starts_with("main.") {
            continue;
        }
        let name = event["type"].as_str().unwrap_or("?");
        if name == "main.record" {
            assert_eq!(event["line"], record, "{event}");
        }
        let tenant = event["tenant"].as_str().unwrap();
        let sum = seen.entry((tenant.to_owned(), name.to_owned())).or_default();
        sum[0] += 1;
        sum[1] += event["bytes"].as_u64().unwrap();
    }
    for (tenant, by_type) in &truths[0] {
        for (name, want) in by_type.iter().filter(|(name, _)| !name.ends_with("routine")) {
            let got = seen.get(&(tenant.clone(), name.clone())).copied().unwrap_or_default();
            assert_eq!(got, *want, "{tenant} {name}: {seen:#?}");
        }
    }
}

/// A program that has every allocation sampled would stand still under a probe
/// on its sampler: the probes are taken out, at once, and it goes on.
#[test]
#[ignore = "needs root and BPF"]
fn a_hot_sampler_does_not_freeze_its_program() {
    let program = build_default("loop", &["-ldflags=-s -w"]);
    let mut command = Command::new(program);
    command.args(["-workers", "1"]).env("GODEBUG", "memprofilerate=1");
    let p = Running::start(&mut command);
    let pid = p.pid().to_string();
    let args = ["watch", "--pid", &pid, "--duration", "8s", "--format", "json", "-q"];
    let (_, report, _) = claw_json(&args);
    let target = &report["targets"][0];
    let log = report["execution_log"].as_array().unwrap();
    let time = |word: &str| {
        let said = |l: &&Value| l["detail"].as_str().unwrap().contains(word);
        log.iter().find(said).unwrap_or_else(|| panic!("{word}: {log:#?}"))["elapsed_ms"]
            .as_u64()
            .unwrap()
    };
    // Not a whole decision's time, let alone two; with room for a busy machine.
    let held = time("their probes were detached") - time("probes in loop");
    assert!(held < 4000, "for {held} ms: {log:#?}");
    assert_eq!(target["blocked"][0]["what"], "in-use heap", "{target:#}");
}

/// An agent that was suspended would leave its window open for good.
#[test]
#[ignore = "needs root and BPF"]
fn ctrl_z_closes_the_window() {
    let program = build_default("loop", &["-ldflags=-s -w"]);
    let malloc = EveryPlan::of(&GoBinary::open(&program).unwrap()).unwrap().points[0].file_offset;
    let elf = Elf::open(&program).unwrap();
    let code = elf.segments.iter().find(|s| s.executable).unwrap();
    let p = Running::start(Command::new(program).args(["-workers", "1"]));
    let memory = ProcessMemory::open(p.pid()).unwrap();
    let is_open = || {
        let mut byte = [0];
        memory.read(code.vaddr + (malloc - code.offset), &mut byte).unwrap();
        byte == [0xcc]
    };
    let pid = p.pid().to_string();
    let mut watch = claw(&["watch", "--pid", &pid, "--mode", "exact", "--max-overhead", "50%"]);
    watch.args(["--format", "json", "-q"]).stdout(Stdio::piped());
    let mut watch = Running::from(watch.spawn().unwrap());
    let agent = watch.pid();
    let signal = |signal| {
        // SAFETY: the child is ours and not reaped yet.
        unsafe { libc::kill(agent.cast_signed(), signal) };
    };
    let until = |what: &str, is: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < Duration::from_secs(30), "{what}");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let stopped = || states(agent).0.chars().all(|state| state == 'T');
    for _ in 0..5 {
        until("no window opened", &is_open);
        signal(libc::SIGTSTP);
        until("the agent goes on", &stopped);
        assert!(!is_open(), "a window stays open");
        signal(libc::SIGCONT);
    }
    until("no window opened after all", &is_open);
    signal(libc::SIGINT);
    let report: Value = serde_json::from_reader(watch.child.stdout.take().unwrap()).unwrap();
    let log = report["execution_log"].as_array().unwrap();
    let times = log.iter().filter(|l| l["action"] == "Suspended").count();
    assert_eq!(times, 5, "{log:#?}");
    assert!(!is_open());
}
