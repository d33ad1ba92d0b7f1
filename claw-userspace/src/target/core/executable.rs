//! The executable that a dump was made with: which it is, where it was loaded,
//! and whether the file that is here is the same.

use std::path::{Path, PathBuf};

use super::{Core, CoreError, notes::Notes};
use crate::target::{elf::Elf, memory::Memory};

/// The linker keeps ELF header, program headers and the build id within this
/// many bytes, and dumps hold the page by default.
pub const FIRST_PAGE: u64 = 4096;
pub const PAGE: u64 = !0xfff;

/// Bytes from an address to the end of its page.
pub fn rest_of_page(address: u64) -> u64 {
    FIRST_PAGE - (address & !PAGE)
}

pub struct Executable {
    /// Where it is here.
    pub path: PathBuf,
    /// Its path as the dump knows it.
    pub named: Option<PathBuf>,
}

impl Executable {
    /// `given` is its path; without it the one that the dump at `path` names is
    /// taken.
    ///
    /// # Errors
    /// When neither says which it is.
    pub fn of(core: &Core, path: &Path, given: Option<&Path>) -> Result<Self, CoreError> {
        let named = executable(&core.notes).map(PathBuf::from);
        let found = given.map(Path::to_owned).or(named.clone());
        let path = found.ok_or_else(|| CoreError::NoExecutable { path: path.to_owned() })?;
        Ok(Self { path, named })
    }
}

/// What was added to the file's addresses when it was loaded, and why it could
/// not be checked that it is the right file.
///
/// # Errors
/// Why it is another.
pub fn fits(
    core: &Core,
    elf: &Elf,
    named: Option<&Path>,
) -> Result<(u64, Option<&'static str>), &'static str> {
    if elf.machine != core.machine {
        return Err("it is for another processor");
    }
    let bias = bias(elf, &core.notes, named)?;
    Ok((bias, check(core, elf, bias)?))
}

/// Path of the executable: what is mapped where the program begins, else the
/// mapping with the process's name.
fn executable(notes: &Notes) -> Option<&str> {
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
fn bias(elf: &Elf, notes: &Notes, named: Option<&Path>) -> Result<u64, &'static str> {
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
fn check(core: &Core, elf: &Elf, bias: u64) -> Result<Option<&'static str>, &'static str> {
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
