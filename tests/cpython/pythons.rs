//! The Pythons on this machine, and programs run by them.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

pub use crate::interpreters::{all, free_threaded};
use claw_ebpf::target::{cpython::binary::Python, memory::ProcessMemory, process::Process};

/// Where the headers of a Python are; `None`, and said, when it has none.
pub fn headers(python: &Path) -> Option<String> {
    let code = "import sysconfig; print(sysconfig.get_path('include'))";
    let out = Command::new(python).args(["-c", code]).output().unwrap();
    let include = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    if Path::new(&include).join("Python.h").is_file() {
        return Some(include);
    }
    eprintln!("skipped: {} has no headers in {include}", python.display());
    None
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/python").join(name)
}

/// A program that is killed when the test is over.
pub struct Running {
    pub child: Child,
    pub out: BufReader<ChildStdout>,
}

impl Running {
    pub fn start(python: &Path, script: &str) -> Self {
        Self::of(Command::new(python).arg(fixture(script)).stdout(Stdio::piped()))
    }

    /// A program whose output is piped.
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    pub fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}"))
    }

    /// The last line that the program says before it waits. Returns when all its
    /// threads sleep: on a loaded machine it would be read halfway from the one
    /// to the other, and what lives in between counted.
    pub fn ready(&mut self) -> serde_json::Value {
        let said = self.line();
        let pid = self.child.id();
        for _ in 0..3000 {
            if asleep(pid) {
                return said;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("process {pid} said {said}, but does not come to rest");
    }

    pub fn open(&self) -> (Python, ProcessMemory) {
        let process = Process::open(self.child.id()).unwrap();
        (Python::of(&process).unwrap(), ProcessMemory::open(process.pid).unwrap())
    }
}

/// Whether every thread of the process sleeps, by `/proc/PID/task/TID/stat`.
fn asleep(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The name before the state may hold anything.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
