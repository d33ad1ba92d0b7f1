//! Exact mode's program and maps: opens windows and reads what was counted.
//! Shared by the threads that each keep one target's windows.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, StackTraceMap},
};
use claw_common::{ExactKey, ExactTarget, ExactValue, WindowStat};

use super::{
    batch,
    every::EveryPoint,
    link::{Beside, Links, Loaded, Place, data},
    object::{ProbeError, take},
};

const PROGRAM: &str = "go_exact";
/// The maps that only exact mode uses; otherwise they are kept small.
pub const LARGE_MAPS: [&str; 2] = [COUNTS, "EXACT_STACKS"];
const COUNTS: &str = "EXACT_COUNTS";

/// What was counted so far.
pub type Counts = Vec<(ExactKey, ExactValue)>;

pub struct Exact {
    program: Loaded,
    maps: Mutex<Maps>,
    /// Of the map in [`Maps::counts`].
    counts: OwnedFd,
}

struct Maps {
    targets: HashMap<MapData, u32, ExactTarget>,
    windows: HashMap<MapData, u32, WindowStat>,
    counts: HashMap<MapData, ExactKey, ExactValue>,
    stacks: StackTraceMap<MapData>,
}

impl Exact {
    /// Takes its own maps out of `bpf`.
    ///
    /// # Errors
    /// When the kernel refuses, with the reason.
    pub fn load(programs: &Beside, bpf: &mut Ebpf) -> Result<Self, ProbeError> {
        let program = programs.load(PROGRAM)?;
        let counts = bpf.map(COUNTS).and_then(data).ok_or(ProbeError::Missing(COUNTS))?;
        let counts = counts.fd().as_fd().try_clone_to_owned();
        let counts = counts.map_err(|e| ProbeError::Load(e.to_string()))?;
        let maps = Maps {
            targets: take(bpf, "EXACT_TARGETS")?,
            windows: take(bpf, "EXACT_WINDOWS")?,
            counts: take(bpf, COUNTS)?,
            stacks: take(bpf, "EXACT_STACKS")?,
        };
        Ok(Self { program, maps: Mutex::new(maps), counts })
    }

    /// Whether one link carries all probes of a window.
    pub fn one_link(&self) -> bool {
        self.program.multi()
    }

    fn maps(&self) -> std::sync::MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attach with `target` (not active) and a clean account.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(
        &self,
        pid: u32,
        target: ExactTarget,
        points: &[EveryPoint],
    ) -> Result<Links, ProbeError> {
        self.set(pid, target)?;
        let empty = WindowStat::default();
        let at = |e| ProbeError::Map("EXACT_WINDOWS", e);
        self.maps().windows.insert(pid, empty, 0).map_err(at)?;
        let place = |p: &EveryPoint| Place { file_offset: p.file_offset, cookie: p.site as u64 };
        let places: Vec<Place> = points.iter().map(place).collect();
        let file = PathBuf::from(format!("/proc/{pid}/exe"));
        self.program
            .attach(pid, &file, &places)
            .map_err(|source| ProbeError::Window { pid, source })
    }

    /// # Errors
    /// When the map has no room.
    pub fn set(&self, pid: u32, target: ExactTarget) -> Result<(), ProbeError> {
        self.maps().targets.insert(pid, target, 0).map_err(|e| ProbeError::Map("EXACT_TARGETS", e))
    }

    pub fn stat(&self, pid: u32) -> WindowStat {
        self.maps().windows.get(&pid, 0).unwrap_or_default()
    }

    /// Everything counted for `pid` and not forgotten.
    pub fn counts(&self, pid: u32) -> Counts {
        let all = batch::entries::<ExactKey, ExactValue>(&self.counts);
        // Older kernels give one entry at a time.
        let mut all = all.unwrap_or_else(|_| {
            let maps = self.maps();
            maps.counts.iter().filter_map(Result::ok).collect()
        });
        all.retain(|(k, _)| k.tgid == pid);
        all
    }

    /// Make room: only while no window of its process is open.
    pub fn forget(&self, keys: &Counts) {
        let mut maps = self.maps();
        for (key, _) in keys {
            // One that is gone already is as well.
            let _ = maps.counts.remove(key);
        }
    }

    /// Let the process go.
    pub fn remove(&self, pid: u32) {
        let counts = self.counts(pid);
        self.forget(&counts);
        let mut maps = self.maps();
        let _ = maps.targets.remove(&pid);
        let _ = maps.windows.remove(&pid);
    }

    /// Return addresses of a stack, leaf first; empty when it is not there.
    pub fn stack(&self, id: i32) -> Vec<u64> {
        let Ok(id) = u32::try_from(id) else { return Vec::new() };
        self.maps()
            .stacks
            .get(&id, 0)
            .map(|s| s.frames().iter().map(|f| f.ip).collect())
            .unwrap_or_default()
    }
}
