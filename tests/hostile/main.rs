//! Bytes from targets and files are hostile: what the fuzzer does for minutes
//! (`docs/fuzzing.md`), here for seconds and the same every time.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

#[path = "../common/mod.rs"]
mod common;
mod exercise;
mod pretend;
mod python;
#[path = "../simulate/mod.rs"]
mod simulate;

use std::path::Path;

use claw_common::event::HEADER_SIZE;
use claw_ebpf::{
    stream::Item,
    target::go::{
        binary::GoBinary,
        layout::GoLayout,
        pclntab::{Pclntab, PclntabError},
    },
};
use exercise::Seed;

/// Xorshift, so that a failure comes again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    /// Bytes that parsers stumble over, more often than chance has them.
    fn byte(&mut self) -> u8 {
        const EDGES: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, 0xfe, 8, 0x40];
        if self.below(3) == 0 { self.next() as u8 } else { EDGES[self.below(EDGES.len())] }
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most)).map(|_| self.byte()).collect()
    }
}

/// As the linker makes them: old and new tables, static and PIE, with symbols
/// and without.
fn seeds() -> Vec<Seed> {
    let builds: [(&str, &[&str]); 4] = [
        ("1.26.6", &[]),
        ("1.26.6", &["-ldflags=-s -w", "-buildmode=pie"]),
        ("1.22.10", &["-ldflags=-s -w"]),
        ("1.19", &["-buildmode=pie"]),
    ];
    let seeds = builds.iter().filter_map(|(version, flags)| common::build(version, "quiet", flags));
    seeds.map(|path| Seed::new(&path)).collect()
}

#[test]
fn damaged_binaries_are_read_without_harm() {
    for (seed, binary) in (1..).zip(seeds()) {
        binary.damaged(&[]);
        let mut random = Random(seed * 0x9e37_79b9);
        for _ in 0..60 {
            let edits: Vec<u8> = (0..=random.below(3))
                .flat_map(|_| {
                    let mut edit = random.next().to_le_bytes()[..4].to_vec();
                    let bytes: Vec<u8> = (0..=random.below(8)).map(|_| random.byte()).collect();
                    // One in twenty cuts the file.
                    edit.push(if random.below(20) == 0 { 0 } else { bytes.len() as u8 });
                    edit.extend(bytes);
                    edit
                })
                .collect();
            binary.damaged(&edits);
        }
    }
}

/// A section may claim to be as long as addresses go.
#[test]
fn a_table_that_ends_beyond_all_addresses_is_refused() {
    let words = [0x0801_0000_ffff_fff1, 1, 0, 0, 0, 0, 0, 0, u64::MAX - 4];
    let table: Vec<u8> = words.iter().flat_map(|w: &u64| w.to_le_bytes()).collect();
    let error = Pclntab::parse(table, u64::MAX, 0x40_0000).unwrap_err();
    assert_eq!(error, PclntabError::Damaged("function table is cut"));
}

#[test]
fn any_record_is_decoded_without_harm() {
    let mut random = Random(7);
    for _ in 0..20_000 {
        let mut record = random.bytes(2 * HEADER_SIZE);
        // A kind that exists, mostly.
        if let Some(kind) = record.first_chunk_mut() {
            *kind = [random.below(9) as u8, 0];
        }
        exercise::event(&record);
    }
}

#[test]
fn any_recording_is_replayed_without_harm() {
    let mut random = Random(11);
    let sound: Vec<Vec<u8>> = simulate::stream(&[simulate::garbage()], 12.0, 2.0, 1)
        .iter()
        .chain(&[Item::End { t_ns: 13 * simulate::SECOND }])
        .map(|item| postcard::to_stdvec(item).unwrap())
        .filter(|payload| payload.len() < 256)
        .collect();
    for _ in 0..2000 {
        let mut frames = Vec::new();
        for _ in 0..random.below(40) {
            let mut payload = match random.below(4) {
                0 => random.bytes(40),
                _ => sound[random.below(sound.len())].clone(),
            };
            if !payload.is_empty() {
                let at = random.below(payload.len());
                payload[at] = random.byte();
            }
            frames.push(payload.len() as u8);
            frames.extend(payload);
        }
        exercise::recording(&frames);
    }
}

