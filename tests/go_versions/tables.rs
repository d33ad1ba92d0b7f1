//! What stripping removes is found all the same.

use claw_ebpf::{
    probe::Plan,
    target::go::{
        binary::GoBinary,
        variables::{ALLGS, MBUCKETS, MEM_PROFILE_RATE, MPROF_CYCLE},
    },
};

use crate::common::*;

/// Variables by pattern, where the symbol table says what is right.
#[test]
fn patterns_find_what_the_symbol_table_names() {
    for version in VERSIONS {
        for flags in [&[][..], &["-buildmode=pie"]] {
            let Some(path) = build(version, "patterns", flags) else { continue };
            let binary = GoBinary::open(&path).unwrap();
            assert!(!binary.stripped(), "Go {version}");
            for variable in [ALLGS, MEM_PROFILE_RATE, MBUCKETS, MPROF_CYCLE] {
                let symbol = binary.elf().symbols(&[variable.name])[0].unwrap();
                let pattern = variable.by_pattern(&binary);
                assert_eq!(pattern, Ok(symbol), "Go {version} {flags:?} {}", variable.name);
            }
        }
    }
}

/// Code that is not as known is refused by name, not read by guess.
#[test]
fn a_pattern_that_does_not_match_is_named() {
    let Some(path) = build("1.26.6", "patterns", &["-buildmode=pie", "-ldflags=-s -w"]) else {
        return;
    };
    let binary = GoBinary::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other");
    for (variable, function) in [
        (MBUCKETS, "runtime.mProf_FlushLocked"),
        (MPROF_CYCLE, "runtime.mProf_Flush"),
        (MEM_PROFILE_RATE, "runtime.profilealloc"),
        (ALLGS, "runtime.allgadd"),
    ] {
        let range = binary.function(function).unwrap();
        let at = binary.file_offset(range.entry).unwrap() as usize;
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at..at + (range.end - range.entry) as usize].fill(0x90);
        std::fs::write(&file, bytes).unwrap();
        let error = variable.find(&GoBinary::open(&file).unwrap()).unwrap_err().to_string();
        for part in [variable.name, function, "RIP-relative"] {
            assert!(error.contains(part), "no {part} in: {error}");
        }
    }
}

#[test]
fn plan_is_complete_and_at_cheap_instructions() {
    for version in VERSIONS {
        for flags in [&[][..], &["-ldflags=-s -w"], &["-buildmode=pie", "-ldflags=-s -w"]] {
            let Some(path) = build(version, "patterns", flags) else { continue };
            let plan = Plan::sampled(&GoBinary::open(&path).unwrap());
            assert_eq!(plan.blocked, [], "Go {version} {flags:?}");
            assert_eq!(plan.points.len(), 5, "Go {version} {flags:?}: {:?}", plan.points);
            // Go 1.19 has no `push rbp` in its prologues.
            let cheap = plan.points.iter().filter(|p| p.emulated).count();
            assert!(cheap == 5 || version == "1.19", "Go {version} {flags:?}: {:?}", plan.points);
        }
    }
}

/// Damage anywhere in the file gives an error or an answer, never a panic.
#[test]
fn damaged_binaries_do_not_panic() {
    let Some(path) = build("1.26.6", "quiet", &[]) else { return };
    let whole = std::fs::read(path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("damaged");
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    for round in 0..150 {
        let mut bytes = whole.clone();
        if round % 3 == 0 {
            bytes.truncate(random(whole.len()));
        } else {
            // The header, or anywhere.
            let within = if round % 3 == 1 { 4096 } else { bytes.len() };
            for _ in 0..64 {
                let at = random(within);
                bytes[at] = random(256) as u8;
            }
        }
        std::fs::write(&file, bytes).unwrap();
        if let Ok(binary) = GoBinary::open(&file) {
            let _ = Plan::sampled(&binary);
            let _ = MBUCKETS.find(&binary);
            for pc in (0x40_0000..0x60_0000).step_by(4099) {
                binary.calls(pc);
            }
        }
    }
}
