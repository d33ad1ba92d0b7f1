//! A running CPython process: its census, and places of its containers.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    binary::{Python, PythonError},
    census::{self, Census},
    copy::{CopyError, MemoryCopy, Pause},
    graph::paths::{HeldTypes, held},
    holder::{self, Place},
    layout::{DEQUE_MAXLEN, LRU_CACHE, LRU_MAXSIZE, Layout, OB_TYPE},
    object::Objects,
    regions::{self, Region},
    running::{MAIN, Running, Thread},
    threads::{self, GENERATIONS, Offsets, interpreters},
    used_pools,
};
use crate::target::{
    memory::{Memory, ProcessMemory},
    process::{Process, ProcessError},
};

#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    #[error("process {pid} ({name}): {source}")]
    Python { pid: u32, name: String, source: PythonError },
    #[error("process {pid} ({name}): {why}")]
    Layout { pid: u32, name: String, why: String },
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("process {pid}: memory cannot be read: {source}")]
    Memory { pid: u32, source: io::Error },
}

impl LiveError {
    /// It is CPython, and its objects cannot be read: an unknown version or build.
    pub fn is_unknown(&self) -> bool {
        use PythonError::{Old, Symbol, Version};
        match self {
            Self::Python { source, .. } => matches!(source, Old(_) | Symbol { .. } | Version(_)),
            Self::Layout { .. } => true,
            Self::Process(_) | Self::Memory { .. } => false,
        }
    }

    pub fn is_not_permitted(&self) -> bool {
        match self {
            Self::Python { source, .. } => source.is_not_permitted(),
            Self::Process(e) => matches!(e, ProcessError::Permission(_)),
            Self::Memory { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Layout { .. } => false,
        }
    }
}

/// A process whose objects can be read.
#[derive(Debug)]
pub struct LivePython {
    pub process: Process,
    pub python: Python,
    layout: &'static Layout,
    memory: ProcessMemory,
}

/// What a window needs to know of a process.
#[derive(Clone, Copy, Debug)]
pub struct Inside {
    pub running: &'static Running,
    pub layout: &'static Layout,
    /// Where the address of the running thread's state stands.
    pub thread_at: u64,
    /// pymalloc's `usedpools`.
    pub used_pools: u64,
}

/// A census, with what lies around the pools.
#[derive(Clone, Debug)]
pub struct Taken {
    pub census: Census,
    /// Anonymous resident memory outside the pools, bytes: blocks of more than
    /// 512 bytes, C extensions, stacks. An estimate: it is the difference of
    /// two figures read one after the other.
    pub outside: u64,
    /// Bytes swapped out and not looked at.
    pub swapped: u64,
    pub took_ns: u64,
}

/// Who holds the objects of some types, from a copy of the memory.
#[derive(Clone, Debug)]
pub struct Holders {
    pub found: HeldTypes,
    pub pause: Pause,
    /// Spent on all of it.
    pub took_ns: u64,
}

impl LivePython {
    /// # Errors
    /// When it is no CPython process, or one whose layout is not known.
    pub fn open(process: Process) -> Result<Self, LiveError> {
        let (pid, name) = (process.pid, process.name.clone());
        let python = Python::of(&process).map_err(|source| LiveError::Python {
            pid,
            name: name.clone(),
            source,
        })?;
        let layout = python.layout().map_err(|why| LiveError::Layout { pid, name, why })?;
        let memory =
            ProcessMemory::open(pid).map_err(|source| LiveError::Memory { pid, source })?;
        Ok(Self { process, python, layout, memory })
    }

    pub fn objects(&self) -> Objects<'_, ProcessMemory> {
        Objects { memory: &self.memory, layout: self.layout, types: self.python.types }
    }

    /// Where its pools can be.
    ///
    /// # Errors
    /// When the process is gone or closed to the caller.
    pub fn regions(&self) -> Result<Vec<Region>, LiveError> {
        let pid = self.process.pid;
        regions::resident(pid, self.layout.pool_size as u64)
            .map(|r| r.regions)
            .map_err(|source| LiveError::Memory { pid, source })
    }

