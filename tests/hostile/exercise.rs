//! What is done with hostile bytes, the same under the fuzzer and in the test
//! that runs in CI: read them as far as the agent would. Nothing may panic,
//! hang, or ask for memory without bound; what is returned does not matter.

use std::{
    fs::File,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use claw_common::LabelLayout;
use claw_ebpf::{
    decode::decode,
    engine::Engine,
    ledger::Bounds,
    probe::Plan,
    record::{MAGIC, Reader, VERSION},
    report::text,
    stream::Item,
    target::{
        elf::Elf,
        go::{
            binary::GoBinary,
            buildinfo::BuildInfo,
            goroutines, labels,
            layout::{GoLayout, LAYOUTS},
            memprofile,
            snapshot::snapshot,
            unwind::Unwinder,
            variables::{ALLGS, MBUCKETS, MEM_PROFILE_RATE},
        },
        memory::{Memory, MemoryError},
    },
};

use super::simulate;

/// A record of the ring buffer.
pub fn event(bytes: &[u8]) {
    let _ = decode(bytes);
}

/// A recording whose first items are sound: `bytes` are cut into further
/// payloads, so that checksums do not keep the fuzzer out.
pub fn recording(bytes: &[u8]) {
    let mut file = [&MAGIC[..], &VERSION.to_le_bytes(), &[0; 6]].concat();
    let mut frame = |payload: &[u8]| {
        file.extend((payload.len() as u32).to_le_bytes());
        file.extend(crc32fast::hash(payload).to_le_bytes());
        file.extend(payload);
    };
    for item in [Item::Session(simulate::session()), simulate::target()] {
        frame(&postcard::to_stdvec(&item).unwrap());
    }
    let mut rest = bytes;
    while let [len, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        frame(payload);
        rest = tail;
    }
    assert!(replay(&file), "the first items are sound");
    // The same bytes as they would lie on a disk.
    replay(bytes);
}

/// False when it is no recording at all.
fn replay(bytes: &[u8]) -> bool {
    let Ok((session, reader)) = Reader::new(bytes, Path::new("hostile")) else { return false };
    let bounds = Bounds { tenants: 8, sites: 32, groups: 32, live: 64 };
    let mut engine = Engine::new(session, bounds);
    for item in reader {
        engine.apply(item);
    }
    let report = engine.report();
    let _ = serde_json::to_string(&report);
    text::render(&report, text::Style::Plain);
    true
}

/// Memory in which every address means something, so that random pointers lead
/// on, into circles too; the upper quarter of addresses is not mapped.
pub struct Folded<'a>(pub &'a [u8]);

impl Memory for Folded<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        if self.0.is_empty() || address >> 62 == 3 {
            let source = std::io::ErrorKind::UnexpectedEof.into();
            return Err(MemoryError { address, len: buf.len(), source });
        }
        let start = address as usize % self.0.len();
        if let Some(plain) = self.0.get(start..start + buf.len()) {
            buf.copy_from_slice(plain);
            return Ok(());
        }
        let folded = self.0[start..].iter().chain(self.0.iter().cycle());
        for (b, from) in buf.iter_mut().zip(folded) {
            *b = *from;
        }
        Ok(())
    }
}

/// The runtime's lists and labels in memory made of `bytes`.
pub fn memory(bytes: &[u8]) {
    let [version, address, bytes @ ..] = bytes else { return };
    let layout = &LAYOUTS[usize::from(*version) % LAYOUTS.len()];
    let (memory, address) = (Folded(bytes), u64::from(*address));
    let variables =
        memprofile::Variables { mbuckets: address, rate: address + 8, cycle: address + 16 };
    if let Ok(profile) = memprofile::read(&memory, layout, &variables) {
        memprofile::heap_in_use(&profile);
    }
    let _ = memprofile::bucket_stack(&memory, address);
    if let Ok(look) = goroutines::look(&memory, layout, address) {
        let keys = ["tenant", "t"].map(str::to_owned);
        let at: Vec<u64> = look.alive.iter().map(|g| g.labels).take(64).collect();
        labels::tenants(&memory, layout.labels, &at, &keys);
    }
    let keys = [String::from_utf8_lossy(bytes.get(..2).unwrap_or_default()).into_owned()];
    for layout in [LabelLayout::Map, LabelLayout::Slice] {
        labels::tenants(&memory, layout, &[address.max(1)], &keys);
        labels::all(&memory, layout, &[address.max(1)], |_, _| {});
    }
}

