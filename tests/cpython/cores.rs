//! Core dumps, gdb's and the kernel's, say what the live process says.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use claw_ebpf::heap::{self, By, HeapError, Snapshot, Source};

use crate::{
    dumps::{crash, dumps_core, gcore, kernel_dumps_to_files},
    pythons::{Running, all, fixture},
};

/// Objects and bytes by type.
type Counts = BTreeMap<String, (i64, i64)>;

fn counts(s: &Snapshot) -> Counts {
    let values = |v: &heap::Values| (v.inuse_objects, v.inuse_space);
    s.samples.iter().map(|s| (s.type_name.clone().unwrap(), values(&s.values))).collect()
}

fn of_core(core: &Path, exe: Option<&Path>, holders: bool) -> Result<Snapshot, HeapError> {
    let source = Source::Core { path: core.to_owned(), exe: exe.map(Path::to_owned) };
    heap::read(&source, By::Type, holders.then_some(Duration::ZERO))
}

fn started(python: &Path) -> (Running, Counts) {
    let mut running = Running::start(python, "census.py");
    let _ = (running.line(), running.ready());
    let live = heap::read(&Source::Process(running.child.id()), By::Type, None).unwrap();
    assert!(counts(&live)["__main__.Plain"].0 == 20_000);
    (running, counts(&live))
}

#[test]
fn dumps_of_gdb() {
    for python in all() {
        let at = python.display();
        let dir = tempfile::tempdir().unwrap();
        let (running, live) = started(&python);
        let core = gcore(running.child.id(), dir.path());
        let found = of_core(&core, None, true).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(counts(&found), live, "{at}");
        assert_eq!(found.pid, Some(running.child.id()));
        // Nothing is amiss but what a dump cannot say.
        let said: Vec<&str> = found.blocked.iter().map(|b| b.what.as_str()).collect();
        assert_eq!(said, ["large blocks"], "{at}: {:?}", found.blocked);
        let plain = found.holders.iter().find(|t| t.type_name == "__main__.Plain").unwrap();
        assert_eq!((plain.objects, &*plain.paths[0].root), (20_000, "__main__.CACHE"), "{at}");

        // The executable may lie elsewhere.
        let copy = dir.path().join("copy of python");
        let exe = format!("/proc/{}/exe", running.child.id());
        std::fs::copy(exe, &copy).unwrap();
        let found = of_core(&core, Some(&copy), false).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(counts(&found), live, "{at}");
    }
}

#[test]
fn dumps_of_the_kernel() {
    if !kernel_dumps_to_files() {
        return;
    }
    for python in all() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(&python);
        command.arg(fixture("census.py")).stdout(Stdio::piped());
        let mut running = Running::of(dumps_core(&mut command, dir.path()));
        let _ = (running.line(), running.ready());
        let pid = running.child.id();
        let live = counts(&heap::read(&Source::Process(pid), By::Type, None).unwrap());
        let core = crash(&mut running.child, libc::SIGABRT, dir.path());
        let found = of_core(&core, None, false).unwrap_or_else(|e| panic!("{python:?}: {e}"));
        assert_eq!(counts(&found), live, "{}", python.display());
    }
}

/// Of an interpreter that is linked statically, and of one that is not.
#[test]
fn a_dump_that_is_cut_says_so() {
    let mut refused = 0;
    for python in all().into_iter().rev().take(2) {
        let dir = tempfile::tempdir().unwrap();
        let (running, live) = started(&python);
        let core = gcore(running.child.id(), dir.path());
        drop(running);
        let length = core.metadata().unwrap().len();
        let file = OpenOptions::new().write(true).open(&core).unwrap();
        let coarse = (1..40).map(|i| length / 40 * i + i * 61);
        let fine = (0..40).map(|i| i * 251);
        let mut cuts: Vec<u64> = coarse.chain(fine).collect();
        cuts.sort_unstable_by(|a, b| b.cmp(a));
        for cut in cuts {
            file.set_len(cut).unwrap();
            match of_core(&core, None, cut % 2 == 0) {
                Ok(found) => {
                    let why = found.blocked.iter().find(|b| b.why.contains("cut"));
                    assert!(why.is_some(), "{cut}: {:?}", found.blocked);
                    for (name, (objects, _)) in counts(&found) {
                        let most = live.get(&name).map_or(0, |(n, _)| *n);
                        assert!(objects <= most, "{cut}: {name}: {objects} {most}");
                    }
                }
                Err(e) => {
                    refused += 1;
                    let e = e.to_string();
                    let said = ["cut", "no ELF header", "which program"];
                    assert!(said.iter().any(|s| e.contains(s)) && !e.contains('\n'), "{cut}: {e}");
                }
            }
        }
    }
    assert!(refused > 40, "{refused}");
}

#[test]
fn what_does_not_belong_together_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
    let core = gcore(other.id(), dir.path());
    let _ = other.kill();
    let _ = other.wait();
    let python = all().remove(0);
    let error = |core: &Path, exe: Option<&Path>| {
        let e = of_core(core, exe, false).unwrap_err().to_string();
        assert!(!e.contains('\n'), "{e}");
        e
    };
    let e = error(&core, None);
    assert!(e.contains("sleep") && e.contains("neither a Go nor a CPython program"), "{e}");
    let e = error(&core, Some(&python));
    assert!(e.contains("is not the executable that made core"), "{e}");
    let (running, _) = started(&python);
    let core = gcore(running.child.id(), dir.path());
    let e = error(&core, Some(Path::new("/usr/bin/sleep")));
    assert!(e.contains("sleep is not the executable that made core"), "{e}");
    let e = error(&core, Some(dir.path()));
    assert!(e.contains("not a regular file"), "{e}");
    let e = error(&python, None);
    assert!(e.contains("is not a core dump"), "{e}");
}