    /// Where its frames are, and what its allocator hands out next.
    ///
    /// # Errors
    /// In words, what is not known of it.
    pub fn inside(&self) -> Result<Inside, String> {
        let running = Running::of(self.python.version.minor)
            .ok_or_else(|| format!("frames of CPython {} are not known", self.python.version))?;
        let runtime = self.python.runtime;
        let word = |at: u64| self.memory.u64_at(at).map_err(|e| e.to_string());
        let thread_at = match running.thread {
            Thread::Current(offset) => runtime.wrapping_add(offset),
            Thread::Holder { gil, last_holder } => {
                let offsets = Offsets::of(self.python.version.minor, &self.memory, runtime)
                    .ok_or_else(|| {
                        format!("frames of this {} are not known", self.python.version)
                    })?;
                let interpreter = word(runtime.wrapping_add(offsets.interpreters + MAIN))?;
                word(interpreter.wrapping_add(gil))?.wrapping_add(last_holder)
            }
        };
        let used_pools = self
            .python
            .data
            .iter()
            .find_map(|r| used_pools::find(&self.memory, r.start, r.end))
            .ok_or("pymalloc's table of pools was not found")?;
        Ok(Inside { running, layout: self.layout, thread_at, used_pools })
    }

    /// How many it has, one where that is not known.
    pub fn interpreters(&self) -> usize {
        let (runtime, minor) = (self.python.runtime, self.python.version.minor);
        let offsets = Offsets::of(minor, &self.memory, runtime);
        offsets.map_or(1, |o| interpreters(&self.memory, runtime, minor, &o).count)
    }

    /// Garbage collections since the process began, of each generation and all
    /// interpreters, and whether the collector runs by itself; `None` where it is
    /// not known how they are counted.
    pub fn collections(&self) -> Option<([u64; GENERATIONS], bool)> {
        let (runtime, minor) = (self.python.runtime, self.python.version.minor);
        let offsets = Offsets::of(minor, &self.memory, runtime)?;
        threads::collections(&self.memory, runtime, minor, &offsets)
    }

    /// # Errors
    /// When the process is gone or closed to the caller.
    pub fn census(&self) -> Result<Taken, LiveError> {
        let pid = self.process.pid;
        let began = Instant::now();
        let resident = regions::resident(pid, self.layout.pool_size as u64)
            .map_err(|source| LiveError::Memory { pid, source })?;
        let census = census::take(&self.objects(), &resident.regions);
        let took_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let outside = self.process.memory_use()?.anon_bytes.saturating_sub(census.pool_bytes);
        Ok(Taken { census, outside, swapped: resident.swapped, took_ns })
    }

    /// Stop the process for no longer than `max_pause`, copy its memory, and
    /// find out who holds the objects of the types that `wanted` names.
    ///
    /// # Errors
    /// When it was not stopped, or not for long enough.
    pub fn holders(
        &self,
        max_pause: Duration,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Holders, CopyError> {
        let began = Instant::now();
        let (runtime, minor) = (self.python.runtime, self.python.version.minor);
        let offsets = Offsets::of(minor, &self.memory, runtime);
        // What frames hold would count as unreachable.
        if offsets.is_none() || Running::of(minor).is_none() {
            return Err(CopyError::Version(self.python.version));
        }
        let collecting =
            || offsets.is_some_and(|o| interpreters(&self.memory, runtime, minor, &o).collecting);
        let align = self.layout.pool_size as u64;
        let pid = self.process.pid;
        let (copy, pause) = MemoryCopy::take(pid, &self.memory, align, max_pause, collecting)?;
        let objects = Objects { memory: &copy, layout: self.layout, types: self.python.types };
        Ok(Holders {
            found: held(objects, runtime, &copy.regions(), wanted),
            pause,
            took_ns: u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// Whether the program is still the one that was opened: after an exec its
    /// memory is another.
    pub fn is_same_program(&self) -> bool {
        let type_ = self.python.types.type_;
        self.memory.u64_at(type_.wrapping_add(OB_TYPE)).is_ok_and(|t| t == type_)
    }

    /// Under which name a container is reachable.
    pub fn place(&self, modules: &[u64], container: u64) -> Option<Place> {
        holder::find(&self.objects(), modules, container)
    }

    /// The dict of a function with an `lru_cache`, and how many entries it keeps
    /// at most; `None` in it: all.
    pub fn cache(&self, function: u64) -> Option<(u64, Option<u64>)> {
        let word = |offset| self.memory.u64_at(function.checked_add(offset)?).ok();
        Some((word(LRU_CACHE)?, word(LRU_MAXSIZE).filter(|most| *most < 1 << 62)))
    }

    /// How many elements a deque keeps at most.
    pub fn maxlen(&self, deque: u64) -> Option<u64> {
        let most = self.memory.u64_at(deque.checked_add(DEQUE_MAXLEN)?).ok()?;
        (most < 1 << 62).then_some(most)
    }
}
