//! What bad input gets: one line, the right exit code, the target unharmed.

use std::{
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use claw_ebpf::target::{
    elf::Elf,
    go::{binary::GoBinary, rate, variables::MEM_PROFILE_RATE},
    memory::{Memory, ProcessMemory},
};

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
    fails(
        &["watch", "--pid", &sleep.pid().to_string(), "-q"],
        2,
        "neither a Go nor a CPython program",
    );
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

/// A copy of a fixture's program with `edit` made to its bytes; it runs as
/// before, since the runtime does not read what is edited.
fn edited(dir: &Path, edit: impl Fn(&mut [u8], &Elf)) -> Running {
    let program = build_default("patterns", &[]);
    let mut bytes = std::fs::read(&program).unwrap();
    edit(&mut bytes, &Elf::open(&program).unwrap());
    let copy = dir.join("edited");
    std::fs::write(&copy, bytes).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    Running::start(Command::new(copy).args(["-do", "leak"]))
}

#[test]
#[ignore = "needs root and BPF"]
fn binaries_that_cannot_be_understood() {
    let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let refused = |p: &Running, message: &str| {
        fails(&["watch", "--pid", &p.pid().to_string(), "-q"], 2, message);
    };
    // The offset of the function table in the pclntab's header.
    let corrupt = edited(dirs[0].path(), |bytes, elf| {
        let at = elf.section(".gopclntab").unwrap().offset as usize + 64;
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    });
    refused(&corrupt, "the Go symbol table (pclntab) is damaged");
    let newer = edited(dirs[1].path(), |bytes, elf| {
        let at = elf.section(".go.buildinfo").unwrap().offset as usize + 33;
        assert_eq!(&bytes[at..at + 8], b"go1.26.6");
        bytes[at..at + 8].copy_from_slice(b"go1.99.6");
    });
    refused(&newer, "heap, goroutines and tenants cannot be read: no layout row for go1.99.6");
    let damaged = edited(dirs[2].path(), |bytes, elf| {
        let at = elf.section(".go.buildinfo").unwrap().offset as usize + 32;
        bytes[at] = 0xff;
        bytes[at + 1..at + 9].fill(0xff);
    });
    refused(&damaged, "Go build information is damaged");
}

#[test]
#[ignore = "needs root and BPF"]
fn binary_that_cannot_be_read() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let copy = dir.path().join("unreadable");
    std::fs::copy(build_default("patterns", &[]), &copy).unwrap();
    // To run and not to read, for all but its owner.
    std::os::unix::fs::chown(&copy, Some(65534), Some(65534)).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o111)).unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let p = Running::start(Command::new(&copy).args(["-do", "leak"]));
    let pid = p.pid().to_string();
    for (verb, code, message) in [
        ("watch", 3, "CAP_DAC_READ_SEARCH is missing"),
        ("heap", 2, "cannot read the binary: Permission denied (os error 13): run with sudo"),
        ("goroutines", 2, "cannot read the binary: Permission denied (os error 13): run with sudo"),
    ] {
        let out = Command::new("setpriv")
            .args(["--bounding-set", "-dac_override,-dac_read_search"])
            .args([env!("CARGO_BIN_EXE_claw-ebpf"), verb, "--pid", &pid])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{verb}: {stderr}");
        assert!(stderr.contains(message) && stderr.lines().count() == 1, "{verb}: {stderr}");
    }
}

#[test]
#[ignore = "needs root and BPF"]
fn kernel_without_uprobes() {
    let script = "mount -t tmpfs none /sys/bus/event_source/devices && exec \"$@\"";
    let out = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_claw-ebpf")])
        .args(["watch", "--pid", "1", "-q"])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("CONFIG_UPROBE_EVENTS") && stderr.trim().lines().count() == 1);
}

#[test]
#[ignore = "needs root and BPF"]
fn target_that_goes_while_it_is_attached_to() {
    let program = build_default("patterns", &[]);
    for ms in [0, 20, 60, 150, 300, 450, 600, 900] {
        let p = Running::start(Command::new(&program).args(["-do", "leak"]));
        let mut watch = claw(&["watch", "--pid", &p.pid().to_string(), "-q", "--format", "json"]);
        watch.stdout(Stdio::null()).stderr(Stdio::piped());
        let watch = watch.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        drop(p);
        let out = watch.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        // Gone before it was attached to, or with too little seen.
        assert!(matches!(out.status.code(), Some(2 | 3)), "{ms} ms: {:?} {stderr}", out.status);
        let lines = if out.status.code() == Some(2) { 1 } else { 0 };
        assert_eq!(stderr.trim().lines().count(), lines, "{ms} ms: {stderr}");
    }
}

