//! ELF core dumps as a target's memory: the kernel's and gdb's alike.
//!
//! A dump holds what was written; read-only pages of the executable are left
//! out of it by default and are taken from the executable's file ([`go`]). A
//! page that is in neither is an error and never zeros. A dump may be cut
//! short by a full disk or a limit, and all in it is hostile.

mod executable;
pub mod go;
pub mod notes;
pub mod python;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use object::elf::{ELFMAG, EM_AARCH64, EM_X86_64, ET_CORE, PF_W, PT_LOAD, PT_NOTE};

use self::notes::Notes;
use super::{
    elf::Machine,
    memory::{Memory, MemoryError},
};

const HEADER: usize = 64;
const PROGRAM_HEADER: u64 = 56;
/// `e_phnum` when the number stands in the first section header's `sh_info`.
const PN_XNUM: u16 = 0xffff;
/// Segments that are read; the kernel's own default limit is 65530.
const MAX_SEGMENTS: u32 = 1 << 20;
/// Notes that are looked at: some ten per thread.
const MAX_NOTES: usize = 1 << 20;
/// Largest note that is read: the mappings, at about 100 bytes each.
const MAX_NOTE: u64 = 128 << 20;

#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    #[error("core {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not a core dump: {why}")]
    NotCore { path: PathBuf, why: &'static str },
    #[error("core {path} is cut within its headers: nothing can be read from it")]
    Cut { path: PathBuf },
    #[error("core {path} does not say which program it is of: give it with --exe")]
    NoExecutable { path: PathBuf },
    #[error(
        "the executable {exe} cannot be read ({source}): give the one that the core is of with \
         --exe"
    )]
    Executable { exe: PathBuf, source: Box<super::go::binary::GoBinaryError> },
    #[error("{exe} is not the executable that made core {path}: {why}; give it with --exe")]
    WrongExecutable { exe: PathBuf, path: PathBuf, why: &'static str },
    #[error("core {path} was made with {library}, which cannot be read here: {why}")]
    Library { path: PathBuf, library: String, why: String },
    #[error("core {path}: {source}")]
    Python { path: PathBuf, source: Box<super::cpython::binary::PythonError> },
    #[error("core {path}: {why}")]
    Layout { path: PathBuf, why: String },
}

/// One dumped region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    address: u64,
    offset: u64,
    /// Bytes that the file should hold, and those it does hold.
    promised: u64,
    present: u64,
    writable: bool,
}

#[derive(Debug)]
pub struct Core {
    pub path: PathBuf,
    file: File,
    pub machine: Machine,
    /// By address.
    regions: Vec<Region>,
    pub notes: Notes,
    /// Bytes of memory that the headers promise and the file no longer holds.
    pub missing_bytes: u64,
}

