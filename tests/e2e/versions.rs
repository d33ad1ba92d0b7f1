//! Every Go version, static, PIE and stripped: the leaking line and the
//! tenants, read from labels of both layouts.

use std::{process::Command, time::Duration};

use serde_json::Value;

use crate::common::*;

const BUILDS: [&[&str]; 4] =
    [&[], &["-ldflags=-s -w"], &["-buildmode=pie"], &["-buildmode=pie", "-ldflags=-s -w"]];

/// Watch fixtures that leak 20 MiB/s each: enough samples within seconds.
fn watch(builds: &[(&str, &[&str])]) {
    let running: Vec<(&str, &[&str], Running)> = builds
        .iter()
        .filter_map(|(version, flags)| {
            let program = build(version, "patterns", flags)?;
            let args = ["-do", "leak,labels,short", "-rate", "5000"];
            Some((*version, *flags, Running::start(Command::new(program).args(args))))
        })
        .collect();
    let pids: Vec<String> = running.iter().map(|(.., p)| p.pid().to_string()).collect();
    let mut args = vec!["watch", "--duration", "8s", "--interval", "2s", "--format", "json", "-q"];
    // Go 1.19 has no cheap instruction to probe.
    args.extend(["--max-overhead", "20%"]);
    args.extend(pids.iter().flat_map(|pid| ["--pid", pid.as_str()]));
    if running.is_empty() {
        return;
    }
    let (_, report, _) = claw_json(&args);
    for (version, flags, p) in &running {
        check(&report, p.pid(), flags, &format!("Go {version} {flags:?}"));
    }
}

fn check(report: &Value, pid: u32, flags: &[&str], what: &str) {
    let of_pid = |list: &str| -> Vec<Value> {
        let all = report[list].as_array().unwrap();
        all.iter().filter(|entry| entry["pid"] == pid).cloned().collect()
    };
    let target = &of_pid("targets")[0];
    assert_eq!(target["stripped"], flags.iter().any(|f| f.contains("-s")), "{what}");
    assert_eq!(target["blocked"], serde_json::json!([]), "{what}");
    assert!(target["gc_cycles"].as_u64().unwrap() > 0, "{what}: no GC cycle");
    let tenants = of_pid("tenants");
    let names: Vec<&str> = tenants.iter().map(|t| t["tenant"].as_str().unwrap()).collect();
    let long = "x".repeat(64);
    // One name is cut in the middle of a character's bytes and cleaned.
    for expected in
        ["acme-corp", "one", "id", "dash", "both", "eight", "-", &long, "ev[31mil\u{fffd}"]
    {
        assert!(names.contains(&expected), "{what}: no tenant {expected:?} in {names:?}");
    }
    assert_eq!(names.len(), 9, "{what}: {names:?}");
    assert!(target["events"]["lost"]["labels_cut"].as_u64().unwrap() > 0, "{what}");
    for reason in ["ring_full", "goroutine_unreadable", "label_unreadable", "stack_unreadable"] {
        assert_eq!(target["events"]["lost"][reason], 0, "{what}: {reason}");
    }
    let goroutines =
        tenants.iter().find(|t| t["tenant"] == "acme-corp").and_then(|t| t["goroutines"].as_u64());
    // 200 a second that live for 50 ms: some ten at a time.
    assert!(goroutines.is_some_and(|n| n < 60), "{what}: exits are missed: {goroutines:?}");
}

macro_rules! versions {
    ($($name:ident $version:literal)*) => {$(
        #[test]
        #[ignore = "needs root and BPF"]
        fn $name() {
            watch(&BUILDS.map(|flags| ($version, flags)));
        }
    )*};
}

versions! {
    go_1_19 "1.19"
    go_1_21 "1.21.13"
    go_1_22 "1.22.10"
    go_1_23 "1.23.9"
    go_1_24 "1.24.11"
    go_1_25 "1.25.5"
    go_1_26 "1.26.6"
    go_1_27 "1.27.3"
}

/// Linked by the C compiler, with its threads and its start-up code.
#[test]
#[ignore = "needs root and BPF"]
fn cgo() {
    let external: &[&str] = &["-ldflags=-linkmode=external"];
    watch(&["1.19", "1.22.10", "1.27.3"].map(|version| (version, external)));
}

/// One agent watches all of them at once.
#[test]
#[ignore = "needs root and BPF"]
fn leaking_line_in_every_version() {
    let line = marked_line("patterns", "main.go", "LEAK: object");
    let running: Vec<(&str, Running)> = VERSIONS
        .iter()
        .filter_map(|version| {
            let program = build(version, "patterns", &["-ldflags=-s -w"])?;
            let args = ["-do", "leak", "-rate", "500", "-churn", "20"];
            Some((*version, Running::start(Command::new(program).args(args))))
        })
        .collect();
    let pids: Vec<String> = running.iter().map(|(_, p)| p.pid().to_string()).collect();
    let mut args = vec!["watch", "--interval", "5s"];
    args.extend(pids.iter().flat_map(|pid| ["--pid", pid.as_str()]));
    let leaking: Vec<u32> = running.iter().map(|(_, p)| p.pid()).collect();
    let (code, report) = watch_until_found(&args, Duration::from_secs(45), &leaking);
    assert_eq!(code, 1, "{report:#}");
    for (version, p) in running {
        let f = report["findings"]
            .as_array()
            .unwrap()
            .iter()
            .find(|f| f["pid"] == p.pid() && f["verdict"] == "leak")
            .unwrap_or_else(|| panic!("Go {version}: nothing found"));
        assert_eq!(f["site"]["function"], "main.grow", "Go {version}: {f:#}");
        assert_eq!(f["site"]["line"], line, "Go {version}: {f:#}");
        assert_eq!(f["site"]["stack"][1]["function"], "main.leak", "Go {version}: {f:#}");
        assert_eq!(f["site"]["stack"][0]["inlined"], true, "Go {version}: {f:#}");
        assert_eq!(f["tenant"], "acme-corp", "Go {version}: {f:#}");
    }
    assert_eq!(report["findings"].as_array().unwrap().len(), pids.len());
}
