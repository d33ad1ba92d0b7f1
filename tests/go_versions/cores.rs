//! Core dumps, the kernel's and gdb's, say what the live process says.

use std::{path::Path, process::Command};

use claw_ebpf::{
    heap::{By, Source},
    target::core::go::GoCore,
};

use crate::{common::*, dumps::*, heap::*};

/// Versions that stand for the others: the oldest, the first with what 1.26
/// changed in binaries, the newest.
const SOME: [&str; 3] = ["1.19", "1.26.6", "1.27.3"];

fn check(core: &Path, program: &Path, own: &Path, what: &str) {
    let source =
        |exe: Option<&Path>| Source::Core { path: core.to_owned(), exe: exe.map(Path::to_owned) };
    let found = read(&source(None));
    assert!(found.blocked.is_empty(), "{what}: {:?}", found.blocked);
    assert_equal(&found, own, what);
    assert_equal(&read(&source(Some(program))), own, what);
}

#[test]
fn dumps_of_gdb() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.pb.gz");
    for version in SOME {
        for flags in [&[][..], &["-buildmode=pie", "-ldflags=-s -w"]] {
            let Some(program) = build(version, "symbols", flags) else { continue };
            let what = format!("gcore, Go {version} {flags:?}");
            let p = held(&program, &own, 512, &[]);
            let core = gcore(p.pid(), dir.path());
            check(&core, &program, &own, &what);
            // Threads are there with their places in the code.
            let opened = GoCore::open(&core, None).unwrap();
            assert!(opened.core.notes.threads.len() > 2, "{what}");
            assert_eq!(opened.core.notes.pid, Some(p.pid()), "{what}");
        }
    }
}

#[test]
fn dumps_of_the_kernel() {
    if !kernel_dumps_to_files() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.pb.gz");
    for version in SOME {
        for flags in [&[][..], &["-buildmode=pie", "-ldflags=-s -w"]] {
            let Some(program) = build(version, "symbols", flags) else { continue };
            let what = format!("kernel dump, Go {version} {flags:?}");
            let mut command = Command::new(&program);
            command.arg("-hold").arg(&own).arg("-rate=512");
            command.env("GODEBUG", "memprofilerate=512");
            let mut p = Running::start(dumps_core(&mut command, dir.path()));
            assert_eq!(p.first_line, "ready\n");
            let core = crash(&mut p.child, libc::SIGQUIT, dir.path());
            check(&core, &program, &own, &what);
            std::fs::remove_file(core).unwrap();
        }
    }
}

/// Another build of the same program is refused, as is a dump whose end is
/// missing where it matters; nothing is made up.
#[test]
fn what_does_not_belong_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.pb.gz");
    let program = build_default("symbols", &[]);
    let other = build_default("symbols", &["-ldflags=-s -w"]);
    let p = held(&program, &own, 512, &[]);
    let core = gcore(p.pid(), dir.path());
    drop(p);
    let error = GoCore::open(&core, Some(&other)).unwrap_err().to_string();
    assert!(error.contains("is not the executable") && error.contains("--exe"), "{error}");
    let error = GoCore::open(&core, Some(&own)).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");

    let whole = std::fs::read(&core).unwrap();
    let cut = dir.path().join("cut");
    let mut refused = 0;
    for part in 1..8 {
        std::fs::write(&cut, &whole[..whole.len() / 8 * part]).unwrap();
        let source = Source::Core { path: cut.clone(), exe: None };
        match claw_ebpf::heap::read(&source, By::Site, None) {
            Ok(found) => {
                assert!(found.blocked.iter().any(|b| b.why.contains("cut")), "{:?}", found.blocked);
                assert_equal(&found, &own, "a dump that is cut behind the profile");
            }
            Err(e) => {
                refused += 1;
                let e = e.to_string();
                assert!(e.contains("cut") || e.contains("does not"), "{e}");
            }
        }
    }
    assert!(refused > 0);
}
