//! A Go program opened for reading, running or in a dump: its executable, where
//! that was loaded, where its runtime keeps what, and its memory.

use std::{io, path::Path, sync::Arc};

use super::{
    binary::{GoBinary, GoBinaryError},
    layout::{GoLayout, LayoutError},
    memprofile::{self, HeapProfile, ProfileError, Variables},
};
use crate::{
    report::clean::clean,
    target::{
        core::{CoreError, go::GoCore},
        memory::{Memory, ProcessMemory},
        process::{Process, ProcessError},
    },
};

#[derive(Debug)]
pub struct GoProgram<M> {
    /// As messages name it.
    pub name: String,
    pub binary: Arc<GoBinary>,
    pub layout: &'static GoLayout,
    /// What was added to the file's addresses when it was loaded.
    pub bias: u64,
    pub memory: M,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error("{name}: {source}")]
    Binary { name: String, source: GoBinaryError },
    #[error("{name}: heap, goroutines and tenants cannot be read: {source}")]
    Layout { name: String, source: LayoutError },
    #[error("{0}: not permitted to read its memory: run as root, or see `claw-ebpf doctor`")]
    Permission(String),
    #[error("{name}: its memory cannot be read: {source}")]
    Memory { name: String, source: io::Error },
}

impl OpenError {
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Permission(_) | Self::Process(ProcessError::Permission(_)))
    }

    pub fn is_not_go(&self) -> bool {
        matches!(self, Self::Binary { source, .. } if source.is_not_go())
    }
}

impl<M: Memory> GoProgram<M> {
    /// The runtime's own heap profile.
    ///
    /// # Errors
    /// When it cannot be found or makes no sense.
    pub fn heap_profile(&self) -> Result<HeapProfile, ProfileError> {
        let variables = Variables::find(&self.binary, self.bias)?;
        memprofile::read(&self.memory, self.layout, &variables)
    }
}

impl GoProgram<ProcessMemory> {
    /// `binary` opens the executable.
    ///
    /// # Errors
    /// In one line, why it cannot be read.
    pub fn open(
        process: &Process,
        binary: impl FnOnce(&Path) -> Result<Arc<GoBinary>, GoBinaryError>,
    ) -> Result<Self, OpenError> {
        let name = format!("process {} ({})", process.pid, clean(&process.name));
        let binary = binary(&process.exe_path())
            .map_err(|source| OpenError::Binary { name: name.clone(), source })?;
        let layout = layout(&binary, &name)?;
        let bias = process.load_bias(binary.elf().first_vaddr())?;
        let memory = ProcessMemory::open(process.pid).map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => OpenError::Permission(name.clone()),
            _ => OpenError::Memory { name: name.clone(), source },
        })?;
        Ok(Self { name, binary, layout, bias, memory })
    }
}

impl GoProgram<GoCore> {
    /// `exe` is the executable; without it the path that the dump names is
    /// taken.
    ///
    /// # Errors
    /// In one line, why it cannot be read.
    pub fn of_core(path: &Path, exe: Option<&Path>) -> Result<Self, OpenError> {
        let core = GoCore::open(path, exe)?;
        let name = format!("core {}", path.display());
        let binary = Arc::clone(&core.binary);
        Ok(Self { layout: layout(&binary, &name)?, bias: core.bias, name, binary, memory: core })
    }
}

fn layout(binary: &GoBinary, name: &str) -> Result<&'static GoLayout, OpenError> {
    GoLayout::of(&binary.version)
        .map_err(|source| OpenError::Layout { name: name.to_owned(), source })
}
