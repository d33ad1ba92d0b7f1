//! The program and maps of windows on CPython. Loaded when the first window
//! opens, apart from the others: their maps are large, and most runs need none.

use std::sync::{Mutex, PoisonError};

use aya::{
    EbpfLoader,
    maps::{HashMap, MapData},
};
use claw_common::{
    PyEntry, PyFrame, PyKey, PyLocal, PyStack, PyStackKey, PyStat, PyStore, PyTarget,
};
use rustc_hash::FxHashSet;

use super::{
    link::{Beside, Links, Loaded},
    native::Native,
    object::{OBJECT, ProbeError, take},
    pyplan::PyPlan,
    pystore::{Stored, Watchpoints},
};

const PROGRAM: &str = "py_alloc";
/// The maps that only these windows use; elsewhere they are kept small.
pub const LARGE_MAPS: [&str; 3] = ["PY_ENTRIES", "PY_STACKS", "PY_FRAMES"];
/// The maps that they do not use.
const OTHERS: [&str; 4] = ["EXACT_COUNTS", "EXACT_STACKS", "EXACT_TARGETS", "EXACT_WINDOWS"];
const SMALL_RING: u32 = 4096;

/// Opens windows; shared by the threads that each keep one process's.
pub struct PyWindows {
    program: Loaded,
    watchpoints: Mutex<Watchpoints>,
    native: Result<Native, String>,
    maps: Mutex<Maps>,
}

struct Maps {
    targets: HashMap<MapData, u32, PyTarget>,
    stats: HashMap<MapData, u32, PyStat>,
    types: HashMap<MapData, PyKey, u32>,
    entries: HashMap<MapData, PyKey, PyEntry>,
    stacks: HashMap<MapData, PyStackKey, PyStack>,
    frames: HashMap<MapData, PyStackKey, PyFrame>,
    locals: HashMap<MapData, PyKey, PyLocal>,
    stores: HashMap<MapData, PyKey, PyStore>,
}

/// A stack that was seen.
#[derive(Clone, Debug)]
pub struct SeenStack {
    pub hash: u64,
    /// Allocations.
    pub count: u64,
    /// Leaf first.
    pub frames: Vec<PyFrame>,
}

impl std::fmt::Debug for PyWindows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PyWindows").finish_non_exhaustive()
    }
}

