//! Exact mode counts what the program itself counts: every version, static,
//! PIE and stripped, with and without size-specialised allocators.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::common::*;

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

    fn truth(&mut self) -> BTreeMap<String, BTreeMap<String, [u64; 2]>> {
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
        let ours = a["pid"] == pid
            && a["tenant"] == tenant
            && a["site"]["function"].as_str().unwrap().starts_with("main.");
        if !ours {
            continue;
        }
        let name =
            if a["kind"] == "goroutine" { "goroutine" } else { a["type"].as_str().unwrap_or("?") };
        let sum = sums.entry(name.to_owned()).or_default();
        sum[0] += a["count"].as_f64().unwrap() as u64;
        sum[1] += a["bytes"].as_f64().unwrap_or(0.0) as u64;
    }
    sums
}

#[test]
#[ignore = "needs root and BPF"]
fn counts_are_those_of_the_program() {
    let mut running = all_builds();
    let mut args = vec!["watch", "--mode", "exact", "--max-overhead", "100%", "-q"];
    args.extend(["--format", "jsonl", "--interval", "2s"]);
    let pids: Vec<String> = running.iter().map(|c| c.child.id().to_string()).collect();
    args.extend(pids.iter().flat_map(|p| ["--pid", p.as_str()]));
    let mut agent = claw(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(agent.stdout.take().unwrap()).lines().map(Result::unwrap);
    // Every window is open and stays open.
    let open = |l: &String| l.contains("is counted without a gap");
    let waiting: Vec<String> = lines.by_ref().filter(open).take(running.len()).collect();
    assert_eq!(waiting.len(), running.len());
    for c in &mut running {
        writeln!(c.stdin, "go").unwrap();
    }
    let truths: Vec<_> = running.iter_mut().map(Counting::truth).collect();
    // SAFETY: the child is ours and not reaped yet.
    unsafe { libc::kill(agent.id().cast_signed(), libc::SIGINT) };
    let last = lines.last().unwrap();
    agent.wait().unwrap();
    let report: Value = serde_json::from_str(&last).unwrap();
    let record = marked_line("exact", "main.go", "COUNT: record");
    for (c, truth) in running.iter().zip(&truths) {
        let (what, pid) = (&c.what, c.child.id());
        let target = report["targets"].as_array().unwrap().iter().find(|t| t["pid"] == pid);
        let target = target.unwrap();
        assert_eq!(target["mode"], "exact", "{what}: {target:#}");
        assert_eq!(target["exact"]["coverage"], 1.0, "{what}: {target:#}");
        for (reason, n) in target["exact"]["lost"].as_object().unwrap() {
            // The runtime's own, on a stack that is just being made.
            let most = if reason == "exact_stacks_lost" { 20 } else { 0 };
            assert!(n.as_u64().unwrap() <= most, "{what}: {reason}: {n}");
        }
        assert!(!truth.is_empty());
        for (tenant, by_type) in truth {
            let counted = counted(&report, pid, tenant);
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