#[test]
fn any_memory_is_walked_without_harm() {
    let mut random = Random(13);
    for _ in 0..200 {
        // Words, so that pointers, counts and kinds are found where they should be.
        let bytes: Vec<u8> = (0..random.below(200))
            .flat_map(|_| {
                let word = match random.below(4) {
                    0 => random.next(),
                    1 => random.next() % 512,
                    _ => random.next() % 12,
                };
                word.to_le_bytes()
            })
            .collect();
        exercise::memory(&bytes);
    }
}

#[test]
fn any_python_is_read_without_harm() {
    let mut random = Random(19);
    let mut found = [0; 3];
    for _ in 0..60 {
        let len = 64 + random.below(400);
        let mut bytes: Vec<u8> = (0..9).map(|_| random.next() as u8).collect();
        // Words, so that pointers, counts, flags and lengths are found where they
        // should be.
        bytes.extend((0..len).flat_map(|_| {
            let word = match random.below(8) {
                0 => random.next(),
                1 => 0x7f00_0000_0000 + random.next() % (1 << 16) / 8 * 8,
                2 => 0x1_0000 + random.next() % 2048 / 8 * 8,
                3 => 1 << random.below(64),
                4 => u64::MAX - random.next() % 64,
                5 => random.next() % 4096,
                _ => random.next() % 8,
            };
            word.to_le_bytes()
        }));
        for (sum, n) in found.iter_mut().zip(python::python(&bytes)) {
            *sum += n;
        }
    }
    assert!(found.iter().all(|n| *n > 10), "they got somewhere: {found:?}");
}

/// A sound memory with goroutines and their stacks, of which some words are
/// then something else.
#[test]
fn any_goroutines_are_read_without_harm() {
    const N: usize = 8;
    const G: usize = 0x1000;
    const STACK: usize = 0x4000;
    let Some(path) = common::build("1.26.6", "quiet", &[]) else { return };
    let binary = GoBinary::open(&path).unwrap();
    let layout = GoLayout::of(&binary.version).unwrap();
    let names = ["runtime.gopark", "main.main", "runtime.main", "runtime.mallocgc"];
    let code: Vec<u64> =
        binary.find(&names).unwrap().into_iter().flatten().map(|f| f.entry).collect();
    let mut random = Random(17);
    let mut stacks = 0;
    for round in 0..400 {
        let mut words = vec![0u64; 0x8000 / 8];
        for w in &mut words[STACK / 8..] {
            *w = code[random.below(code.len())] + random.below(64) as u64;
        }
        words[..3].copy_from_slice(&[0x100, N as u64, N as u64]);
        for i in 0..N {
            let (g, low) = (G + i * 0x400, (STACK + i * 0x800) as u64);
            words[0x100 / 8 + i] = g as u64;
            let mut put = |at: u32, value: u64| words[(g + at as usize) / 8] = value;
            put(0, low);
            put(8, low + 0x800);
            put(56, low + 8 * random.below(64) as u64);
            put(64, code[random.below(code.len())] + random.below(64) as u64);
            put(layout.g_goid - 8, 4);
            put(layout.g_goid, i as u64 + 1);
            put(layout.g_labels, 0x200);
        }
        for _ in 0..random.below(12) {
            let at = match random.below(3) {
                0 => random.below(64),
                1 => G / 8 + random.below(N * 0x400 / 8),
                _ => random.below(words.len()),
            };
            words[at] = match random.below(5) {
                0 => u64::MAX - random.below(16) as u64,
                1 => random.next(),
                2 => 1 << random.below(21),
                3 => random.below(0x8000) as u64,
                _ => code[random.below(code.len())],
            };
        }
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        // Seeds for the fuzzer: see docs/fuzzing.md.
        if let Some(dir) = std::env::var_os("CLAW_FUZZ_CORPUS") {
            std::fs::write(Path::new(&dir).join(round.to_string()), &bytes).unwrap();
        }
        stacks += exercise::stacks(&binary, &bytes);
    }
    assert!(stacks > 400, "most words are sound: {stacks}");
}
