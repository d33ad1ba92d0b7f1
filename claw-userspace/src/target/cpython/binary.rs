//! Which file of a process holds CPython, its version, and where its own
//! types are in memory. A stripped build exports them still.

use std::path::{Path, PathBuf};

use super::{layout::Layout, regions::Region};
use crate::target::{
    elf::{Elf, ElfError},
    memory::{Memory, MemoryError, ProcessMemory},
    process::{Process, ProcessError},
};

#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    #[error("not a CPython process: neither the executable nor a library exports _PyRuntime")]
    NotPython,
    #[error("{0} is CPython 3.6 or older (it has no _PyRuntime); 3.8 to 3.15 can be looked at")]
    Old(String),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Elf(#[from] ElfError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("{path} has no type {name} in its dynamic symbols")]
    Symbol { path: String, name: &'static str },
    #[error("the version of {0} cannot be told")]
    Version(String),
}

impl PythonError {
    pub fn is_not_python(&self) -> bool {
        matches!(self, Self::NotPython)
    }

    pub fn is_not_permitted(&self) -> bool {
        let denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
        match self {
            Self::Process(ProcessError::Permission(_)) => true,
            Self::Elf(ElfError::Io(e)) => denied(e),
            Self::Memory(e) => denied(&e.source),
            _ => false,
        }
    }
}

/// 3.`minor`.`patch`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub minor: u8,
    pub patch: u8,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "3.{}.{}", self.minor, self.patch)
    }
}

/// Addresses in the process of the types that everything else is told by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Types {
    pub type_: u64,
    pub module: u64,
    pub set: u64,
    /// 0 where they are not exported: then they are recognised nowhere.
    pub code: u64,
    pub str_: u64,
    pub int: u64,
}

/// CPython in one process.
#[derive(Clone, Debug)]
pub struct Python {
    pub version: Version,
    /// File that holds it, as the process names it.
    pub file: String,
    /// Whether that is a library and not the executable.
    pub shared: bool,
    pub stripped: bool,
    pub pie: bool,
    /// Where the agent finds that file.
    pub opened: PathBuf,
    /// What to add to an address in it to get the one in memory.
    pub bias: u64,
    /// Its writable data in memory.
    pub data: Vec<Region>,
    /// Address of `_PyRuntime`.
    pub runtime: u64,
    pub types: Types,
    debug_build: bool,
    free_threaded: bool,
}

/// Where a file that holds CPython is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Where the agent finds it, and as the process names it.
    pub opened: &'a Path,
    pub file: &'a str,
    pub shared: bool,
    /// What to add to an address in it to get the one in memory.
    pub bias: u64,
}

const NAMES: [&str; 9] = [
    "_PyRuntime",
    "PyType_Type",
    "PyModule_Type",
    "PySet_Type",
    "PyCode_Type",
    "PyUnicode_Type",
    "PyLong_Type",
    "Py_Version",
    "_Py_RefTotal",
];
/// What `_Py_RefTotal` became in 3.12: only debug builds have either.
const DEBUG_BUILD: &str = "_Py_IncRefTotal_DO_NOT_USE_THIS";
/// Longest `.rodata` searched for the version.
const MAX_RODATA: u64 = 64 << 20;

impl Python {
    /// # Errors
    /// When the process does not run CPython, or which one cannot be told.
    pub fn of(process: &Process) -> Result<Self, PythonError> {
        let executable = process.exe_path();
        let elf = Elf::open(&executable)?;
        match Holds::of(&elf) {
            Holds::Python => {
                return Self::in_process(process, &elf, &executable, &process.exe, false);
            }
            Holds::Old => return Err(PythonError::Old(process.exe.clone())),
            Holds::Nothing => {}
        }
        let library = process
            .mappings()?
            .into_iter()
            .find(|m| is_library(&m.path))
            .ok_or(PythonError::NotPython)?;
        let opened = library.opened(process.pid);
        let elf = Elf::open(&opened)?;
        if Holds::of(&elf) == Holds::Old {
            return Err(PythonError::Old(library.path));
        }
        Self::in_process(process, &elf, &opened, &library.path, true)
    }

