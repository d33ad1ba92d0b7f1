//! The linker's `runtime.firstmoduledata`: where the text starts and where
//! function metadata (`go:func.*`) lies. Layout: `runtime/symtab.go`.

use crate::target::elf::Elf;

use super::version::GoVersion;

/// `text`: after pcHeader, six slices, findfunctab, minpc and maxpc; the same
/// from Go 1.16 to 1.27.
const TEXT: u64 = 8 + 6 * 24 + 3 * 8;
/// Places that may be it and are looked at; one is.
const MOST: usize = 16;
/// Bytes that are looked at.
const SPAN: u64 = 400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleData {
    /// Address that function entries are relative to.
    pub text: u64,
    /// Address that funcdata is relative to; `None` when this Go version's
    /// layout is not known, and then inlined calls are not shown.
    pub gofunc: Option<u64>,
    /// Where type descriptors and their names lie; `None` as above.
    pub types: Option<[u64; 2]>,
}

/// Offset of `moduledata.gofunc`. 1.20 added covctrs/ecovctrs before it, 1.27
/// typedesclen, itaboffset and itabsize.
fn gofunc_offset(version: &GoVersion) -> Option<u64> {
    match (version.major, version.minor) {
        (1, 18..=19) => Some(304),
        (1, 20..=26) => Some(320),
        (1, 27) => Some(344),
        _ => None,
    }
}

/// Offsets of `moduledata.types` and `etypes`.
fn types_offsets(version: &GoVersion) -> Option<[u64; 2]> {
    match (version.major, version.minor) {
        (1, 18..=19) => Some([280, 288]),
        (1, 20..=26) => Some([296, 304]),
        (1, 27) => Some([296, 312]),
        _ => None,
    }
}

/// Sections that hold it: 1.26 gave it its own.
const SECTIONS: [&str; 6] =
    [".go.module", ".noptrdata", ".data", ".data.rel.ro", ".data.rel.ro.go.module", ".rodata"];

impl ModuleData {
    /// Find it by its first word, the address of the pclntab.
    pub fn find(elf: &Elf, version: &GoVersion, pclntab: u64) -> Option<Self> {
        if elf.pie {
            // The words are made by relocations; the file may hold zeros.
            let starts = elf.relative_relocations(|_, value| value == pclntab);
            for (start, _) in starts.into_iter().take(MOST) {
                let words = elf.relative_relocations(|place, _| {
                    place.checked_sub(start).is_some_and(|d| d < SPAN)
                });
                let word = |offset: u64| {
                    let at = start.checked_add(offset)?;
                    words
                        .iter()
                        .find(|(place, _)| *place == at)
                        .map(|(_, value)| *value)
                        .or_else(|| elf.u64_at(at).ok())
                };
                if let Some(found) = Self::check(elf, version, word) {
                    return Some(found);
                }
            }
        }
        let mut places: Vec<(u64, u64)> = SECTIONS
            .iter()
            .filter_map(|name| elf.section(name))
            .map(|s| (s.address, s.size))
            .collect();
        places.extend(elf.segments.iter().filter(|s| s.writable).map(|s| (s.vaddr, s.file_size)));
        places.into_iter().find_map(|(address, size)| {
            candidates(elf, address, size, pclntab).into_iter().find_map(|start| {
                Self::check(elf, version, |offset| elf.u64_at(start.checked_add(offset)?).ok())
            })
        })
    }

    fn check(elf: &Elf, version: &GoVersion, word: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        let text = word(TEXT)?;
        if !elf.segment(text)?.executable {
            return None;
        }
        let gofunc = gofunc_offset(version).and_then(&word).filter(|a| elf.segment(*a).is_some());
        let types = types_offsets(version)
            .and_then(|[start, end]| Some([word(start)?, word(end)?]))
            .filter(|[start, end]| start < end && elf.segment(*start).is_some());
        Some(Self { text, gofunc, types })
    }
}

/// Aligned places in `size` bytes at `address` that hold `value`.
fn candidates(elf: &Elf, address: u64, size: u64, value: u64) -> Vec<u64> {
    const CHUNK: u64 = 1 << 20;
    let mut found = Vec::new();
    let mut done = 0;
    while done < size && found.len() < MOST {
        let len = (size - done).min(CHUNK);
        let mut chunk = vec![0; usize::try_from(len).unwrap_or(0)];
        if elf.read(address.saturating_add(done), &mut chunk).is_err() {
            break;
        }
        let wanted = value.to_le_bytes();
        found.extend(
            (0u64..)
                .map(|i| address.wrapping_add(done).wrapping_add(i * 8))
                .zip(chunk.chunks_exact(8))
                .filter(|(_, c)| *c == wanted)
                .map(|(a, _)| a),
        );
        done += len;
    }
    found
}
