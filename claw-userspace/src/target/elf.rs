//! One ELF file: segments, sections, symbols, bytes at addresses.
//!
//! Reads with `pread` and never maps the file: a mapped file that its owner
//! truncates would kill the agent with SIGBUS. Everything in it is hostile.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use object::{
    Object, ObjectSection,
    elf::{EM_AARCH64, EM_X86_64, ET_DYN, PF_W, PF_X, PT_LOAD, R_X86_64_RELATIVE},
    read::{
        ReadCache,
        elf::{ElfFile64, FileHeader, ProgramHeader, SectionHeader},
    },
};

/// Largest table (symbols, relocations) that is read.
const MAX_TABLE: u64 = 256 << 20;
/// Bytes of a symbol's name; those with longer ones are left out.
const MAX_NAME: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    #[error("cannot read the binary: {0}{remedy}", remedy = remedy(.0))]
    Io(#[from] io::Error),
    #[error("not a 64-bit little-endian ELF file: {0}")]
    Format(String),
    #[error("no file content at {0:#x}")]
    NoContent(u64),
}

fn remedy(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => {
            ": run with sudo; on a file system that shuts root out (FUSE, NFS), as its user"
        }
        _ => "",
    }
}

impl From<object::Error> for ElfError {
    fn from(e: object::Error) -> Self {
        Self::Format(e.to_string())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
    Other(u16),
}

/// A PT_LOAD segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub vaddr: u64,
    pub offset: u64,
    pub file_size: u64,
    pub mem_size: u64,
    pub writable: bool,
    pub executable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub name: String,
    pub address: u64,
    pub offset: u64,
    /// Bytes in the file; 0 for `.bss`.
    pub size: u64,
}

#[derive(Debug)]
pub struct Elf {
    file: File,
    pub machine: Machine,
    /// Position-independent: addresses are relative to a load bias.
    pub pie: bool,
    /// Address of the entry point.
    pub entry: u64,
    pub segments: Vec<Segment>,
    pub sections: Vec<Section>,
    /// GNU build id, else Go's, as hex.
    pub build_id: Option<String>,
    pub has_symbols: bool,
}

impl Elf {
    /// # Errors
    /// When the file cannot be read or is not a 64-bit little-endian ELF.
    pub fn open(path: &Path) -> Result<Self, ElfError> {
        let file = File::open(path)?;
        let cache = ReadCache::new(file.try_clone()?);
        let elf = ElfFile64::<object::LittleEndian, _>::parse(&cache)?;
        let endian = elf.endian();
        let header = elf.elf_header();
        let machine = match header.e_machine(endian) {
            EM_X86_64 => Machine::X86_64,
            EM_AARCH64 => Machine::Aarch64,
            other => Machine::Other(other.0),
        };
        let segments = elf
            .elf_program_headers()
            .iter()
            .filter(|p| p.p_type(endian) == PT_LOAD)
            .map(|p| Segment {
                vaddr: p.p_vaddr(endian),
                offset: p.p_offset(endian),
                file_size: p.p_filesz(endian),
                mem_size: p.p_memsz(endian),
                writable: p.p_flags(endian).contains(PF_W),
                executable: p.p_flags(endian).contains(PF_X),
            })
            .collect();
        let sections: Vec<Section> = elf
            .sections()
            .map(|s| Section {
                name: s.name().unwrap_or_default().to_owned(),
                address: s.address(),
                offset: s.elf_section_header().sh_offset(endian),
                size: s.file_range().map_or(0, |(_, size)| size),
            })
            .collect();
        let build_id = match elf.build_id() {
            Ok(Some(id)) => Some(hex(id)),
            _ => None,
        };
        let pie = header.e_type(endian) == ET_DYN;
        let entry = header.e_entry(endian);
        let has_symbols = sections.iter().any(|s| s.name == ".symtab" && s.size > 0);
        drop(elf);
        let mut elf = Self { file, machine, pie, entry, segments, sections, build_id, has_symbols };
        if elf.build_id.is_none() {
            elf.build_id = elf.go_build_id();
        }
        Ok(elf)
    }

    /// `.note.go.buildid`: a note header of 16 bytes, then the id.
    fn go_build_id(&self) -> Option<String> {
        let section = self.section(".note.go.buildid")?;
        let mut note = vec![0; usize::try_from(section.size).ok()?.min(512)];
        self.read_offset(section.offset, &mut note).ok()?;
        let len = u32::from_le_bytes(note.get(4..8)?.try_into().ok()?) as usize;
        let id = note.get(16..16usize.checked_add(len)?)?;
        Some(String::from_utf8_lossy(id).into_owned())
    }

    pub fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// Address of the first loaded segment, which the load bias is relative to.
    pub fn first_vaddr(&self) -> u64 {
        self.segments.iter().map(|s| s.vaddr).min().unwrap_or(0)
    }

