//! A core dump of a Go program together with the program's executable.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Core, CoreError,
    executable::{Executable, fits, rest_of_page},
    read_all,
};
use crate::target::{
    elf::ElfError,
    go::binary::GoBinary,
    memory::{Memory, MemoryError},
};

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
        let Executable { path: exe, named } = Executable::of(&core, path, exe)?;
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
        let (bias, unchecked) = fits(&core, binary.elf(), named.as_deref()).map_err(wrong)?;
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
        let page = rest_of_page(address);
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
