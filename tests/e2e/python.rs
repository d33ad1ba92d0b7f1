//! CPython services: what leaks is found with type and holder, healthy twins
//! stay silent.

use std::{cell::Cell, collections::BTreeSet, path::PathBuf, process::Command, time::Duration};

use serde_json::Value;

use crate::{common::*, interpreters};

/// `service.py` under the system's own Python.
fn service(how: &str, rate: &str) -> Running {
    let script = root().join("tests/fixtures/python/service.py");
    Running::start(Command::new("python3").arg(script).args([how, rate]))
}

/// `tenants.py`, which leaks 750 sessions a second when it does.
fn tenants(how: &str, mode: &str) -> Running {
    let script = root().join("tests/fixtures/python/tenants.py");
    Running::start(Command::new("python3").arg(script).args([how, "2000", mode]))
}

/// Of an interpreter whose objects cannot be read the memory is watched.
#[test]
#[ignore = "needs root and BPF"]
fn a_version_or_build_that_is_not_known() {
    let mut pythons: Vec<_> = interpreters::installed(5..=7).pop().into_iter().collect();
    pythons.extend(interpreters::free_threaded());
    if pythons.is_empty() {
        eprintln!("skipped: neither a Python before 3.8 nor a free-threaded one is here");
    }
    pythons.into_iter().for_each(its_memory_is_watched);
}

fn its_memory_is_watched(python: PathBuf) {
    let program = "print('{}', flush=True); __import__('time').sleep(100)";
    let running = Running::start(Command::new(python).args(["-c", program]));
    let pid = running.pid().to_string();
    let (code, report, _) =
        claw_json(&["watch", "--pid", &pid, "--duration", "4s", "--format", "json"]);
    assert_eq!(code, 3, "{report:#}");
    let target = &report["targets"][0];
    assert_eq!((&target["runtime"], &target["mode"]), (&"cpython".into(), &"memory".into()));
    assert!(target["rss_bytes"].as_u64() > Some(1 << 20), "{target:#}");
    assert_eq!(target["blocked"].as_array().map(Vec::len), Some(1), "{target:#}");
    let why = report["summary"]["why_not_enough"].to_string();
    assert!(why.contains("only its resident memory is known"), "{report:#}");
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
    let filling = service("filling", "400");
    // What grows evenly until the collector goes over everything, and what stays.
    let [waiting, chained] = ["waiting", "chained"].map(|how| service(how, "400"));
    let all = leaking.iter().chain(&healthy).chain([&filling, &waiting, &chained]);
    let pids: Vec<String> = all.map(|r| r.pid().to_string()).collect();
    let mut args = vec!["watch", "--interval", "5s"];
    for pid in &pids {
        args.extend(["--pid", pid]);
    }
    let garbage_leaks = Cell::new(false);
    let (code, report) = watch_until(&args, Duration::from_secs(80), |found| {
        let leaks =
            |r: &Running| found.iter().any(|f| f["pid"] == r.pid() && f["verdict"] == "leak");
        garbage_leaks.set(leaks(&waiting));
        let named = |f: &Value| f["kind"] == "rss" && !f["site"]["line"].is_null();
        // It is known a census later than that something grows.
        let held = |f: &Value| f["pid"] == filling.pid() && !f["holder"].is_null();
        let all = leaking.iter().chain([&chained]).all(leaks);
        all && found.iter().any(named) && found.iter().any(held)
    });
    assert_eq!(code, 1);
    assert!(!garbage_leaks.get(), "garbage that waits is no leak, not for a while either");
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
        (&leaking[2], "rss", "leak_buffers", "global __main__.SESSIONS"),
    ] {
        let f = of(running);
        assert_eq!(f["kind"], kind);
        match kind {
            "heap" => assert_eq!(f["type"], subject, "{f:#}"),
            // As a window on the C allocator shows.
            _ => assert_eq!(f["site"]["function"], subject, "{f:#}"),
        }
        assert_eq!(f["holder"]["root"], holder);
    }
    let proof = of(&chained)["evidence"].to_string();
    assert!(proof.contains("lived through a full garbage collection"), "{proof}");
    // Until the collector has run it may be suspected.
    let found = found.into_iter().filter(|f| f["pid"] != waiting.pid());
    let (full, found): (Vec<&Value>, Vec<&Value>) = found.partition(|f| f["pid"] == filling.pid());
    for f in full {
        assert_eq!(f["verdict"], "suspect", "a cache with a bound fills up: {f:#}");
        assert_eq!(f["holder"]["root"], "global __main__.answer", "{f:#}");
        assert!(f["remedy"]["text"].as_str().unwrap().contains("at most"), "{f:#}");
    }
    assert_eq!(found.len(), leaking.len() + 1, "healthy twins stay silent: {found:#?}");
    let targets = report["targets"].as_array().unwrap();
    let cyclic = targets.iter().find(|t| t["pid"] == healthy[2].pid()).unwrap();
    let ran: Vec<u64> = serde_json::from_value(cyclic["gc_generations"].clone()).unwrap();
    assert!(ran[0] > 0, "its cycles were collected: {cyclic:#}");
    assert_eq!(cyclic["gc_cycles"], ran.iter().sum::<u64>());
}