    fn in_process(
        process: &Process,
        elf: &Elf,
        opened: &Path,
        file: &str,
        shared: bool,
    ) -> Result<Self, PythonError> {
        let bias = bias(process, elf, file)?;
        let memory = ProcessMemory::open(process.pid).map_err(ElfError::Io)?;
        Self::in_file(elf, &Place { opened, file, shared, bias }, &memory)
    }

    /// # Errors
    /// When the file does not hold CPython, or which one cannot be told.
    pub fn in_file(
        elf: &Elf,
        &Place { opened, file, shared, bias }: &Place<'_>,
        memory: &impl Memory,
    ) -> Result<Self, PythonError> {
        let symbols = elf.dynamic_symbols(|n| NAMES.contains(&n) || n == DEBUG_BUILD);
        let find = |name| symbols.iter().find(|(n, _)| n == name).map(|(_, a)| *a);
        let need = |name: &'static str| {
            find(name).ok_or_else(|| PythonError::Symbol { path: file.to_owned(), name })
        };
        let (runtime, type_) = (need("_PyRuntime")?, need("PyType_Type")?);
        let (module, set) = (need("PyModule_Type")?, need("PySet_Type")?);
        let version = find("Py_Version")
            .and_then(|at| from_hex(elf.u64_at(at).ok()?))
            .or_else(|| from_rodata(elf))
            .ok_or_else(|| PythonError::Version(file.to_owned()))?;
        let runtime = runtime.wrapping_add(bias);
        Ok(Self {
            version,
            file: file.to_owned(),
            shared,
            stripped: !elf.has_symbols,
            pie: elf.pie && !shared,
            runtime,
            types: Types {
                type_: type_.wrapping_add(bias),
                module: module.wrapping_add(bias),
                set: set.wrapping_add(bias),
                code: find("PyCode_Type").map_or(0, |a| a.wrapping_add(bias)),
                str_: find("PyUnicode_Type").map_or(0, |a| a.wrapping_add(bias)),
                int: find("PyLong_Type").map_or(0, |a| a.wrapping_add(bias)),
            },
            opened: opened.to_owned(),
            bias,
            data: elf
                .segments
                .iter()
                .filter(|s| s.writable)
                .map(|s| Region {
                    start: s.vaddr.wrapping_add(bias),
                    end: s.vaddr.wrapping_add(bias).saturating_add(s.mem_size),
                })
                .collect(),
            debug_build: find("_Py_RefTotal").or_else(|| find(DEBUG_BUILD)).is_some(),
            free_threaded: version.minor >= 13 && free_threaded(memory, runtime)?,
        })
    }

    /// The layout of its objects.
    ///
    /// # Errors
    /// In words, why it is not known.
    pub fn layout(&self) -> Result<&'static Layout, String> {
        if self.free_threaded {
            return Err("a free-threaded build: its objects do not lie in pymalloc pools".into());
        }
        if self.debug_build {
            return Err("a debug build: its objects have other layouts".into());
        }
        Layout::of(self.version.minor).ok_or_else(|| {
            format!("object layouts of CPython {} are not known (3.8 to 3.15 are)", self.version)
        })
    }
}

/// Whether a file of that name may be CPython's library.
pub fn is_library(path: &str) -> bool {
    let name = path.rsplit('/').next();
    name.is_some_and(|n| n.starts_with("libpython3") || n.starts_with("libpython2"))
}

/// What a file holds of CPython, by the names it exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Nothing,
    /// One that is too old to have `_PyRuntime`.
    Old,
    Python,
}

impl Holds {
    pub fn of(elf: &Elf) -> Self {
        let telling = ["_PyRuntime", "Py_InitializeEx"];
        let found = elf.dynamic_symbols(|n| telling.contains(&n));
        match found.iter().any(|(name, _)| name == "_PyRuntime") {
            true => Self::Python,
            false if found.is_empty() => Self::Nothing,
            false => Self::Old,
        }
    }
}

