//! The Pythons on this machine, and programs run by them.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use claw_ebpf::target::{cpython::binary::Python, memory::ProcessMemory, process::Process};

/// Interpreters of 3.14 and later, of which objects alone are known. Those that
/// do not lie in the usual places are named by `CLAW_PYTHONS`, separated by `:`.
pub fn newest() -> Vec<PathBuf> {
    let named = std::env::var_os("CLAW_PYTHONS").unwrap_or_default();
    // Nothing is split into one empty path.
    let given = |p: &PathBuf| !p.as_os_str().is_empty();
    let mut found: Vec<PathBuf> = std::env::split_paths(&named).filter(given).collect();
    found.extend(installed(14..=15));
    if found.is_empty() {
        eprintln!("skipped: neither Python 3.14 nor 3.15 is installed or named by CLAW_PYTHONS");
    }
    found
}

/// Interpreters of pyenv and of the system, by minor version.
pub fn all() -> Vec<PathBuf> {
    let found = installed(8..=13);
    assert!(!found.is_empty(), "no Python 3.8 to 3.13 is installed");
    found
}

fn installed(minors: std::ops::RangeInclusive<u8>) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let installed = std::fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten();
    let mut found: Vec<PathBuf> = minors
        .clone()
        .flat_map(|minor| {
            let name = format!("python3.{minor}");
            [PathBuf::from("/usr/bin").join(&name), PathBuf::from("/usr/local/bin").join(&name)]
        })
        .collect();
    for version in installed.flatten() {
        let bin = version.path().join("bin");
        found.extend(minors.clone().map(|minor| bin.join(format!("python3.{minor}"))));
    }
    found.retain(|p| p.is_file());
    found.sort();
    found
}

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

    pub fn open(&self) -> (Python, ProcessMemory) {
        let process = Process::open(self.child.id()).unwrap();
        (Python::of(&process).unwrap(), ProcessMemory::open(process.pid).unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