impl PyWindows {
    /// # Errors
    /// When the kernel refuses, with the reason.
    pub fn load() -> Result<Self, ProbeError> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("EVENTS", SMALL_RING);
        for name in OTHERS {
            loader.map_max_entries(name, 1);
        }
        let mut bpf = loader.load(OBJECT).map_err(|e| ProbeError::Load(e.to_string()))?;
        let beside = Beside::new(OBJECT, &bpf)?;
        let program = beside.load(PROGRAM)?;
        let native = Native::load(&beside, &mut bpf).map_err(|e| e.to_string());
        let maps = Maps {
            targets: take(&mut bpf, "PY_TARGETS")?,
            stats: take(&mut bpf, "PY_STATS")?,
            types: take(&mut bpf, "PY_TYPES")?,
            entries: take(&mut bpf, "PY_ENTRIES")?,
            stacks: take(&mut bpf, "PY_STACKS")?,
            frames: take(&mut bpf, "PY_FRAMES")?,
            locals: take(&mut bpf, "PY_LOCALS")?,
            stores: take(&mut bpf, "PY_STORES")?,
        };
        let watchpoints = Mutex::new(Watchpoints::new(bpf));
        Ok(Self { program, watchpoints, native, maps: Mutex::new(maps) })
    }

    /// Windows on the C allocator.
    ///
    /// # Errors
    /// Why the kernel refused them.
    pub fn native(&self) -> Result<&Native, String> {
        self.native.as_ref().map_err(Clone::clone)
    }

    fn maps(&self) -> std::sync::MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attach with a clean account; nothing is written down before
    /// [`Self::set`] says so. `types` with their `type_word`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(
        &self,
        pid: u32,
        target: PyTarget,
        types: &[(u64, u32)],
        plan: &PyPlan,
    ) -> Result<Links, ProbeError> {
        self.set(pid, target)?;
        {
            let mut maps = self.maps();
            let at = |e| ProbeError::Map("PY_STATS", e);
            maps.stats.insert(pid, PyStat::default(), 0).map_err(at)?;
            for (address, word) in types {
                let at = |e| ProbeError::Map("PY_TYPES", e);
                maps.types.insert(key(pid, *address), word, 0).map_err(at)?;
            }
        }
        if plan.places.is_empty() {
            return Ok(Links::default());
        }
        self.program
            .attach(pid, &plan.file, &plan.places)
            .map_err(|source| ProbeError::Window { pid, source })
    }

    /// Watch what is put into containers, given with how to read each, until
    /// the result is dropped.
    ///
    /// # Errors
    /// When the kernel refuses, or all of the CPU's watchpoints are in use.
    pub fn watch(&self, pid: u32, containers: &[(u64, PyStore)]) -> Result<Stored, ProbeError> {
        let counts = containers.iter().map(|(at, store)| (count(*at, store.kind), store));
        {
            let mut maps = self.maps();
            for (count, store) in counts.clone() {
                let at = |e| ProbeError::Map("PY_STORES", e);
                maps.stores.insert(key(pid, count), store, 0).map_err(at)?;
            }
        }
        let mut watchpoints = self.watchpoints.lock().unwrap_or_else(PoisonError::into_inner);
        watchpoints.set(pid, counts.map(|(count, _)| count))
    }

    /// Of a container that is watched: what its latest write has left.
    pub fn store(&self, pid: u32, container: u64, kind: u64) -> Option<PyStore> {
        self.maps().stores.get(&key(pid, count(container, kind)), 0).ok()
    }

    /// # Errors
    /// When the map has no room.
    pub fn set(&self, pid: u32, target: PyTarget) -> Result<(), ProbeError> {
        self.maps().targets.insert(pid, target, 0).map_err(|e| ProbeError::Map("PY_TARGETS", e))
    }

    pub fn stat(&self, pid: u32) -> PyStat {
        self.maps().stats.get(&pid, 0).unwrap_or_default()
    }

    /// Say which local variable of a code object names a tenant. Without room
    /// its tenants stay unknown.
    pub fn local(&self, pid: u32, code: u64, local: PyLocal) {
        let _ = self.maps().locals.insert(key(pid, code), local, 0);
    }

    /// The stacks whose hash `known` does not know.
    pub fn stacks(&self, pid: u32, known: impl Fn(u64) -> bool) -> Vec<SeenStack> {
        let maps = self.maps();
        maps.stacks
            .iter()
            .filter_map(Result::ok)
            .filter(|(k, _)| k.tgid == pid && !known(k.hash))
            .map(|(k, stack)| {
                let frame = |index| maps.frames.get(&PyStackKey { index, ..k }, 0).ok();
                let frames = (0..stack.frames).map_while(frame).collect();
                SeenStack { hash: k.hash, count: stack.count, frames }
            })
            .collect()
    }

    /// Who allocated the block at an address last.
    pub fn entry(&self, pid: u32, address: u64) -> Option<PyEntry> {
        self.maps().entries.get(&key(pid, address), 0).ok()
    }

    /// The elements that came to its containers.
    pub fn elements(&self, pid: u32) -> FxHashSet<u64> {
        let maps = self.maps();
        let of_process = maps.entries.keys().filter_map(Result::ok).filter(|k| k.tgid == pid);
        of_process.filter_map(|k| PyStore::element(k.address)).collect()
    }

    /// Let a process go: everything about it is forgotten.
    pub fn remove(&self, pid: u32) {
        let mut maps = self.maps();
        let _ = maps.targets.remove(&pid);
        let _ = maps.stats.remove(&pid);
        forget(&mut maps.types, |k| k.tgid == pid);
        forget(&mut maps.entries, |k| k.tgid == pid);
        forget(&mut maps.locals, |k| k.tgid == pid);
        forget(&mut maps.stores, |k| k.tgid == pid);
        forget(&mut maps.stacks, |k| k.tgid == pid);
        forget(&mut maps.frames, |k| k.tgid == pid);
        drop(maps);
        if let Ok(native) = &self.native {
            native.remove(pid);
        }
    }
}

pub(super) fn forget<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    which: impl Fn(&K) -> bool,
) {
    let keys: Vec<K> = map.keys().filter_map(Result::ok).filter(which).collect();
    for key in keys {
        // One that the kernel has evicted meanwhile is gone as well.
        let _ = map.remove(&key);
    }
}

/// Address of a container's count of elements.
fn count(container: u64, kind: u64) -> u64 {
    container.wrapping_add(PyStore::count_at(kind))
}

fn key(tgid: u32, address: u64) -> PyKey {
    PyKey { address, tgid, _pad: 0 }
}
