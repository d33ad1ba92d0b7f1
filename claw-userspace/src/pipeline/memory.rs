//! What a watch remembers of earlier ones: the rolling baselines go from the
//! store into the engine when it begins, and back while it runs.

use std::{ffi::OsStr, os::unix::fs::MetadataExt, path::PathBuf, time::Instant};

use super::{
    sink::Sink,
    steps::{failed, step},
};
use crate::{
    baseline::{HourOf, Store, StoreError},
    engine::Engine,
};

/// Where rolling baselines are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// $CLAW_EBPF_STATE, else the system's usual place if it can be written.
    #[default]
    Usual,
    Folder(PathBuf),
    Off,
}

impl State {
    /// DIR or `none`.
    pub fn named(text: &OsStr) -> Self {
        if text == "none" { Self::Off } else { Self::Folder(PathBuf::from(text)) }
    }

    /// What the environment says.
    fn resolved(&self) -> Self {
        match (self, std::env::var_os("CLAW_EBPF_STATE").filter(|v| !v.is_empty())) {
            (Self::Usual, Some(named)) => Self::named(&named),
            _ => self.clone(),
        }
    }

    /// /var/lib for root, else what the XDG base directories say.
    fn folder(&self) -> Option<PathBuf> {
        let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        match self {
            Self::Off => None,
            Self::Folder(path) => Some(path.clone()),
            Self::Usual if is_root() => Some(PathBuf::from("/var/lib/claw-ebpf")),
            Self::Usual => from("XDG_STATE_HOME")
                .or_else(|| Some(from("HOME")?.join(".local/state")))
                .map(|p| p.join("claw-ebpf")),
        }
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Open the store and go on from what it holds.
///
/// # Errors
/// When it is damaged, of another version, or a named folder is no place for it.
pub fn begin(state: &State, sink: &mut Sink) -> Result<(), StoreError> {
    const ACTION: &str = "Reading rolling baselines";
    let began = Instant::now();
    match Memory::open(&state.resolved())? {
        Some(Ok(memory)) => {
            let detail = sink.remember(memory)?;
            sink.put(step(ACTION, detail, began));
        }
        Some(Err(why)) => sink.put(failed(ACTION, why)),
        None => {}
    }
    Ok(())
}

/// Time between two saves, ns: each waits for the disk.
const EVERY_NS: u64 = 60_000_000_000;

#[derive(Debug)]
pub(super) struct Memory {
    store: Store,
    saved_ns: u64,
}

impl Memory {
    /// `Ok(Err(why))`: the watch goes on without, which is worth a word.
    ///
    /// # Errors
    /// When there is a store that cannot be understood, or a folder was named
    /// and cannot be written.
    pub fn open(state: &State) -> Result<Option<Result<Self, String>>, StoreError> {
        let Some(folder) = state.folder() else { return Ok(None) };
        match Store::open(&folder) {
            Ok(store) => Ok(Some(Ok(Self { store, saved_ns: 0 }))),
            Err(e @ StoreError::InUse(_)) => Ok(Some(Err(format!(
                "{e}: this watch knows nothing of earlier ones and keeps nothing"
            )))),
            Err(e @ StoreError::Io { .. }) if *state == State::Usual => {
                Ok(Some(Err(e.to_string())))
            }
            Err(e) => Err(e),
        }
    }

    /// Tell the engine what is known; gives words for the log.
    ///
    /// # Errors
    /// When a row makes no sense.
    pub fn recall(&self, engine: &mut Engine) -> Result<String, StoreError> {
        let hours = self.store.load(engine.hour())?;
        let n = hours.len();
        for (of, seen) in hours {
            engine.remember(of.process, of.tenant, of.hour, seen);
        }
        Ok(format!("{n} tenant-hours of the last 48 from {}", self.store.path().display()))
    }

    /// Save what was learned once a minute, or now. An error ends the memory,
    /// not the watch.
    pub fn keep(&mut self, engine: &mut Engine, now_ns: u64, now: bool) -> Result<(), StoreError> {
        if !now && now_ns.saturating_sub(self.saved_ns) < EVERY_NS {
            return Ok(());
        }
        self.saved_ns = now_ns;
        let hour = engine.hour();
        let row = |(process, tenant, seen)| (HourOf { hour, process, tenant }, seen);
        let rows: Vec<_> = engine.learned().into_iter().map(row).collect();
        if rows.is_empty() {
            return Ok(());
        }
        self.store.save(&rows, hour).map(|_| ())
    }
}