    pub fn file_offset(&self, vaddr: u64) -> Option<u64> {
        let s = self.segment(vaddr)?;
        let delta = vaddr - s.vaddr;
        (delta < s.file_size).then(|| s.offset.checked_add(delta)).flatten()
    }

    pub fn segment(&self, vaddr: u64) -> Option<&Segment> {
        self.segments.iter().find(|s| vaddr.checked_sub(s.vaddr).is_some_and(|d| d < s.mem_size))
    }

    /// Fill `buf` from file offset `offset`.
    ///
    /// # Errors
    /// When the file ends before that.
    pub fn read_offset(&self, offset: u64, buf: &mut [u8]) -> Result<(), ElfError> {
        Ok(self.file.read_exact_at(buf, offset)?)
    }

    /// Fill `buf` with the file's content at address `vaddr`.
    ///
    /// # Errors
    /// When the address has no content in the file.
    pub fn read(&self, vaddr: u64, buf: &mut [u8]) -> Result<(), ElfError> {
        let offset = self.file_offset(vaddr).ok_or(ElfError::NoContent(vaddr))?;
        self.read_offset(offset, buf)
    }

    pub fn u64_at(&self, vaddr: u64) -> Result<u64, ElfError> {
        let mut b = [0; 8];
        self.read(vaddr, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }

    /// Addresses of the symbols named, in the order asked; one pass over the
    /// symbol table for all of them.
    pub fn symbols(&self, names: &[&str]) -> Vec<Option<u64>> {
        let mut found = vec![None; names.len()];
        let table = self.symbol_table(".symtab", ".strtab");
        for (name, symbol) in table.iter().flat_map(SymbolTable::all) {
            if let Some(i) = names.iter().position(|n| n.as_bytes() == name)
                && found[i].is_none()
            {
                found[i] = Some(symbol.address);
                if found.iter().all(Option::is_some) {
                    break;
                }
            }
        }
        found
    }

    /// Addresses of the dynamic symbols that `wanted` accepts by name; a
    /// stripped file has them still.
    pub fn dynamic_symbols(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
        let table = self.symbol_table(".dynsym", ".dynstr");
        let all = table.iter().flat_map(SymbolTable::all).filter(|(_, s)| s.defined);
        all.filter_map(|(name, s)| Some((std::str::from_utf8(name).ok()?, s.address)))
            .filter(|(name, _)| wanted(name))
            .map(|(name, address)| (name.to_owned(), address))
            .collect()
    }

    fn symbol_table(&self, symbols: &str, names: &str) -> Option<SymbolTable> {
        let whole = |name: &str| {
            let s = self.section(name)?;
            let mut bytes = vec![0; usize::try_from(s.size.min(MAX_TABLE)).ok()?];
            self.read_offset(s.offset, &mut bytes).ok()?;
            Some(bytes)
        };
        Some(SymbolTable { symbols: whole(symbols)?, names: whole(names)? })
    }

    /// `(address, value)` of the relative relocations whose place `wanted`
    /// accepts by address or value: what a PIE's pointers will hold.
    pub fn relative_relocations(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        for s in self.sections.iter().filter(|s| s.name.starts_with(".rela")) {
            let Ok(len) = usize::try_from(s.size.min(MAX_TABLE)) else { continue };
            let mut table = vec![0; len];
            if self.read_offset(s.offset, &mut table).is_err() {
                continue;
            }
            for entry in table.chunks_exact(24) {
                let word = |i: usize| {
                    entry[i * 8..i * 8 + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b))
                };
                let (place, info, addend) = (word(0), word(1), word(2));
                if info & 0xffff_ffff == u64::from(R_X86_64_RELATIVE.0) && wanted(place, addend) {
                    found.push((place, addend));
                }
            }
        }
        found
    }
}

/// The two sections of a symbol table, read at once: a Go program has tens of
/// thousands of names.
struct SymbolTable {
    /// `Elf64_Sym`, see elf(5).
    symbols: Vec<u8>,
    names: Vec<u8>,
}

struct Symbol {
    address: u64,
    defined: bool,
}

impl SymbolTable {
    fn all(&self) -> impl Iterator<Item = (&[u8], Symbol)> {
        self.symbols.as_chunks::<24>().0.iter().filter_map(|entry| {
            let name_at = u32::from_le_bytes(*entry.first_chunk()?) as usize;
            let rest = self.names.get(name_at..)?;
            let end = rest.iter().take(MAX_NAME).position(|b| *b == 0)?;
            let address = u64::from_le_bytes(*entry.get(8..)?.first_chunk()?);
            let defined = entry.get(6..8)? != [0, 0];
            Some((rest.get(..end)?, Symbol { address, defined }))
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
