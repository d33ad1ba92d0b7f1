//! Scripts that a process runs on request (PEP 768).

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use claw_ebpf::{
    heap::{self, By, Source},
    target::{
        cpython::{live::LivePython, remote::RemoteError},
        process::Process,
    },
};

use crate::pythons::{Running, all, fixture};

const WITHIN: Duration = Duration::from_secs(30);

fn start(python: &Path, how: &str, environment: &[(&str, &str)]) -> (Running, LivePython) {
    let mut command = Command::new(python);
    command.arg(fixture("garbage.py")).arg(how).stdout(Stdio::piped());
    command.envs(environment.iter().copied());
    let mut running = Running::of(&mut command);
    assert_eq!(running.ready(), "ready");
    let live = LivePython::open(Process::open(running.child.id()).unwrap()).unwrap();
    (running, live)
}

fn cycles(pid: u32) -> i64 {
    let found = heap::read(&Source::Process(pid), By::Type, None).unwrap();
    let of = found.samples.iter().filter(|s| s.type_name.as_deref() == Some("__main__.Cycle"));
    of.map(|s| s.values.inuse_objects).sum()
}

/// What a request left in the process's `/tmp`.
fn left(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/root/tmp")).unwrap().flatten();
    files.filter(|f| f.file_name().to_string_lossy().starts_with("claw-ebpf-")).count()
}

#[test]
fn garbage_is_collected_where_that_is_allowed() {
    for python in all() {
        let at = python.display();
        let (running, live) = start(&python, "busy", &[]);
        let pid = running.child.id();
        assert_eq!(cycles(pid), 5_000, "{at}");
        if live.python.version.minor < 14 {
            let why = live.collect(WITHIN).unwrap_err();
            assert!(matches!(why, RemoteError::Version(_)), "{at}: {why}");
            assert_eq!(cycles(pid), 5_000, "{at}");
            continue;
        }
        let before = left(pid);
        let (found, _) = live.collect(WITHIN).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert!(found >= 5_000, "{at}: {found}");
        assert_eq!(cycles(pid), 0, "{at}");
        assert!(left(pid) <= before, "{at}: its files are gone");
        // What a script does wrong is said, and the process goes on.
        let why = live.run("answer = str(1 / 0)", WITHIN).unwrap_err().to_string();
        assert!(why.contains("ZeroDivisionError"), "{at}: {why}");
        assert_eq!(live.run("answer = '3'", WITHIN).unwrap().answer, "3", "{at}");

        let found = heap::tracemalloc(pid, Duration::from_millis(300)).unwrap();
        assert!(found.blocked[0].why.contains("off again"), "{at}: {:?}", found.blocked);
        assert!(found.samples.iter().all(|s| s.stack.len() == 1), "{at}");
        let asked = "import tracemalloc\nanswer = str(tracemalloc.is_tracing())";
        assert_eq!(live.run(asked, WITHIN).unwrap().answer, "False", "{at}");

        let forbidden = [("PYTHON_DISABLE_REMOTE_DEBUG", "1")];
        let (running, live) = start(&python, "busy", &forbidden);
        let why = live.collect(WITHIN).unwrap_err();
        assert!(matches!(why, RemoteError::Forbidden), "{at}: {why}");
        assert_eq!(cycles(running.child.id()), 5_000, "{at}");

        // One that waits runs nothing, also when it wakes up later.
        let (mut running, live) = start(&python, "idle", &[]);
        let why = live.collect(WITHIN).unwrap_err();
        assert!(matches!(why, RemoteError::Idle(_)), "{at}: {why}");
        let pid = running.child.id();
        // SAFETY: kill(2) of our own child, which was not waited for.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGUSR1) };
        assert_eq!(running.ready(), "awake", "{at}");
        assert_eq!(cycles(pid), 5_000, "{at}");
    }
}