#[test]
#[ignore = "needs root and BPF"]
fn who_allocates_what_stays() {
    let several =
        [tenants("local", "leak"), tenants("contextvar", "leak"), tenants("thread", "leak")];
    let healthy = tenants("contextvar", "healthy");
    let pids: Vec<String> = several.iter().chain([&healthy]).map(|r| r.pid().to_string()).collect();
    let dir = tempfile::tempdir().unwrap();
    let recording = dir.path().join("run.claw").display().to_string();
    let mut args =
        vec!["watch", "--interval", "5s", "--max-overhead", "5%", "--record", &recording];
    for rule in ["local:tenant_id", "contextvar:tenant", "thread-name"] {
        args.extend(["--tenant", rule]);
    }
    for pid in &pids {
        args.extend(["--pid", pid]);
    }
    let (_, report) = watch_until(&args, Duration::from_secs(75), |found| {
        let named = |r: &Running| {
            let of = found.iter().filter(|f| f["pid"] == r.pid() && !f["site"]["line"].is_null());
            of.count() >= 2
        };
        several.iter().all(named)
    });
    let found: Vec<_> = report["findings"].as_array().unwrap().iter().collect();
    // Where what stays is allocated, and whose it is; not where the same type
    // comes and goes.
    let line = |marker| marked_line_of("tests/fixtures/python/tenants.py", marker);
    let want = BTreeSet::from([
        ("acme".to_owned(), "login".to_owned(), line("leak: login")),
        ("umbrella".to_owned(), "audit".to_owned(), line("leak: audit")),
    ]);
    for running in &several {
        let of = found.iter().filter(|f| f["pid"] == running.pid());
        let got = of.clone().map(|f| {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            (
                text(&f["tenant"]),
                text(&f["site"]["function"]),
                f["site"]["line"].as_u64().unwrap_or(0),
            )
        });
        assert_eq!(got.collect::<BTreeSet<_>>(), want, "{:#?}", of.collect::<Vec<_>>());
    }
    let silent = found.iter().all(|f| f["pid"] != healthy.pid());
    assert!(silent, "healthy twins stay silent: {found:#?}");

    let (_, again, _) = claw_json(&["replay", &recording, "--format", "json", "-q"]);
    assert_eq!(again["findings"], report["findings"], "a recording gives the same");
}

#[test]
#[ignore = "needs root and BPF"]
fn a_stop_ends_with_the_agent_even_when_it_is_killed() {
    // Large enough for the copy to take a while.
    let mut c = Command::new("python3");
    c.arg("worker.py").arg("lru").current_dir(root().join("tests/fixtures/python/services"));
    let service = Running::start(c.env("RATE", "500").env("BALLAST", "150000"));
    let pid = service.pid();
    let mut killed = 0;
    for _ in 0..10 {
        let mut agent = claw(&["heap", "--by", "type", "--holders", "--max-pause", "10s", "--pid"])
            .arg(pid.to_string())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while !states(pid).0.contains('t') && agent.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // Stopped still: the agent dies in the middle of it.
        if states(pid).0.contains('t') {
            agent.kill().unwrap();
            killed += 1;
        }
        agent.wait().unwrap();
        let (_, before) = states(pid);
        let began = std::time::Instant::now();
        loop {
            let (letters, ticks) = states(pid);
            if !letters.contains(['t', 'T']) && ticks > before + 5 {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "it stands: {letters} {ticks}");
            std::thread::sleep(Duration::from_millis(20));
        }
        if killed == 3 {
            return;
        }
    }
    assert!(killed > 0, "no stop was seen");
}

/// `concurrency.py`.
fn concurrency(how: &str) -> Running {
    let script = root().join("tests/fixtures/python/concurrency.py");
    Running::start(Command::new("python3").arg(script).arg(how))
}

#[test]
#[ignore = "needs root and BPF"]
fn threads_and_tasks_that_pile_up() {
    let leaking = [concurrency("threads_leak"), concurrency("tasks_leak")];
    let healthy = [concurrency("threads_end"), concurrency("pool"), concurrency("tasks_fixed")];
    let pids: Vec<String> = leaking.iter().chain(&healthy).map(|r| r.pid().to_string()).collect();
    let mut args = vec!["watch", "--interval", "2s"];
    for pid in &pids {
        args.extend(["--pid", pid]);
    }
    let kinds = ["thread", "task"];
    let (code, report) = watch_until(&args, Duration::from_secs(60), |found| {
        let of = |r: &Running, kind: &str| {
            let leak = |f: &&Value| f["pid"] == r.pid() && f["kind"] == kind;
            found.iter().any(|f| leak(&f) && f["verdict"] == "leak")
        };
        leaking.iter().zip(kinds).all(|(r, kind)| of(r, kind))
    });
    assert_eq!(code, 1);
    let found: Vec<_> = report["findings"].as_array().unwrap().iter().collect();
    let marked = |marker| marked_line_of("tests/fixtures/python/concurrency.py", marker);
    for (running, kind, function, tenant, line, reason, remedy) in [
        (
            &leaking[0],
            "thread",
            "consumer",
            "acme",
            marked("# leak: consumer"),
            "get (a lock)",
            "a queue that nobody fills",
        ),
        (
            &leaking[1],
            "task",
            "notify",
            "globex",
            marked("# leak: notify"),
            "locks.",
            "asyncio.timeout",
        ),
    ] {
        let of: Vec<_> = found.iter().filter(|f| f["pid"] == running.pid()).collect();
        assert_eq!(of.len(), 1, "one cause, one finding: {of:#?}");
        let f = of[0];
        assert_eq!((&f["kind"], &f["verdict"]), (&kind.into(), &"leak".into()), "{f:#}");
        assert_eq!((&f["site"]["function"], &f["tenant"]), (&function.into(), &tenant.into()));
        assert!(f["site"]["line"].as_u64().unwrap() > 0 && f["remedy"]["text"].is_string());
        assert_eq!(f["blocked_on"]["line"], line, "{f:#}");
        assert!(f["blocked_on"]["reason"].as_str().unwrap().contains(reason), "{f:#}");
        assert!(f["remedy"]["text"].as_str().unwrap().contains(remedy), "{f:#}");
    }
    assert_eq!(found.len(), 2, "healthy twins stay silent: {found:#?}");
}
