//! A program that lies about its goroutines: whatever it says, the answer comes
//! in bounded time and memory, or one line says why there is none.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use claw_ebpf::target::go::{binary::GoBinary, layout::GoLayout};

use crate::common::*;

/// Address space that the reader gets, bytes; a million honest goroutines take
/// it a sixth of that.
const MOST_MEMORY: u64 = 3 << 30;
/// A hundred times what it takes on an idle machine.
const LONG: Duration = Duration::from_secs(300);

/// What is read from a program that tells `lie` about `many` goroutines; `Err`
/// when it was refused.
fn told(version: &str, lie: &str, many: u32) -> Option<Result<String, String>> {
    let program = build(version, "pretend", &[])?;
    let layout = GoLayout::of(&GoBinary::open(&program).unwrap().version).unwrap();
    let number = |n: u32| n.to_string();
    let mut pretend = Command::new(&program);
    pretend.args([
        "-do",
        lie,
        "-many",
        &number(many),
        "-goid",
        &number(layout.g_goid),
        "-labels",
        &number(layout.g_labels),
    ]);
    let p = Running::start(pretend.stdin(Stdio::piped()));
    assert_eq!(p.first_line, "ready\n", "{version} {lie}");
    let mut reader = claw(&["goroutines", "--pid", &p.pid().to_string(), "--top", "1"]);
    // SAFETY: setrlimit is async-signal-safe and touches only its argument.
    unsafe {
        reader.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: MOST_MEMORY, rlim_max: MOST_MEMORY };
            libc::setrlimit(libc::RLIMIT_AS, &limit);
            Ok(())
        })
    };
    let began = Instant::now();
    let out = reader.output().unwrap();
    assert!(began.elapsed() < LONG, "{version} {lie}: {:?}", began.elapsed());
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    Some(match out.status.code() {
        Some(0) => Ok(String::from_utf8(out.stdout).unwrap()),
        Some(2) if stderr.lines().count() == 1 => Err(stderr),
        code => panic!("{version} {lie}: {code:?}: {stderr}"),
    })
}

#[track_caller]
fn assert_says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "no {line} in {text:.2000}");
    }
}

#[test]
fn a_length_beyond_all_memory() {
    for version in ["1.22.10", "1.27.3"] {
        let Some(read) = told(version, "length", 1) else { continue };
        assert_says(&read.unwrap_err(), &[&format!("{} goroutine slots are more", 1u64 << 60)]);
    }
}

#[test]
fn a_million_slots_of_one_goroutine() {
    let read = told("1.26.6", "slots", 1_000_000).unwrap().unwrap();
    assert_says(&read, &["1 goroutines in 1 groups", "999999 slots held no goroutine"]);
}

/// Pointers into nowhere, stacks of gigabytes, labels that lead to themselves:
/// none of it is shown as fact, all of it is counted.
#[test]
fn goroutines_with_wild_pointers() {
    let read = told("1.22.10", "wild", 200_000).unwrap().unwrap();
    let counted = [
        "160000 goroutines in",
        "40000 slots held no goroutine",
        "40000 changed whenever they were read",
        "120000 have stacks that could not be followed",
    ];
    assert_says(&read, &counted);
    assert!(read.contains("labels"), "those that lead to themselves: {read:.2000}");
}

/// A stack of 20 000 frames for each of a million goroutines.
#[test]
fn a_million_goroutines_with_deep_stacks() {
    let read = told("1.27.3", "deep", 1_000_000).unwrap().unwrap();
    let counted = ["1000000 goroutines in", "1000000 have stacks that could not be followed"];
    assert_says(&read, &counted);
}

/// What it says is something else each time it is looked at.
#[test]
fn a_program_that_changes_under_the_reader() {
    let mut read = 0;
    for _ in 0..6 {
        read += usize::from(told("1.26.6", "changing", 20_000).unwrap().is_ok());
    }
    assert!(read > 0, "it tells a sound length most of the time");
}
