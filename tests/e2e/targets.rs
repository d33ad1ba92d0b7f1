//! Targets that change: exec, exit, restart; programs without a sampler; other
//! namespaces.

use std::{
    io::{BufRead, BufReader},
    process::Command,
};

use crate::common::*;

#[test]
#[ignore = "needs root and BPF"]
fn heap_rate_is_set_and_restored() {
    // Without runtime/pprof's heap profile nothing reaches the sampler.
    let program = build_default("quiet", &[]);
    let p = Running::start(&mut Command::new(program));
    let pid = p.pid().to_string();
    let watch = |extra: &[&str]| {
        let mut args = vec!["watch", "--pid", &pid, "--duration", "5s", "--format", "json", "-q"];
        args.extend(extra);
        claw_json(&args)
    };
    let (code, report, _) = watch(&[]);
    assert_eq!(code, 3, "nothing can be said");
    let blocked = report["targets"][0]["blocked"][0]["why"].as_str().unwrap();
    assert!(blocked.contains("--heap-rate"), "{blocked}");
    assert!(report["tenants"].as_array().unwrap().iter().all(|t| t["live_bytes"].is_null()));

    let (_, report, _) = watch(&["--heap-rate", "64KiB"]);
    let log = report["execution_log"].to_string();
    assert!(log.contains("from 0 to 65536") && log.contains("set back to 0"), "{log}");
    let bytes = report["tenants"][0]["alloc_bytes_per_s"].as_f64().unwrap();
    // It allocates 32 MiB a second.
    assert!((20e6..50e6).contains(&bytes), "{bytes}");

    let (code, report, _) = watch(&[]);
    assert_eq!(code, 3, "the old rate is back: {report:#}");
}

#[test]
#[ignore = "needs root and BPF"]
fn exec_and_exit_are_followed() {
    let program = build_default("patterns", &[]);
    let mut p = Running::start(Command::new(program).args(["-do", "leak", "-duration", "8s"]));
    let pid = p.pid();
    let killer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(3));
        // SAFETY: the child is alive: it runs for 8 s more after the exec.
        unsafe { libc::kill(pid as i32, libc::SIGUSR1) };
    });
    let pid = pid.to_string();
    let (_, report, _) = claw_json(&["watch", "--pid", &pid, "--format", "json", "-q"]);
    killer.join().unwrap();
    let gone: Vec<&str> = report["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["gone"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(gone.len(), 2, "{report:#}");
    assert!(gone.iter().any(|g| g.contains("exec")) && gone.iter().any(|g| g.contains("ended")));
    p.child.wait().unwrap();
}

#[test]
#[ignore = "needs root and BPF"]
fn restart_under_the_same_name_is_watched() {
    let program = build_default("patterns", &[]);
    let name = program.file_name().unwrap().to_str().unwrap().to_owned();
    let starter = std::thread::spawn(move || {
        for _ in 0..2 {
            std::thread::sleep(std::time::Duration::from_secs(1));
            let mut p = Command::new(&program)
                .args(["-do", "leak", "-duration", "6s"])
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            p.wait().unwrap();
        }
    });
    let pattern = format!("^{}$", regex::escape(&name));
    let (_, report, _) =
        claw_json(&["watch", "--name", &pattern, "--duration", "18s", "--format", "json", "-q"]);
    starter.join().unwrap();
    let targets = report["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 2, "{targets:#?}");
    assert!(targets.iter().all(|t| t["events"]["received"].as_u64().unwrap() > 0));
}

#[test]
#[ignore = "needs root and BPF"]
fn other_namespaces_and_a_cgroup_tenant() {
    let program = build_default("patterns", &["-ldflags=-s -w"]);
    // Its own mounts and pids, and its file system seen from nowhere else.
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs none {0} && cp {1} {0}/svc && exec {0}/svc -do leak -rate 5000",
        dir.path().display(),
        program.display()
    );
    let p = Running::start(
        Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script])
            .env("TENANT", "from-env"),
    );
    let name = "^svc$";
    let (_, report, stderr) = claw_json(&[
        "watch",
        "--name",
        name,
        "--duration",
        "6s",
        "--tenant",
        "env:TENANT",
        "--format",
        "json",
        "-q",
    ]);
    drop(p);
    let t = &report["targets"][0];
    assert!(t["container"].is_string(), "{report:#}{stderr}");
    assert!(t["image"].is_null(), "nothing tells the image: {report:#}");
    assert_eq!(report["tenants"][0]["tenant"], "from-env", "{report:#}");
    assert!(report["tenants"][0]["live_bytes"].as_f64().unwrap() > 1e6);
}

