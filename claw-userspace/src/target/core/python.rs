//! A core dump of a CPython process together with the files it had mapped: the
//! executable, the library that holds CPython, C extensions. Dumps leave out
//! what files hold unchanged, and names of types are there.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustc_hash::FxHashMap;

use super::{
    Core, CoreError,
    executable::{Executable, FIRST_PAGE, PAGE, fits, rest_of_page},
    read_all,
};
use crate::target::{
    cpython::{
        binary::{Holds, Place, Python, PythonError, is_library},
        layout::{Layout, OB_TYPE},
        object::Objects,
        regions::{Region, joined},
    },
    elf::Elf,
    memory::{Memory, MemoryError},
};

/// Different files that are opened.
const MOST_FILES: usize = 4096;

/// A part of a file in memory.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    end: u64,
    offset: u64,
    file: usize,
}

/// A dump with the read-only content of the files that were mapped.
#[derive(Debug)]
struct Files {
    core: Core,
    files: Vec<Elf>,
    /// In order of address.
    parts: Vec<Part>,
}

/// A dump of a CPython process.
#[derive(Debug)]
pub struct PythonCore {
    pub exe: PathBuf,
    pub python: Python,
    pub layout: &'static Layout,
    /// Why it could not be checked that the executable is the right one.
    pub unchecked: Option<&'static str>,
    /// Files whose content is not known: they are gone, or have been replaced.
    pub absent: Vec<String>,
    files: Files,
}

impl PythonCore {
    /// `exe` is the executable; without it the path that the dump names is
    /// taken.
    ///
    /// # Errors
    /// When the dump cannot be read, is not of a CPython process, or was made
    /// with other files than those that are here.
    pub fn open(path: &Path, exe: Option<&Path>) -> Result<Self, CoreError> {
        let core = Core::open(path)?;
        let Executable { path: exe, named } = Executable::of(&core, path, exe)?;
        let wrong =
            |why| CoreError::WrongExecutable { exe: exe.clone(), path: path.to_owned(), why };
        let elf = open(&exe).map_err(|why| CoreError::Library {
            path: path.to_owned(),
            library: exe.display().to_string(),
            why,
        })?;
        let (_, unchecked) = fits(&core, &elf, named.as_deref()).map_err(wrong)?;
        let shared = Holds::of(&elf) != Holds::Python;
        let library = core.notes.mapped.iter().find(|m| shared && is_library(&m.path));
        let library = library.map(|m| m.path.clone());
        if shared && library.is_none() {
            return Err(python(path, PythonError::NotPython));
        }
        let mut files = Files { core, files: Vec::new(), parts: Vec::new() };
        let exe_name = named.as_ref().map(|n| n.display().to_string());
        let absent = files.add_all(exe_name.as_deref(), elf);
        let holder = library.or(exe_name).unwrap_or_default();
        let found = files.file(&holder).ok_or_else(|| CoreError::Library {
            path: path.to_owned(),
            library: holder.clone(),
            why: "it is not there, or not the same any more".into(),
        })?;
        let (elf, start) = found;
        let bias = start.wrapping_sub(elf.first_vaddr() & PAGE);
        let opened = if shared { Path::new(&holder) } else { exe.as_path() };
        let place = Place { opened, file: &holder, shared, bias };
        let found = Python::in_file(elf, &place, &files).map_err(|e| python(path, e))?;
        let layout =
            found.layout().map_err(|why| CoreError::Layout { path: path.to_owned(), why })?;
        // Everything is told by the type of types.
        let type_ = found.types.type_;
        let own_type = type_.checked_add(OB_TYPE).and_then(|at| files.u64_at(at).ok());
        if own_type != Some(type_) {
            let why = match (files.core.missing_bytes, own_type) {
                (0, Some(_)) => "its data are not CPython's: it was made with another file",
                (0, None) => "it does not hold the interpreter's own data",
                _ => "it is cut before the interpreter's own data: nothing can be told from it",
            };
            return Err(CoreError::Layout { path: path.to_owned(), why: why.into() });
        }
        Ok(Self { exe, python: found, layout, unchecked, absent, files })
    }

    pub fn core(&self) -> &Core {
        &self.files.core
    }

    pub fn objects(&self) -> Objects<'_, impl Memory + use<'_>> {
        Objects { memory: &self.files, layout: self.layout, types: self.python.types }
    }

    /// What the dump holds of writable memory: of no file, and all of it.
    pub fn regions(&self) -> (Vec<Region>, Vec<Region>) {
        let region = |(start, end)| Region { start, end };
        let mapped = &self.files.core.notes.mapped;
        let of_file = |r: &Region| mapped.iter().any(|m| m.start < r.end && r.start < m.end);
        let all: Vec<Region> = self.files.core.writable().map(region).collect();
        let anonymous = joined(all.iter().copied().filter(|r| !of_file(r)));
        (anonymous, joined(all.into_iter()))
    }

