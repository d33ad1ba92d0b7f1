//! A core dump of a Go program together with the program's executable.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Core, CoreError, notes::Notes, read_all};
use crate::target::{
    elf::{Elf, ElfError},
    go::binary::GoBinary,
    memory::{Memory, MemoryError},
};

/// The linker keeps ELF header, program headers and the build id within this
/// many bytes, and dumps hold the page by default.
pub(super) const FIRST_PAGE: u64 = 4096;
const PAGE: u64 = !0xfff;

/// A dump and the executable it is of. As [`Memory`] it also has the read-only
/// pages of the executable that a dump leaves out.
#[derive(Debug)]
pub struct GoCore {
    pub core: Core,
    pub exe: PathBuf,
    pub binary: Arc<GoBinary>,
    /// What was added to the file's addresses when it was loaded.
    pub bias: u64,
    /// Why it could not be checked that the executable is the right one;
    /// `None` when it was and is.
    pub unchecked: Option<&'static str>,
}

impl GoCore {
    /// `exe` is the executable; without it the path that the dump names is
    /// taken.
    ///
    /// # Errors
    /// When the dump or the executable cannot be read, or they do not belong
    /// together.
    pub fn open(path: &Path, exe: Option<&Path>) -> Result<Self, CoreError> {
        let core = Core::open(path)?;
        let named = executable(&core.notes).map(PathBuf::from);
        let no_executable = || CoreError::NoExecutable { path: path.to_owned() };
        let exe = exe.map(Path::to_owned).or(named.clone()).ok_or_else(no_executable)?;
        let unreadable = |source| CoreError::Executable { exe: exe.clone(), source };
        // The path may come from the dump, and opening a pipe would wait.
        match std::fs::metadata(&exe) {
            Ok(m) if m.is_file() => {}
            Ok(_) => {
                let e = ElfError::Format("not a regular file".to_owned());
                return Err(unreadable(Box::new(e.into())));
            }
            Err(e) => return Err(unreadable(Box::new(ElfError::Io(e).into()))),
        }
        let binary = Arc::new(GoBinary::open(&exe).map_err(|e| unreadable(Box::new(e)))?);
        let wrong =
            |why| CoreError::WrongExecutable { exe: exe.clone(), path: path.to_owned(), why };
        let elf = binary.elf();
        if elf.machine != core.machine {
            return Err(wrong("it is for another processor"));
        }
        let bias = bias(elf, &core.notes, named.as_deref()).map_err(wrong)?;
        let unchecked = check(&core, elf, bias).map_err(wrong)?;
        Ok(Self { core, exe, binary, bias, unchecked })
    }

    /// Read-only content of the executable at `address`, at most all of `buf`.
    fn file_content(&self, address: u64, buf: &mut [u8]) -> Option<usize> {
        let vaddr = address.wrapping_sub(self.bias);
        let elf = self.binary.elf();
        // Where the program may write, the file does not say what was there.
        let segment = elf.segment(vaddr).filter(|s| !s.writable)?;
        let left = segment.file_size.checked_sub(vaddr - segment.vaddr).filter(|l| *l > 0)?;
        // A page at a time: the next one may be in the dump again.
        let page = FIRST_PAGE - (address & !PAGE);
        let n = usize::try_from(left.min(page)).ok()?.min(buf.len());
        elf.read(vaddr, buf.get_mut(..n)?).ok()?;
        Some(n)
    }
}

impl Memory for GoCore {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        read_all(address, buf, |at, rest| match self.core.read_some(at, rest) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.file_content(at, rest).ok_or(e),
            other => other,
        })
    }
}

/// Path of the executable: what is mapped where the program begins, else the
/// mapping with the process's name.
pub(super) fn executable(notes: &Notes) -> Option<&str> {
    let begins = [notes.at_entry, notes.at_phdr];
    let by_address = begins.into_iter().flatten().find_map(|a| notes.mapped_at(a));
    let by_name = || {
        notes.mapped.iter().find(|m| {
            let file = m.path.rsplit('/').next().unwrap_or_default();
            !notes.name.is_empty() && file.starts_with(&notes.name)
        })
    };
    by_address.or_else(by_name).map(|m| m.path.as_str())
}

/// `named` is the executable's path as the dump knows it.
pub(super) fn bias(elf: &Elf, notes: &Notes, named: Option<&Path>) -> Result<u64, &'static str> {
    let first = elf.first_vaddr() & PAGE;
    let by_mapping = notes
        .mapped
        .iter()
        .filter(|m| Some(Path::new(&m.path)) == named)
        .map(|m| m.start.wrapping_sub(m.offset & PAGE))
        .min()
        .map(|start| start.wrapping_sub(first));
    let by_entry = notes.at_entry.map(|entry| entry.wrapping_sub(elf.entry));
    match (by_mapping.or(by_entry), elf.pie) {
        (Some(a), _) if by_entry.is_some_and(|b| a != b) => Err("it begins at another address"),
        (Some(0) | None, false) => Ok(0),
        (Some(bias), true) => Ok(bias),
        (Some(_), false) => Err("it was loaded at another address"),
        (None, true) => Err("the core does not say where it was loaded"),
    }
}

/// `Err` when the first page of the executable differs from the one in memory,
/// `Ok(Some)` with the reason when that cannot be told.
pub(super) fn check(
    core: &Core,
    elf: &Elf,
    bias: u64,
) -> Result<Option<&'static str>, &'static str> {
    let Some(first) = elf.segments.iter().find(|s| s.offset == 0 && !s.writable) else {
        return Ok(Some("its headers are not loaded into memory"));
    };
    let len = usize::try_from(first.file_size.min(FIRST_PAGE)).unwrap_or(0);
    let (mut memory, mut file) = (vec![0; len], vec![0; len]);
    if core.read(first.vaddr.wrapping_add(bias), &mut memory).is_err() {
        return Ok(Some("the core does not hold the page with its build id"));
    }
    if elf.read_offset(0, &mut file).is_err() || memory != file {
        return Err("its build id or headers differ");
    }
    Ok(elf.build_id.is_none().then_some("it has no build id"))
}
