//! The only place that wires the rooms: live processes into the stream
//! (`live`, `watched`), the stream into the engine, the recording and the
//! views (`sink`), or a recording into the engine (`replay`).

mod account;
mod child;
mod clock;
mod crowd;
mod duty;
mod every;
mod goroutines;
mod governor;
mod holders;
mod lines;
mod live;
mod looks;
mod memory;
mod naming;
mod nativegain;
mod nativewindow;
mod owner;
mod pace;
mod pygain;
mod pyready;
mod pystacks;
mod pystores;
mod python;
pub mod pywindow;
mod remote;
mod replay;
mod resident;
mod screen;
mod session;
mod sink;
mod steps;
mod still;
mod stop;
mod watched;
mod windows;

use std::{path::PathBuf, time::Duration};

use regex::Regex;

pub use goroutines::{DumpError, Judging, Source, goroutines, judged_goroutines};
pub use live::{run_command, watch};
pub use memory::State;
pub use replay::replay;
pub use sink::{Finished, Stdout, View};

use crate::{detect::fleet::Profiles, record, tenant::Rules};

/// Which processes to watch.
#[derive(Clone, Debug)]
pub enum Select {
    Pids(Vec<u32>),
    /// By name of the executable; also those that start later.
    Name(Regex),
    All,
}

/// How to watch.
#[derive(Clone, Debug)]
pub struct Options {
    pub duration: Option<Duration>,
    pub interval: Duration,
    /// Share of the machine's CPU time that probes may take from a target.
    pub max_overhead: f64,
    pub heap_rate: Option<u64>,
    /// Longest that a CPython process may be stopped to be copied; zero: never.
    pub max_pause: Duration,
    /// Have CPython processes collect their garbage where something grows.
    pub remote_exec: bool,
    /// Watch what descends from the processes asked for as well.
    pub children: bool,
    /// Count every allocation in windows.
    pub exact: Option<ExactOptions>,
    pub environment: Option<String>,
    pub tenants: Rules,
    pub threshold: f64,
    /// What is healthy; empty when not known.
    pub baseline: Profiles,
    /// Where what is ordinary for each tenant is kept between runs.
    pub state: State,
    pub ring_bytes: u32,
    pub record: Option<PathBuf>,
}

/// How exact mode is run.
#[derive(Clone, Debug, Default)]
pub struct ExactOptions {
    /// Where each allocation is written as a JSON line.
    pub stream: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Exit code 3.
    #[error("{0}")]
    NotPermitted(String),
    #[error("{0}")]
    Kernel(String),
    #[error("{0}")]
    NothingToWatch(String),
    #[error(transparent)]
    Probe(#[from] crate::probe::ProbeError),
    #[error(transparent)]
    State(#[from] crate::baseline::StoreError),
    #[error(transparent)]
    Record(#[from] record::WriteError),
    #[error(transparent)]
    Replay(#[from] record::ReadError),
    #[error("cannot start {command}: {source}")]
    Start { command: String, source: std::io::Error },
    #[error("cannot write the stream to {path}: {source}")]
    Stream { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Io(#[from] std::io::Error),
}
