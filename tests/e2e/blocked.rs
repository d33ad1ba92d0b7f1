//! Goroutines that wait for ever: found with where they wait and for what, and
//! a remedy that fits; those that wait in good health stay silent.

use std::{process::Command, time::Duration};

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