fn u16_at(b: &[u8], at: usize) -> u16 {
    b.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    b.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    b.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Core {
    /// # Errors
    /// When the file is no 64-bit little-endian core dump, or is cut within its
    /// headers.
    pub fn open(path: &Path) -> Result<Self, CoreError> {
        let io_error = |source| CoreError::Io { path: path.to_owned(), source };
        let not_core = |why| CoreError::NotCore { path: path.to_owned(), why };
        // Opening a pipe would wait for its writer.
        if !std::fs::metadata(path).map_err(io_error)?.is_file() {
            return Err(not_core("it is not a regular file"));
        }
        let file = File::open(path).map_err(io_error)?;
        let len = file.metadata().map_err(io_error)?.len();
        let mut h = [0; HEADER];
        if file.read_exact_at(&mut h, 0).is_err() || !h.starts_with(&ELFMAG) {
            return Err(not_core("it has no ELF header"));
        }
        // ELFCLASS64, ELFDATA2LSB.
        if h[4] != 2 || h[5] != 1 {
            return Err(not_core("it is not a 64-bit little-endian ELF file"));
        }
        if u16_at(&h, 16) != ET_CORE.0 {
            return Err(not_core("it is another kind of ELF file"));
        }
        let machine = match u16_at(&h, 18) {
            m if m == EM_X86_64.0 => Machine::X86_64,
            m if m == EM_AARCH64.0 => Machine::Aarch64,
            other => Machine::Other(other),
        };
        let cut = || CoreError::Cut { path: path.to_owned() };
        let table = program_headers(&file, &h, len).ok_or_else(cut)?;
        let mut core = Self {
            path: path.to_owned(),
            file,
            machine,
            regions: Vec::new(),
            notes: Notes::default(),
            missing_bytes: 0,
        };
        for p in table.chunks_exact(PROGRAM_HEADER as usize) {
            let (offset, address) = (u64_at(p, 8), u64_at(p, 16));
            let promised = u64_at(p, 32);
            let present = promised.min(len.saturating_sub(offset));
            if u32_at(p, 0) == PT_LOAD.0 && promised > 0 {
                core.missing_bytes = core.missing_bytes.saturating_add(promised - present);
                core.regions.push(Region {
                    address,
                    offset,
                    promised,
                    present,
                    writable: u32_at(p, 4) & PF_W.0 != 0,
                });
            } else if u32_at(p, 0) == PT_NOTE.0 {
                core.read_notes(offset, present);
            }
        }
        if core.machine != Machine::X86_64 {
            // Other processors order their registers in another way.
            core.notes.threads.clear();
        }
        core.regions.sort_unstable_by_key(|r| r.address);
        Ok(core)
    }

    /// Name size, description size, type; both padded to four bytes.
    fn read_notes(&mut self, offset: u64, len: u64) {
        let mut at = 0u64;
        for _ in 0..MAX_NOTES {
            let mut h = [0; 12];
            if at.saturating_add(12) > len
                || self.file.read_exact_at(&mut h, offset.saturating_add(at)).is_err()
            {
                return;
            }
            let (name, desc, kind) = (u32_at(&h, 0), u32_at(&h, 4), u32_at(&h, 8));
            let padded = |n: u32| u64::from(n).next_multiple_of(4);
            let start = at + 12 + padded(name);
            at = start + padded(desc);
            // "CORE\0": the types are read only in this name's meaning.
            if name != 5 || !Notes::wants(kind) || u64::from(desc) > MAX_NOTE || at > len {
                continue;
            }
            let mut bytes = vec![0; desc as usize];
            if self.file.read_exact_at(&mut bytes, offset.saturating_add(start)).is_ok() {
                self.notes.take(kind, &bytes);
            }
        }
    }

    /// What it holds of memory that the program could write, in order of
    /// address.
    pub fn writable(&self) -> impl Iterator<Item = (u64, u64)> {
        let present = |r: &Region| (r.address, r.address.saturating_add(r.present));
        self.regions.iter().filter(|r| r.writable && r.present > 0).map(present)
    }

    /// The region whose promised bytes hold `address`.
    fn region(&self, address: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|r| r.address <= address);
        let r = self.regions.get(after.checked_sub(1)?)?;
        (address - r.address < r.promised).then_some(r)
    }

    /// Read what the dump holds from `address` on, at most all of `buf`; gives
    /// the bytes read, at least one.
    fn read_some(&self, address: u64, buf: &mut [u8]) -> io::Result<usize> {
        let region = self.region(address).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "the core does not hold this page")
        })?;
        let at = address - region.address;
        let left = region.present.saturating_sub(at);
        if left == 0 {
            let why = "the core is cut before this page";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let part = buf.get_mut(..n).unwrap_or_default();
        self.file.read_exact_at(part, region.offset.saturating_add(at))?;
        Ok(n)
    }
}

/// All program headers; `None` when the file ends before them.
fn program_headers(file: &File, h: &[u8; HEADER], len: u64) -> Option<Vec<u8>> {
    let (at, sections) = (u64_at(h, 32), u64_at(h, 40));
    if u64::from(u16_at(h, 54)) != PROGRAM_HEADER {
        return None;
    }
    let count = match u16_at(h, 56) {
        PN_XNUM => {
            let mut info = [0; 4];
            // `sh_info` of section header 0.
            file.read_exact_at(&mut info, sections.checked_add(44)?).ok()?;
            u32::from_le_bytes(info)
        }
        n => u32::from(n),
    };
    let size = u64::from(count).checked_mul(PROGRAM_HEADER)?;
    if count == 0 || count > MAX_SEGMENTS || at.checked_add(size)? > len {
        return None;
    }
    let mut table = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut table, at).ok()?;
    Some(table)
}

/// Fill `buf` with pieces that `some` gives.
fn read_all(
    address: u64,
    buf: &mut [u8],
    some: impl Fn(u64, &mut [u8]) -> io::Result<usize>,
) -> Result<(), MemoryError> {
    let len = buf.len();
    let error = |source| MemoryError { address, len, source };
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
        let at = address
            .checked_add(done as u64)
            .ok_or_else(|| error(io::ErrorKind::InvalidInput.into()))?;
        done += some(at, rest).map_err(error)?;
    }
    Ok(())
}

/// Only what the dump itself holds.
impl Memory for Core {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        read_all(address, buf, |at, rest| self.read_some(at, rest))
    }
}

#[cfg(test)]
mod tests;
