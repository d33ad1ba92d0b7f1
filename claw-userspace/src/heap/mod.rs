//! The heap as a runtime itself accounts for it, at one moment: of a live
//! process or of a core dump, or the difference of two such moments.
//!
//! Each runtime has its own file that gives a [`Snapshot`]; grouping (`rows`)
//! and difference (`since`) do not know which runtime it was.

mod cpython;
mod go;
mod inside;
mod rows;
mod since;

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use rows::{Row, Values, rows};
pub use since::{SinceError, subtract};

use crate::{
    stream::Blocked,
    symbol::Location,
    target::{
        core::CoreError,
        cpython::{
            graph::paths::TypeHolders,
            live::{LiveError, LivePython},
            remote::LONGEST_COLLECTION,
        },
        go::{
            binary::GoBinary,
            memprofile::ProfileError,
            program::{GoProgram, OpenError},
        },
        process::Process,
    },
};

pub use crate::target::Source;
pub use inside::tracemalloc;

/// What rows are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Site,
    Type,
    Tenant,
}

/// What one stack (and object size, or type) holds. A difference may be
/// negative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Leaf first; empty where the runtime keeps none.
    pub stack: Vec<Location>,
    /// Bytes of each object, where all have the same.
    pub object_size: Option<i64>,
    pub type_name: Option<String>,
    pub values: Values,
}

/// A mapping of executable code, for tools that look addresses up themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeMapping {
    pub start: u64,
    pub end: u64,
    pub offset: u64,
    pub path: String,
}

/// The heap of one program at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub pid: Option<u32>,
    /// The dump it was read from.
    pub core: Option<PathBuf>,
    pub name: String,
    /// `go` or `cpython`.
    pub runtime: &'static str,
    pub version: String,
    /// Mean bytes between two samples; `None` when every object is counted,
    /// `Some(0)` when none is sampled.
    pub sample_rate: Option<u64>,
    pub samples: Vec<Sample>,
    pub code: Vec<CodeMapping>,
    /// What cannot be seen, or how far the numbers can be trusted.
    pub blocked: Vec<Blocked>,
    /// Who holds the objects of some types, where that was asked for.
    pub holders: Vec<TypeHolders>,
    /// What cannot be asked of this runtime, and why.
    pub cannot: Vec<(By, &'static str)>,
    /// Whose code a function is, for stacks that come from elsewhere.
    pub build: crate::target::go::buildinfo::BuildInfo,
}

#[derive(Debug, thiserror::Error)]
pub enum HeapError {
    /// Exit code 3.
    #[error("{0}")]
    NotPermitted(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error("{name}: the heap profile cannot be read: {source}")]
    Profile { name: String, source: ProfileError },
    #[error(transparent)]
    Python(#[from] LiveError),
    #[error(
        "{0} is neither a Go nor a CPython program: see `claw-ebpf discover` for what can be looked at"
    )]
    Runtime(String),
}

impl HeapError {
    pub fn is_permission(&self) -> bool {
        match self {
            Self::NotPermitted(_) => true,
            Self::Open(e) => e.is_permission(),
            _ => false,
        }
    }
}

/// Have a CPython process collect its garbage; gives how many objects it found
/// unreachable.
///
/// # Errors
/// In one line, why it was not done.
pub fn collect(pid: u32) -> Result<u64, String> {
    let process = Process::open(pid).map_err(|e| e.to_string())?;
    let live = LivePython::open(process).map_err(|e| e.to_string())?;
    live.collect(LONGEST_COLLECTION).map(|(found, _)| found).map_err(|e| e.to_string())
}

/// Look at the heap once. The runtime decides how. Names of types cost time, so
/// they are looked up only where rows are types. `holders`: also find out who
/// holds the largest, for which a live CPython process may be stopped for that
/// long.
///
/// # Errors
/// In one line, why it cannot be read.
pub fn read(source: &Source, by: By, holders: Option<Duration>) -> Result<Snapshot, HeapError> {
    match source {
        Source::Process(pid) => {
            let process = Process::open(*pid).map_err(OpenError::from)?;
            match GoProgram::open(&process, |exe| GoBinary::open(exe).map(Arc::new)) {
                Ok(program) => go::of_process(&process, &program, by),
                Err(e) if e.is_not_go() => cpython::of_process(&process, holders)?
                    .ok_or_else(|| HeapError::Runtime(format!("process {pid} ({})", process.name))),
                Err(e) => Err(e.into()),
            }
        }
        Source::Core { path, exe } => match GoProgram::of_core(path, exe.as_deref()) {
            Err(OpenError::Core(CoreError::Executable { exe: program, source }))
                if source.is_not_go() =>
            {
                cpython::of_core(path, exe.as_deref(), holders.is_some())?.ok_or_else(|| {
                    let (core, program) = (path.display(), program.display());
                    HeapError::Runtime(format!("core {core} (of {program})"))
                })
            }
            program => go::of_core(&program?, by),
        },
    }
}
