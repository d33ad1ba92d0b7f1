//! One Go binary: everything that can be known from its file alone.

use std::{path::Path, sync::Arc};

use crate::target::elf::{Elf, ElfError, Machine};

use super::{
    buildinfo::{BuildInfo, BuildInfoError},
    inline::{self, Call},
    moduledata::ModuleData,
    pclntab::{self, Bytes, Pclntab, PclntabError},
    version::GoVersion,
};

pub use super::pclntab::FuncRange;

/// Largest function whose code is read; the longest of the runtime's are some
/// ten KiB.
const MAX_CODE: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum GoBinaryError {
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error(transparent)]
    BuildInfo(#[from] BuildInfoError),
    #[error(transparent)]
    Pclntab(#[from] PclntabError),
    #[error("its Go version `{0}` cannot be understood")]
    Version(String),
    #[error("the runtime's module data was not found: the start of its code is unknown")]
    ModuleData,
    #[error("code at {0:#x} cannot be read")]
    Code(u64),
}

impl GoBinaryError {
    /// The file is fine, it just is no Go program.
    pub fn is_not_go(&self) -> bool {
        matches!(self, Self::BuildInfo(BuildInfoError::NotGo) | Self::Elf(ElfError::Format(_)))
    }
}

/// One physical frame, as the runtime's own unwinder sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindStep {
    /// Bytes from the stack pointer to the return address.
    pub sp_delta: u32,
    pub entry: u64,
    /// Nothing called it.
    pub top: bool,
    pub writes_sp: bool,
    pub function: String,
}

/// A region of the file.
#[derive(Debug)]
pub struct FileRegion {
    elf: Arc<Elf>,
    offset: u64,
}

impl Bytes for FileRegion {
    fn read(&self, at: u64, buf: &mut [u8]) -> Option<()> {
        self.elf.read_offset(self.offset.checked_add(at)?, buf).ok()
    }
}

/// Functions that probes and variable patterns need; looked up together in one
/// pass over the table.
const FUNCTIONS: [&str; 14] = [
    "runtime.profilealloc",
    "runtime.freeSpecial",
    "runtime.gcMarkTermination",
    "runtime.newproc1",
    "runtime.newproc.func1",
    "runtime.newcoro",
    "runtime.newcoro.func1",
    "runtime.runqput",
    "runtime.gdestroy",
    "runtime.goexit0",
    "runtime.mProf_FlushLocked",
    "runtime.mProf_Flush",
    "runtime.allgadd",
    "runtime.mallocgc",
];

#[derive(Debug)]
pub struct GoBinary {
    elf: Arc<Elf>,
    pub version: GoVersion,
    pub build: BuildInfo,
    table: Pclntab<FileRegion>,
    gofunc: Option<u64>,
    types: Option<[u64; 2]>,
    text: FuncRange,
    functions: Vec<(&'static str, FuncRange)>,
}

impl GoBinary {
    /// Open `/proc/PID/exe` or a path. Costs one read of the function table.
    ///
    /// # Errors
    /// When the file is unreadable, not Go, or its tables are damaged.
    pub fn open(path: &Path) -> Result<Self, GoBinaryError> {
        let elf = Arc::new(Elf::open(path)?);
        let build = BuildInfo::read(&elf)?;
        let version = GoVersion::parse(&build.version)
            .ok_or_else(|| GoBinaryError::Version(build.version.clone()))?;
        let (address, offset, size) = locate(&elf).ok_or(PclntabError::Missing)?;
        let module = ModuleData::find(&elf, &version, address).ok_or(GoBinaryError::ModuleData)?;
        let region = FileRegion { elf: Arc::clone(&elf), offset };
        let table = Pclntab::parse(region, size, module.text)?;
        let text = table.text_range().ok_or(PclntabError::Damaged("text range"))?;
        let ranges = table.find(&FUNCTIONS)?;
        let functions =
            FUNCTIONS.into_iter().zip(ranges).filter_map(|(n, r)| Some((n, r?))).collect();
        Ok(Self {
            elf,
            version,
            build,
            table,
            gofunc: module.gofunc,
            types: module.types,
            text,
            functions,
        })
    }

    pub fn elf(&self) -> &Elf {
        &self.elf
    }

    /// No ELF symbol table.
    pub fn stripped(&self) -> bool {
        !self.elf.has_symbols
    }

    pub fn cgo(&self) -> bool {
        self.build.setting("CGO_ENABLED") == Some("1") && self.elf.section(".dynamic").is_some()
    }

    pub fn is_x86_64(&self) -> bool {
        self.elf.machine == Machine::X86_64
    }