#[test]
#[ignore = "needs root and BPF"]
fn run_passes_the_exit_code_on() {
    let program = build_default("patterns", &[]);
    let program = program.to_str().unwrap();
    let out = claw(&["run", "-q", "--", program, "-do", "nonsense"]).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
    let out = claw(&["run", "-q", "--", program, "-do", "leak", "-duration", "3s"]);
    let mut out = out;
    let out = out.output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
#[ignore = "needs root and BPF"]
fn a_reused_pid_is_another_process() {
    let program = build_default("patterns", &[]);
    let start = || {
        let mut c = Command::new(&program);
        Running::start(c.args(["-do", "leak", "-rate", "5000"]))
    };
    let first = start();
    let pid = first.pid();
    let mut watch = claw(&["watch", "--pid", &pid.to_string(), "--format", "jsonl", "-q"]);
    let mut watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|l| l.contains("\"event\":\"target\"")).expect("a target");
    drop(first);
    // The kernel gives out the next number after the last.
    let second = (0..200).map(|_| {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        start()
    });
    let second = second.into_iter().find(|p| p.pid() == pid);
    let second = second.expect("the pid could not be had again");
    let rest: Vec<serde_json::Value> = lines.map(|l| serde_json::from_str(&l).unwrap()).collect();
    assert_eq!(watch.wait().unwrap().code(), Some(3), "it ends by itself, with nothing to say");
    let report = rest.iter().find(|l| l["event"] == "report").unwrap();
    let targets = report["targets"].as_array().unwrap();
    assert_eq!(targets.len(), 1, "{targets:#?}");
    assert!(targets[0]["gone"].as_str().unwrap().contains("ended"), "{targets:#?}");
    assert!(std::path::Path::new(&format!("/proc/{}/exe", second.pid())).exists());
}

#[test]
#[ignore = "needs root and BPF"]
fn attached_and_let_go_at_full_load() {
    let program = build_default("patterns", &[]);
    let mut p = Running::start(Command::new(program).args([
        "-do",
        "leak,labels,short,pool",
        "-churn",
        "3000",
    ]));
    let pid = p.pid().to_string();
    for _ in 0..4 {
        let (_, report, _) = claw_json(&[
            "watch",
            "--pid",
            &pid,
            "--duration",
            "2s",
            "--interval",
            "1s",
            "--format",
            "json",
            "-q",
            "--max-overhead",
            "100%",
        ]);
        let target = &report["targets"][0];
        assert_eq!(target["blocked"], serde_json::json!([]), "{report:#}");
        assert!(target["events"]["received"].as_u64().unwrap() > 100, "{report:#}");
        assert_eq!(target["events"]["lost"]["ring_full"], 0, "{report:#}");
        assert!(target["gone"].is_null(), "{report:#}");
    }
    assert!(p.child.try_wait().unwrap().is_none(), "the target is unharmed");
}

/// What a service held before anybody looked: the `heap` verb and `watch` say
/// the same, with the line.
#[test]
#[ignore = "needs root and BPF"]
fn heap_from_before_watching() {
    let program = build_default("patterns", &["-buildmode=pie", "-ldflags=-s -w"]);
    let p = Running::start(Command::new(program).args(["-do", "startup", "-churn", "400"]));
    // GC cycles that the profile waits for.
    std::thread::sleep(std::time::Duration::from_secs(3));
    let pid = p.pid().to_string();
    let (code, heap, _) = claw_json(&["heap", "--pid", &pid, "--format", "json"]);
    assert_eq!(code, 0);
    let row = heap["rows"].as_array().unwrap().iter().find(|r| {
        r["site"]["function"] == "main.startup" && r["inuse_objects"].as_i64().unwrap() > 1000
    });
    // 20,000 objects of 4096 bytes.
    let bytes = row.unwrap()["inuse_space"].as_f64().unwrap();
    assert!((50e6..115e6).contains(&bytes), "{bytes}");

    let (_, report, _) =
        claw_json(&["watch", "--pid", &pid, "--duration", "2s", "--format", "json", "-q"]);
    let before = &report["targets"][0]["before_attach"];
    let site = &before["sites"][0];
    assert_eq!(site["function"], "main.startup", "{before:#}");
    assert_eq!(site["line"], row.unwrap()["site"]["line"], "{before:#}");
    assert!((site["bytes"].as_f64().unwrap() / bytes - 1.0).abs() < 0.05, "{before:#}");

    let out = claw(&["heap", "--pid", &pid, "--by", "tenant"]).output().unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&out.stderr).contains("carries no labels"));
}