/// What to add to an address in `file` to get the one in memory.
fn bias(process: &Process, elf: &Elf, file: &str) -> Result<u64, PythonError> {
    if file == process.exe {
        return Ok(process.load_bias(elf.first_vaddr())?);
    }
    let page = !0xfffu64;
    process
        .mappings()?
        .iter()
        .filter(|m| m.path == file)
        .map(|m| m.start.wrapping_sub(m.offset & page))
        .min()
        .map(|start| start.wrapping_sub(elf.first_vaddr() & page))
        .ok_or(PythonError::NotPython)
}

/// `PY_VERSION_HEX`: major, minor, patch, level and serial.
fn from_hex(hex: u64) -> Option<Version> {
    let byte = |shift: u32| (hex >> shift & 0xff) as u8;
    (byte(24) == 3 && hex >> 32 == 0).then(|| Version { minor: byte(16), patch: byte(8) })
}

/// `PY_VERSION` among the constants, as builds before `Py_Version` (3.11) have
/// it.
fn from_rodata(elf: &Elf) -> Option<Version> {
    let section = elf.section(".rodata").filter(|s| s.size <= MAX_RODATA)?;
    let mut bytes = vec![0; usize::try_from(section.size).ok()?];
    elf.read_offset(section.offset, &mut bytes).ok()?;
    // Of 3.7 no more is known than that it is 3.7.
    let find = |minors: std::ops::RangeInclusive<u8>| {
        bytes.split(|b| *b == 0).find_map(|text| version_text(text, &minors))
    };
    find(8..=10).or_else(|| find(7..=7))
}

/// The linker may have merged it into the tail of a longer constant: a path
/// such as `/usr/lib/3.9.18`.
fn version_text(text: &[u8], minors: &std::ops::RangeInclusive<u8>) -> Option<Version> {
    let part = |b: &u8| b.is_ascii_digit() || matches!(b, b'.' | b'+');
    let start = text.iter().rposition(|b| !part(b)).map_or(0, |i| i + 1);
    let text = std::str::from_utf8(text.get(start..)?).ok()?;
    let (minor, patch) = text.strip_prefix("3.")?.split_once('.')?;
    let patch = patch.trim_end_matches('+');
    let minor: u8 = minor.parse().ok().filter(|m| minors.contains(m))?;
    Some(Version { minor, patch: patch.parse().ok()? })
}

/// `_Py_DebugOffsets.free_threaded` (`pycore_debug_offsets.h`, 3.13+): cookie,
/// version, then the flag.
fn free_threaded(memory: &impl Memory, runtime: u64) -> Result<bool, MemoryError> {
    let cookie = memory.u64_at(runtime)?;
    Ok(cookie == u64::from_le_bytes(*b"xdebugpy") && memory.u64_at(runtime + 16)? != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(from_hex(0x030b_02f0), Some(Version { minor: 11, patch: 2 }));
        assert_eq!(from_hex(0x0207_12f0), None);
        let version_text = |text: &[u8]| version_text(text, &(8..=10));
        assert_eq!(version_text(b"3.9.18"), Some(Version { minor: 9, patch: 18 }));
        assert_eq!(version_text(b"3.10.13+").unwrap().to_string(), "3.10.13");
        assert_eq!(version_text(b"/opt/Python-3.8.18"), Some(Version { minor: 8, patch: 18 }));
        for other in [&b"3.0.15"[..], b"3.8", b"1.2.11", b"3.9.x", b"", b"\xff\xff\xff\xff\xff"] {
            assert_eq!(version_text(other), None);
        }
    }

    #[test]
    fn not_python() {
        let me = Process::open(std::process::id()).unwrap();
        assert!(Python::of(&me).unwrap_err().is_not_python());
    }
}