#[test]
#[ignore = "needs root and BPF"]
fn full_ring_is_counted_and_shown() {
    let program = build_default("patterns", &[]);
    let p = Running::start(Command::new(program).args(["-do", "labels", "-churn", "1000"]));
    let mut watch = claw(&["watch", "--pid", &p.pid().to_string(), "--ring-size", "64KiB"]);
    watch.args(["--max-overhead", "100%", "--format", "jsonl", "-q"]).stdout(Stdio::piped());
    let mut watch = Running::from(watch.spawn().unwrap());
    let lines = BufReader::new(watch.child.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|l| serde_json::from_str::<serde_json::Value>(&l.unwrap()).unwrap());
    lines.find(|l| l["event"] == "target").expect("a target");
    // Nobody reads the ring for as long as the agent stands still.
    let signal = |signal| {
        // SAFETY: the child is ours and not reaped yet.
        unsafe { libc::kill(watch.pid() as i32, signal) };
        std::thread::sleep(Duration::from_secs(2));
    };
    signal(libc::SIGSTOP);
    signal(libc::SIGCONT);
    signal(libc::SIGTERM);
    let report = lines.find(|l| l["event"] == "report").expect("a report");
    let lost = report["targets"][0]["events"]["lost"]["ring_full"].as_u64().unwrap();
    assert!(lost > 100, "{report:#}");
    assert!(report["summary"]["lost_events"].as_u64().unwrap() >= lost);
    let why = report["summary"]["why_not_enough"].as_str().unwrap();
    assert!(why.contains("of the events"), "{why}");
}

/// Code of the target as it is in memory and in its file.
fn code_is_as_in_the_file(pid: u32, elf: &Elf) {
    let memory = ProcessMemory::open(pid).unwrap();
    for s in elf.segments.iter().filter(|s| s.executable) {
        let [mut file, mut now] = [(); 2].map(|()| vec![0; s.file_size as usize]);
        elf.read_offset(s.offset, &mut file).unwrap();
        memory.read(s.vaddr, &mut now).unwrap();
        let differs = file.iter().zip(&now).position(|(a, b)| a != b);
        assert!(
            differs.is_none(),
            "a breakpoint is left at {:#x}",
            s.vaddr + differs.unwrap() as u64
        );
    }
}

#[test]
#[ignore = "needs root and BPF"]
fn ctrl_c_at_any_moment_ends_cleanly() {
    let program = build_default("quiet", &[]);
    let binary = GoBinary::open(&program).unwrap();
    let rate_at = MEM_PROFILE_RATE.find(&binary).unwrap();
    let mut p = Running::start(&mut Command::new(program));
    let (pid, rate) = (p.pid(), || {
        rate::current(p.pid(), &ProcessMemory::open(p.pid()).unwrap(), rate_at).unwrap()
    });
    assert_eq!(rate(), 0);
    // At last, surely after the change, however slow the machine is.
    const WHEN_CHANGED: u64 = 30_000;
    for ms in [3, 30, 100, 200, 300, 400, 450, 500, 550, 600, 700, 900, 1300, WHEN_CHANGED] {
        let mut watch = claw(&["watch", "--pid", &pid.to_string(), "-q", "--format", "json"]);
        watch.args(["--heap-rate", "64KiB"]).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: only an async-signal-safe call between fork and exec. A
        // caller in the background may have it ignored.
        unsafe {
            watch.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            })
        };
        let mut child = watch.spawn().unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(ms)
            && (ms != WHEN_CHANGED || rate() != 64 << 10)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(ms != WHEN_CHANGED || rate() == 64 << 10, "the rate was never changed");
        // SAFETY: the child is ours and not reaped yet.
        unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
        let status = child.wait().unwrap();
        // Killed before it could listen, or not enough evidence.
        let signalled = std::os::unix::process::ExitStatusExt::signal(&status);
        assert!(
            signalled == Some(libc::SIGINT) || status.code() == Some(3),
            "after {ms} ms: {status}"
        );
        assert_eq!(rate(), 0, "after {ms} ms: the old rate is not back");
        code_is_as_in_the_file(pid, binary.elf());
    }
    assert!(p.child.try_wait().unwrap().is_none(), "the target is unharmed");
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
