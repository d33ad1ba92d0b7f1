//! Every Go version, static, PIE and stripped: the leaking line and the
//! tenants, read from labels of both layouts.

use std::process::Command;

use crate::common::*;

const BUILDS: [&[&str]; 4] =
    [&[], &["-ldflags=-s -w"], &["-buildmode=pie"], &["-buildmode=pie", "-ldflags=-s -w"]];

/// Watch a fixture that leaks 20 MiB/s: enough samples within seconds.
fn watch(version: &str, flags: &[&str]) {
    let Some(program) = build(version, "patterns", flags) else { return };
    let p =
        Running::start(Command::new(program).args(["-do", "leak,labels,short", "-rate", "5000"]));
    let pid = p.pid().to_string();
    let (_, report, _) = claw_json(&[
        "watch",
        "--pid",
        &pid,
        "--duration",
        "6s",
        "--interval",
        "2s",
        // Go 1.19 has no cheap instruction to probe.
        "--max-overhead",
        "10%",
        "--format",
        "json",
        "-q",
    ]);
    let what = format!("Go {version} {flags:?}");
    let target = &report["targets"][0];
    assert_eq!(target["stripped"], flags.iter().any(|f| f.contains("-s")), "{what}");
    assert_eq!(target["blocked"], serde_json::json!([]), "{what}");
    assert!(target["gc_cycles"].as_u64().unwrap() > 0, "{what}: no GC cycle");
    let tenants: Vec<&str> = report["tenants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["tenant"].as_str().unwrap())
        .collect();
    let long = "x".repeat(64);
    // One name is cut in the middle of a character's bytes and cleaned.
    for expected in
        ["acme-corp", "one", "id", "dash", "both", "eight", "-", &long, "ev[31mil\u{fffd}"]
    {
        assert!(tenants.contains(&expected), "{what}: no tenant {expected:?} in {tenants:?}");
    }
    assert_eq!(tenants.len(), 9, "{what}: {tenants:?}");
    assert!(target["events"]["lost"]["labels_cut"].as_u64().unwrap() > 0, "{what}");
    for reason in ["ring_full", "goroutine_unreadable", "label_unreadable", "stack_unreadable"] {
        assert_eq!(target["events"]["lost"][reason], 0, "{what}: {reason}");
    }
    let goroutines = report["tenants"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["tenant"] == "acme-corp")
        .and_then(|t| t["goroutines"].as_u64());
    // 200 a second that live for 50 ms: some ten at a time.
    assert!(goroutines.is_some_and(|n| n < 60), "{what}: exits are missed: {goroutines:?}");
}

macro_rules! versions {
    ($($name:ident $version:literal)*) => {$(
        #[test]
        #[ignore = "needs root and BPF"]
        fn $name() {
            for flags in BUILDS {
                watch($version, flags);
            }
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
    for version in ["1.19", "1.22.10", "1.27.3"] {
        watch(version, &["-ldflags=-linkmode=external"]);
    }
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
    let mut args = vec!["watch", "--duration", "55s", "--interval", "5s", "--format", "json", "-q"];
    args.extend(pids.iter().flat_map(|pid| ["--pid", pid.as_str()]));
    let (code, report, _) = claw_json(&args);
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
