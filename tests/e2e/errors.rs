//! What bad input gets: one line, the right exit code, the target unharmed.

use std::{os::unix::process::CommandExt, process::Command, time::Duration};

use crate::common::*;

fn fails(args: &[&str], code: i32, message: &str) {
    let out = claw(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(message), "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?}");
}

#[test]
#[ignore = "needs root and BPF"]
fn processes_that_cannot_be_watched() {
    fails(&["watch", "--pid", "4194303", "-q"], 2, "no process 4194303");
    let sleep = Running::from(Command::new("sleep").arg("60").spawn().unwrap());
    fails(&["watch", "--pid", &sleep.pid().to_string(), "-q"], 2, "not a Go program");
    fails(&["watch", "--pid", "1", "--out", "x.svg"], 2, "unknown extension");
    fails(&["watch", "--pid", "1", "--tenant", "label"], 2, "expected label:KEY");
    fails(&["replay", "/nowhere"], 2, "cannot read recording");
    fails(&["watch"], 2, "--pid");
}

#[test]
#[ignore = "needs root and BPF"]
fn without_root_it_says_so() {
    // The build folder may be closed to others: run a copy.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let copy = dir.path().join("claw-ebpf");
    std::fs::copy(env!("CARGO_BIN_EXE_claw-ebpf"), &copy).unwrap();
    let mut copied = Command::new(copy);
    copied.args(["watch", "--pid", "1", "-q"]);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        copied.pre_exec(|| {
            libc::setgroups(0, std::ptr::null());
            if libc::setgid(65534) != 0 || libc::setuid(65534) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        })
    };
    let out = copied.output().unwrap();
    assert_eq!(out.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&out.stderr).contains("run with sudo"));
}

#[test]
#[ignore = "needs root and BPF"]
fn ctrl_c_at_any_moment_ends_cleanly() {
    let program = build_default("patterns", &[]);
    let p = Running::start(Command::new(program).args(["-do", "leak,short"]));
    let pid = p.pid().to_string();
    for ms in [5, 50, 200, 400, 700, 1500] {
        let mut watch = claw(&["watch", "--pid", &pid, "-q", "--format", "json"]);
        watch.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        // SAFETY: only an async-signal-safe call between fork and exec. A
        // caller in the background may have it ignored.
        unsafe {
            watch.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            })
        };
        let mut child = watch.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        // SAFETY: the child is ours and not reaped yet.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
        let status = child.wait().unwrap();
        // Killed before it could listen, or not enough evidence.
        let signalled = std::os::unix::process::ExitStatusExt::signal(&status);
        assert!(
            signalled == Some(libc::SIGINT) || status.code() == Some(3),
            "after {ms} ms: {status}"
        );
    }
    let alive = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(!alive.contains("zombie"), "the target is unharmed");
}

#[test]
#[ignore = "needs root and BPF"]
fn full_disk_ends_the_recording_not_the_watch() {
    let program = build_default("patterns", &[]);
    let p = Running::start(Command::new(program).args(["-do", "leak"]));
    let pid = p.pid().to_string();
    let out = claw(&[
        "watch",
        "--pid",
        &pid,
        "-q",
        "--duration",
        "3s",
        "--interval",
        "1s",
        "--format",
        "json",
        "--record",
        "/dev/full",
    ])
    .output()
    .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(stderr.contains("No space left on device"), "{stderr}");
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["targets"][0]["events"]["received"].as_u64().unwrap() > 0);
}