    /// One of the functions in [`FUNCTIONS`].
    pub fn function(&self, name: &str) -> Option<FuncRange> {
        self.functions.iter().find(|(n, _)| *n == name).map(|(_, r)| *r)
    }

    /// Functions by name, any, in one pass.
    ///
    /// # Errors
    /// When the table is damaged.
    pub fn find(&self, names: &[&str]) -> Result<Vec<Option<FuncRange>>, GoBinaryError> {
        Ok(self.table.find(names)?)
    }

    /// Machine code of a function.
    ///
    /// # Errors
    /// When the range is absurd or not in the file.
    pub fn code(&self, range: FuncRange) -> Result<Vec<u8>, GoBinaryError> {
        let len = range
            .end
            .checked_sub(range.entry)
            .filter(|l| *l <= MAX_CODE)
            .and_then(|l| usize::try_from(l).ok())
            .ok_or(GoBinaryError::Code(range.entry))?;
        let mut code = vec![0; len];
        self.elf.read(range.entry, &mut code)?;
        Ok(code)
    }

    /// Addresses between which type descriptors lie, where that is known.
    pub fn types(&self) -> Option<[u64; 2]> {
        self.types
    }

    /// The function whose code contains `vaddr`, with its own name.
    pub fn function_at(&self, vaddr: u64) -> Option<(String, FuncRange)> {
        let f = self.table.func(vaddr)?;
        Some((self.table.name(&f)?, f.range))
    }

    pub fn file_offset(&self, vaddr: u64) -> Option<u64> {
        self.elf.file_offset(vaddr)
    }

    /// Whether `vaddr` lies among the Go functions.
    pub fn is_go_code(&self, vaddr: u64) -> bool {
        (self.text.entry..self.text.end).contains(&vaddr)
    }

    /// What unwinding past `vaddr` needs to know; `None` when it lies in no Go
    /// function or that function does not say.
    pub fn unwind_step(&self, vaddr: u64) -> Option<UnwindStep> {
        let f = self.table.func(vaddr)?;
        Some(UnwindStep {
            sp_delta: self.table.sp_delta(&f, vaddr)?,
            entry: f.range.entry,
            top: f.is_top_frame(),
            writes_sp: f.writes_sp(),
            function: self.table.name(&f)?,
        })
    }

    /// Logical frames at instruction `vaddr`, innermost first, without the
    /// compiler's wrappers, as the runtime prints them.
    pub fn calls(&self, vaddr: u64) -> Vec<Call> {
        let Some(f) = self.table.func(vaddr) else { return Vec::new() };
        let mut calls = inline::calls(&self.table, &f, vaddr, |offset, buf| {
            self.elf.read(self.gofunc?.checked_add(offset)?, buf).ok()
        });
        if self.gofunc.is_none() {
            // Without the inline tree the position would be the inlined
            // callee's under its caller's name.
            calls.truncate(1);
        }
        let wrapper = wrapper_id(&self.version);
        calls.retain(|c| c.file != "<autogenerated>" && Some(c.id) != wrapper);
        calls
    }
}

/// `abi.FuncIDWrapper`: closures that `go f(x)` makes, and the like.
fn wrapper_id(version: &GoVersion) -> Option<u8> {
    match (version.major, version.minor) {
        (1, 18..=21) => Some(21),
        (1, 22..=24) => Some(22),
        (1, 25..=27) => Some(23),
        _ => None,
    }
}

/// Address, file offset and size of the pclntab.
fn locate(elf: &Elf) -> Option<(u64, u64, u64)> {
    for name in [".gopclntab", ".data.rel.ro.gopclntab"] {
        if let Some(s) = elf.section(name).filter(|s| s.size > pclntab::HEADER) {
            return Some((s.address, s.offset, s.size));
        }
    }
    // No section headers: the linker aligns it to 32 bytes.
    for s in elf.segments.iter().filter(|s| !s.executable) {
        const CHUNK: u64 = 1 << 20;
        let mut done = 0;
        while done < s.file_size {
            let len = (s.file_size - done).min(CHUNK);
            let mut chunk = vec![0; usize::try_from(len).ok()?];
            elf.read_offset(s.offset.checked_add(done)?, &mut chunk).ok()?;
            let hit = chunk.chunks(32).position(|c| {
                matches!(c.get(..8), Some([0xf0 | 0xf1, 0xff, 0xff, 0xff, 0, 0, 1 | 4, 8]))
            });
            if let Some(i) = hit {
                let at = done + i as u64 * 32;
                return Some((s.vaddr.checked_add(at)?, s.offset + at, s.file_size - at));
            }
            done += len;
        }
    }
    None
}
