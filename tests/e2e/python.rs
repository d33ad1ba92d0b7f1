//! CPython services: what leaks is found with type and holder, healthy twins
//! stay silent.

use std::{process::Command, time::Duration};

use crate::common::*;

/// `service.py` under the system's own Python.
fn service(how: &str, rate: &str) -> Running {
    let script = root().join("tests/fixtures/python/service.py");
    Running::start(Command::new("python3").arg(script).args([how, rate]))
}

#[test]
#[ignore = "needs root and BPF"]
fn leaks_and_healthy_twins() {
    let leaking = [
        service("leak_in_dict", "400"),
        service("leak_on_class", "400"),
        service("leak_buffers", "400"),
    ];
    let healthy =
        [service("lru_cache", "2000"), service("bursts", "2000"), service("cycles", "2000")];
    let pids: Vec<String> = leaking.iter().chain(&healthy).map(|r| r.pid().to_string()).collect();
    let mut args = vec!["watch", "--interval", "5s"];
    for pid in &pids {
        args.extend(["--pid", pid]);
    }
    let of_leaking: Vec<u32> = leaking.iter().map(Running::pid).collect();
    let (code, report) = watch_until_found(&args, Duration::from_secs(80), &of_leaking);
    assert_eq!(code, 1);
    let found: Vec<_> = report["findings"].as_array().unwrap().iter().collect();
    let of = |r: &Running| {
        let of: Vec<_> = found.iter().filter(|f| f["pid"] == r.pid()).collect();
        assert_eq!(of.len(), 1, "{found:#?}");
        assert_eq!(of[0]["verdict"], "leak", "{found:#?}");
        of[0]
    };
    for (running, kind, subject, holder) in [
        (&leaking[0], "heap", "__main__.Session", "global __main__.SESSIONS"),
        (&leaking[1], "heap", "__main__.Session", "class attribute __main__.Handlers.registered"),
        (&leaking[2], "rss", "(memory outside", "global __main__.SESSIONS"),
    ] {
        let f = of(running);
        assert_eq!(f["kind"], kind);
        assert!(f["site"]["function"].as_str().unwrap().starts_with(subject), "{f:#}");
        assert_eq!(f["holder"]["root"], holder);
    }
    assert_eq!(found.len(), leaking.len(), "healthy twins stay silent: {found:#?}");
}
