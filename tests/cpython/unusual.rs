//! What is no plain interpreter: others within it, one that shuts down, one
//! inside another program, versions that are not known. Each is read, or
//! refused in words.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use claw_ebpf::{
    heap::{self, By, Source},
    target::{cpython::live::LivePython, process::Process},
};

use crate::pythons::{Running, all, fixture, free_threaded};

fn start(python: &Path, how: &str) -> Running {
    let mut command = Command::new(python);
    let mut running =
        Running::of(command.arg(fixture("unusual.py")).arg(how).stdout(Stdio::piped()));
    assert_eq!(running.ready(), "ready");
    running
}

fn objects(pid: u32, name: &str) -> i64 {
    let found = heap::read(&Source::Process(pid), By::Type, None).unwrap();
    let of = found.samples.iter().filter(|s| s.type_name.as_deref() == Some(name));
    of.map(|s| s.values.inuse_objects).sum()
}

#[test]
fn objects_of_all_interpreters_are_counted() {
    for python in all() {
        let running = start(&python, "interpreters");
        let pid = running.child.id();
        // In 3.14 and later a freed block in each may still look like one.
        let inner = objects(pid, "__main__.Inner");
        assert!((6000..=6002).contains(&inner), "{}: {inner}", python.display());
        assert_eq!(objects(pid, "__main__.Kept"), 5000, "{}", python.display());
        let live = LivePython::open(Process::open(pid).unwrap()).unwrap();
        assert_eq!(live.interpreters(), 3, "{}", python.display());
        let held = live.holders(Duration::from_secs(60), &|name| name == "__main__.Inner").unwrap();
        let of = &held.found.types[0];
        assert_eq!(of.paths[0].root, "__main__.kept", "{}: {of:#?}", python.display());
    }
}

#[test]
fn an_interpreter_that_shuts_down_is_read() {
    for python in all() {
        let running = start(&python, "shutdown");
        let pid = running.child.id();
        assert_eq!(objects(pid, "__main__.Kept"), 5000, "{}", python.display());
        let live = LivePython::open(Process::open(pid).unwrap()).unwrap();
        assert!(!live.threads(&[]).unwrap().all.is_empty());
    }
}

const EMBEDDED: &str = r#"
#include <Python.h>
#include <unistd.h>
int main(int argc, char **argv) {
    Py_Initialize();
    PyRun_SimpleString("class Kept: pass\nKEPT = [Kept() for _ in range(5000)]");
    if (argc > 1) Py_Finalize();
    if (write(1, "\"ready\"\n", 8) != 8) return 1;
    sleep(1000);
}
"#;

/// A Python whose library other programs can link, with what that takes.
fn library(python: &Path) -> Option<Vec<String>> {
    let code = "import sysconfig as s; g = s.get_config_var; print(s.get_path('include'), \
                g('LIBDIR'), g('LDVERSION'), g('Py_ENABLE_SHARED') or 0, sep='\\n')";
    let out = Command::new(python).args(["-c", code]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let [include, lib, version, _shared] = text.lines().collect::<Vec<_>>()[..] else {
        return None;
    };
    let exists = |ext: &str| Path::new(lib).join(format!("libpython{version}.{ext}")).exists();
    let linked = exists("so") && Path::new(include).join("Python.h").exists();
    linked.then(|| {
        let flag = |f: &str, v: &str| format!("{f}{v}");
        vec![
            flag("-I", include),
            flag("-L", lib),
            flag("-lpython", version),
            flag("-Wl,-rpath,", lib),
        ]
    })
}

#[test]
fn an_interpreter_inside_another_program_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("embedded.c");
    std::fs::write(&source, EMBEDDED).unwrap();
    let mut checked = 0;
    for python in all() {
        let Some(flags) = library(&python) else { continue };
        let program = dir.path().join(format!("embedded{checked}"));
        let out =
            Command::new("cc").arg(&source).args(&flags).arg("-o").arg(&program).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let home = python.parent().unwrap().parent().unwrap();
        for (arguments, kept) in [(&[][..], 5000), (&["finalize"], 0)] {
            let mut command = Command::new(&program);
            command.args(arguments).env("PYTHONHOME", home).stdout(Stdio::piped());
            let mut running = Running::of(&mut command);
            assert_eq!(running.ready(), "ready");
            let pid = running.child.id();
            assert_eq!(objects(pid, "__main__.Kept"), kept, "{} {arguments:?}", python.display());
            let live = LivePython::open(Process::open(pid).unwrap()).unwrap();
            let threads = live.threads(&[]).unwrap();
            assert_eq!(threads.all, [], "no Python function runs");
        }
        checked += 1;
    }
    if checked == 0 {
        eprintln!("skipped: no Python has a shared library and headers");
    }
}

/// Interpreters that are not known, and a program that is none.
#[test]
fn others_are_refused_in_words() {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let versions = std::fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten().flatten();
    let sleep =
        "import time; print('\"ready\"'); __import__('sys').stdout.flush(); time.sleep(1000)";
    let older = versions.filter_map(|version| {
        let expected = match version.file_name().to_str()? {
            n if n.starts_with("2.") || n.starts_with("3.6.") => "CPython 3.6 or older",
            n if n.starts_with("3.7.") => "layouts of CPython 3.7",
            _ => return None,
        };
        Some((version.path().join("bin/python"), expected))
    });
    let free_threaded = free_threaded().into_iter().map(|python| (python, "a free-threaded build"));
    let mut checked = 0;
    for (python, expected) in older.chain(free_threaded) {
        let name = python.display();
        let mut command = Command::new(&python);
        let mut running = Running::of(command.args(["-c", sleep]).stdout(Stdio::piped()));
        assert_eq!(running.ready(), "ready");
        let error = heap::read(&Source::Process(running.child.id()), By::Type, None).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{name}: {error}");
        checked += 1;
    }
    if checked == 0 {
        eprintln!("skipped: no Python that is not known is installed");
    }
    // A shell that calls itself Python.
    let mut command = Command::new("/bin/sh");
    command.arg0("python3.11").args(["-c", "echo '\"ready\"'; read x"]);
    let mut running = Running::of(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
    assert_eq!(running.ready(), "ready");
    let error = heap::read(&Source::Process(running.child.id()), By::Type, None).unwrap_err();
    assert!(error.to_string().contains("neither a Go nor a CPython program"), "{error}");
}