    /// The same memory, to be copied.
    pub fn memory(&self) -> &(impl Memory + use<>) {
        &self.files
    }
}

fn python(path: &Path, source: PythonError) -> CoreError {
    CoreError::Python { path: path.to_owned(), source: Box::new(source) }
}

/// The path comes from the dump, and opening a pipe would wait.
fn open(path: &Path) -> Result<Elf, String> {
    match std::fs::metadata(path) {
        Ok(m) if m.is_file() => Elf::open(path).map_err(|e| e.to_string()),
        Ok(_) => Err("not a regular file".into()),
        Err(e) => Err(e.to_string()),
    }
}

impl Files {
    /// Open what was mapped; `exe_elf` is the file under the name `exe_name`.
    /// Gives the names of those that cannot be used.
    fn add_all(&mut self, exe_name: Option<&str>, exe_elf: Elf) -> Vec<String> {
        let mut begins: FxHashMap<&str, u64> = FxHashMap::default();
        for m in self.core.notes.mapped.iter().filter(|m| m.offset == 0) {
            let start = begins.entry(&m.path).or_insert(m.start);
            *start = m.start.min(*start);
        }
        let mut exe = Some(exe_elf);
        let mut absent = Vec::new();
        let mut known: FxHashMap<&str, Option<usize>> = FxHashMap::default();
        for m in &self.core.notes.mapped {
            let full = known.len() >= MOST_FILES;
            let file = known.entry(&m.path).or_insert_with(|| {
                let elf = if exe_name == Some(&*m.path) { exe.take() } else { None };
                let checked = elf.is_some();
                let elf = elf.or_else(|| open(Path::new(&m.path)).ok()).filter(|_| !full);
                // Data files are mapped as well, and hold no types.
                let is_code = m.path.contains(".so") || exe_name == Some(&*m.path);
                let same = |elf: &Elf| {
                    checked || begins.get(&*m.path).is_some_and(|at| self.core.begins(elf, *at))
                };
                match elf.filter(same) {
                    Some(elf) => {
                        self.files.push(elf);
                        Some(self.files.len() - 1)
                    }
                    None => {
                        absent.extend(is_code.then(|| m.path.clone()));
                        None
                    }
                }
            });
            if let Some(file) = *file {
                self.parts.push(Part { start: m.start, end: m.end, offset: m.offset, file });
            }
        }
        self.parts.sort_unstable_by_key(|p| p.start);
        absent
    }

    /// The file of that name, and where it begins in memory.
    fn file(&self, name: &str) -> Option<(&Elf, u64)> {
        let m = self.core.notes.mapped.iter().find(|m| m.path == name)?;
        let part = self.parts.iter().find(|p| p.start == m.start)?;
        let of_file = self.parts.iter().filter(|p| p.file == part.file);
        let start = of_file.map(|p| p.start.wrapping_sub(p.offset)).min()?;
        Some((self.files.get(part.file)?, start))
    }

    /// Read-only content of a mapped file at `address`, at most all of `buf`.
    fn content(&self, address: u64, buf: &mut [u8]) -> Option<usize> {
        let i = self.parts.partition_point(|p| p.start <= address);
        let part = i.checked_sub(1).and_then(|i| self.parts.get(i))?;
        if address >= part.end {
            return None;
        }
        let offset = part.offset.checked_add(address - part.start)?;
        let elf = self.files.get(part.file)?;
        // Where the program may write, the file does not say what was there.
        let holds = |s: &&crate::target::elf::Segment| {
            offset.checked_sub(s.offset).is_some_and(|d| d < s.file_size)
        };
        let segment = elf.segments.iter().find(holds).filter(|s| !s.writable)?;
        let left = (part.end - address).min(segment.file_size - (offset - segment.offset));
        // A page at a time: the next one may be in the dump again.
        let page = rest_of_page(address);
        let n = usize::try_from(left.min(page)).ok()?.min(buf.len());
        elf.read_offset(offset, buf.get_mut(..n)?).ok()?;
        Some(n)
    }
}

impl Core {
    /// Whether what is in memory at `start` is the beginning of that file, with
    /// its build id.
    fn begins(&self, elf: &Elf, start: u64) -> bool {
        let first = elf.segments.iter().find(|s| s.offset == 0);
        let len = first.map_or(0, |s| s.file_size.min(FIRST_PAGE)) as usize;
        let (mut memory, mut file) = (vec![0; len], vec![0; len]);
        let read = self.read(start, &mut memory).is_ok() && elf.read_offset(0, &mut file).is_ok();
        len > 0 && read && memory == file
    }
}

impl Memory for Files {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        read_all(address, buf, |at, rest| match self.core.read_some(at, rest) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.content(at, rest).ok_or(e),
            other => other,
        })
    }
}
