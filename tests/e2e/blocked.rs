//! Goroutines that wait for ever: found with where they wait and for what, and
//! a remedy that fits; those that wait in good health stay silent.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::common::*;

/// What to do, kind, reason, a word of the remedy.
const LEAKS: [(&str, &str, &str, &str); 12] = [
    ("chansend", "goroutine", "chan send", "make(chan T, 1)"),
    ("chanrecv", "goroutine", "chan receive", "close(ch)"),
    ("select", "goroutine", "select", "ctx.Done()"),
    ("waitgroup", "goroutine", "sync.WaitGroup.Wait", "defer wg.Done()"),
    ("mutex", "goroutine", "sync.Mutex.Lock", "defer mu.Unlock()"),
    ("rwmutex", "goroutine", "sync.RWMutex.RLock", "RUnlock"),
    ("cond", "goroutine", "sync.Cond.Wait", "Broadcast"),
    ("io", "goroutine", "IO wait", "deadline"),
    ("sleep", "goroutine", "sleep", "ctx.Done()"),
    ("syscall", "thread", "syscall", "OS thread"),
    ("mixed", "goroutine", "chan receive", "close(ch)"),
    ("cgo", "thread", "cgo call", "C function"),
];

/// C code needs a program of its own.
fn fixture_of(what: &str) -> &'static str {
    if matches!(what, "cgo" | "pool") { "threads" } else { "blocked" }
}

/// One agent watches all, each built with another version.
#[test]
#[ignore = "needs root and BPF"]
fn every_way_to_wait_for_ever() {
    let start = |i: usize, what: &str| {
        let version = ["1.26.6", "1.22.10", "1.27.3"][i % 3];
        let program = build(version, fixture_of(what), &["-ldflags=-s -w"]);
        Running::start(Command::new(program.expect("Go toolchains")).args(["-do", what]))
    };
    let leaks: Vec<Running> =
        LEAKS.iter().enumerate().map(|(i, (what, ..))| start(i, what)).collect();
    let healthy = ["healthy", "healthy", "healthy", "pool"].into_iter().enumerate();
    let healthy: Vec<Running> = healthy.map(|(i, what)| start(i, what)).collect();
    let pids: Vec<String> = leaks.iter().chain(&healthy).map(|p| p.pid().to_string()).collect();
    let mut args = vec!["watch"];
    args.extend(pids.iter().flat_map(|pid| ["--pid", pid.as_str()]));
    let leaking: Vec<u32> = leaks.iter().map(Running::pid).collect();
    let (code, report) = watch_until_found(&args, Duration::from_secs(85), &leaking);
    assert_eq!(code, 1, "{:#}", report["findings"]);
    let found = report["findings"].as_array().unwrap();
    for ((what, kind, reason, word), p) in LEAKS.iter().zip(&leaks) {
        let of: Vec<_> = found.iter().filter(|f| f["pid"] == p.pid()).collect();
        assert_eq!(of.len(), 1, "{what}: {of:#?}");
        let f = of[0];
        assert_eq!((&f["kind"], &f["verdict"]), (&(*kind).into(), &"leak".into()), "{what}: {f:#}");
        assert_eq!(f["tenant"], "acme-corp", "{what}: {f:#}");
        let b = &f["blocked_on"];
        assert_eq!(b["reason"], *reason, "{what}: {f:#}");
        let line = marked_line(fixture_of(what), "main.go", &format!("LEAK: {what}"));
        assert_eq!(b["line"], line, "{what}: {f:#}");
        let text = f["remedy"]["text"].as_str().unwrap();
        assert!(text.contains(word), "{what}: {text}");
        let per_minute = f["growth"]["count_per_minute"].as_f64().unwrap();
        let truth = if *what == "mixed" { 30.0 } else { 120.0 };
        assert!((truth * 0.6..truth * 1.4).contains(&per_minute), "{what}: {per_minute} a minute");
    }
    assert_eq!(found.len(), LEAKS.len(), "the healthy are silent: {found:#?}");
}

/// From outside, without probes: several looks, and the same verdict.
#[test]
#[ignore = "needs root and BPF"]
fn looks_alone_tell_a_leak() {
    let program = build_default("blocked", &["-ldflags=-s -w"]);
    let start = |what: &str| Running::start(Command::new(&program).args(["-do", what]));
    let (leak, healthy) = (start("chansend"), start("healthy"));
    let look = |p: &Running, time: &str, format: &str| {
        let mut c = claw(&["goroutines", "--pid", &p.pid().to_string(), "--for", time]);
        c.args(["--format", format, "--tenant", "label:tenant"]);
        c.stdout(Stdio::piped()).spawn().unwrap()
    };
    let short = look(&leak, "1s", "text").wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&short.stdout);
    assert_eq!(short.status.code(), Some(3), "{text}");
    assert!(text.contains("Not enough evidence") && text.contains("[chan send]"), "{text}");

    // Both at once.
    let looking = [look(&leak, "58s", "json"), look(&healthy, "58s", "jsonl")];
    let [of_leak, of_healthy] = looking.map(|c| c.wait_with_output().unwrap());
    let dump: Value = serde_json::from_slice(&of_leak.stdout).unwrap();
    assert_eq!(of_leak.status.code(), Some(1), "{:#}", dump["report"]);
    let found = dump["report"]["findings"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0]["verdict"], "leak", "{found:#?}");
    assert_eq!(found[0]["tenant"], "acme-corp", "{found:#?}");
    assert_eq!(found[0]["blocked_on"]["reason"], "chan send", "{found:#?}");
    let line = marked_line("blocked", "main.go", "LEAK: chansend");
    assert_eq!(found[0]["blocked_on"]["line"], line, "{found:#?}");
    let group = &dump["groups"][0];
    assert!(group["count"].as_u64().unwrap() >= 80, "as it is at the end: {group:#}");
    assert_eq!(dump["report"]["targets"][0]["overhead"]["hits"], 0, "nothing is probed");

    let lines = String::from_utf8(of_healthy.stdout).unwrap();
    let report: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(report["event"], "report", "{report:#}");
    assert_eq!(report["findings"], serde_json::json!([]), "{report:#}");
    assert_eq!(of_healthy.status.code(), Some(0), "{:#}", report["summary"]);
}