/// The goroutines and stacks of a program whose memory is made of `bytes`.
/// Gives the number of distinct stacks.
pub fn stacks(binary: &GoBinary, bytes: &[u8]) -> usize {
    let Ok(layout) = GoLayout::of(&binary.version) else { return 0 };
    let mut unwinder = Unwinder::new(binary, 0);
    let Ok(s) = snapshot(&Folded(bytes), layout, 0, &mut unwinder, &[]) else { return 0 };
    for stack in &s.stacks {
        assert!(stack.len() <= bytes.len().max(1 << 16), "longer than what it was read from");
    }
    let addresses: Vec<u64> = s.goroutines.iter().map(|g| g.labels).collect();
    labels::all(&Folded(bytes), layout.labels, &addresses, |_, _| {});
    s.stacks.len()
}

/// A Go binary that can be damaged and mended again, in a file that lives in
/// memory only.
pub struct Seed {
    content: Vec<u8>,
    file: File,
    /// Where its tables lie: damage there says more than anywhere else.
    regions: Vec<(u64, u64)>,
}

/// Parts of the file that the agent reads.
const SECTIONS: [&str; 8] = [
    ".go.buildinfo",
    ".gopclntab",
    ".data.rel.ro.gopclntab",
    ".go.module",
    ".noptrdata",
    ".note.go.buildid",
    ".rela.dyn",
    ".symtab",
];

impl Seed {
    pub fn new(path: &Path) -> Self {
        let content = std::fs::read(path)
            .unwrap_or_else(|e| panic!("seed {}: {e}: see docs/fuzzing.md", path.display()));
        // SAFETY: a valid name; the descriptor is ours.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"seed".as_ptr(), 0)) };
        file.write_all_at(&content, 0).unwrap();
        let elf = Elf::open(path).unwrap();
        let mut regions = vec![(0, 0x400), (content.len() as u64 - 0x800, 0x800)];
        let sections = SECTIONS.iter().filter_map(|name| elf.section(name)).filter(|s| s.size > 0);
        for s in sections {
            // Headers count most.
            regions.extend([(s.offset, s.size.min(128)), (s.offset, s.size)]);
        }
        Self { content, file, regions }
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// Read the binary with `edits` made to it: each is a region, a place in
    /// it, a length and that many bytes; length 0 cuts the file off there.
    pub fn damaged(&self, mut edits: &[u8]) {
        let mut places = Vec::new();
        let mut cut = None;
        while let [region, a, b, c, len, rest @ ..] = edits {
            let (offset, size) = self.regions[usize::from(*region) % self.regions.len()];
            let at = u64::from(u32::from_le_bytes([*a, *b, *c, 0]));
            let at = offset + at % size;
            let (bytes, rest) = rest.split_at(usize::from(*len % 9).min(rest.len()));
            if *len == 0 {
                cut = Some(at);
            } else {
                self.file.write_all_at(bytes, at).unwrap();
                places.push((at as usize, bytes.len()));
            }
            edits = rest;
        }
        if let Some(at) = cut {
            self.file.set_len(at).unwrap();
        }
        binary(&self.path());
        if let Some(at) = cut {
            self.file.set_len(at).unwrap();
            self.file.write_all_at(&self.content[at as usize..], at).unwrap();
        }
        for (at, len) in places {
            let end = self.content.len().min(at + len);
            self.file.write_all_at(&self.content[at..end], at as u64).unwrap();
        }
        self.file.set_len(self.content.len() as u64).unwrap();
    }
}

/// All that the agent asks of a binary.
pub fn binary(path: &Path) {
    if let Ok(elf) = Elf::open(path) {
        elf.symbols(&["runtime.allgs", "no.such"]);
        let _ = BuildInfo::read(&elf);
    }
    let Ok(binary) = GoBinary::open(path) else { return };
    Plan::sampled(&binary);
    for v in [ALLGS, MBUCKETS, MEM_PROFILE_RATE] {
        let _ = v.find(&binary);
        let _ = v.by_pattern(&binary);
    }
    let names = ["runtime.mallocgc", "runtime.main", "main.main", "runtime.goexit0"];
    for range in binary.find(&names).into_iter().flatten().flatten() {
        let _ = binary.code(range);
        let end = range.end.min(range.entry.saturating_add(4096));
        let stack: Vec<u8> =
            (range.entry..end).step_by(61).flat_map(u64::to_le_bytes).cycle().take(4096).collect();
        let mut unwinder = Unwinder::new(&binary, 0);
        let mut frames = Vec::new();
        for pc in (range.entry..end).step_by(61) {
            binary.calls(pc);
            unwinder.unwind(pc, &stack, pc % 2 == 0, &mut frames);
        }
    }
}
