//! Who puts what into the containers that grow, while a window is open.

use claw_common::{PyEntry, PyStore};
use rustc_hash::FxHashMap;

use crate::{
    probe::{
        ProbeError, PyWindows,
        pystore::{self, Stored},
    },
    target::{
        cpython::{
            layout::{self, flags},
            live::LivePython,
            object::Objects,
        },
        memory::{Memory, ProcessMemory},
    },
};

/// The containers that are watched.
pub struct Stores<'a> {
    windows: &'a PyWindows,
    pid: u32,
    /// With how each is read.
    containers: &'a [(u64, PyStore)],
    set: Option<Stored>,
}

impl<'a> Stores<'a> {
    /// `containers` as [`readable`] gives them.
    pub fn new(windows: &'a PyWindows, pid: u32, containers: &'a [(u64, PyStore)]) -> Self {
        Self { windows, pid, containers, set: None }
    }

    /// # Errors
    /// When the kernel refuses: then it is only seen who allocates.
    pub fn set(&mut self) -> Result<(), ProbeError> {
        if !self.containers.is_empty() {
            self.set = Some(self.windows.watch(self.pid, self.containers)?);
        }
        Ok(())
    }

    /// How many are watched now.
    pub fn watched(&self) -> usize {
        self.set.as_ref().map_or(0, |_| self.containers.len())
    }

    /// What came to a list last is looked up at its next write, which it did not
    /// have yet.
    pub fn last(&self, live: &LivePython) -> FxHashMap<u64, PyEntry> {
        let memory = live.objects().memory;
        let of = |(at, _): &(u64, PyStore)| {
            let store = self.windows.store(self.pid, *at).filter(|s| s.pending > 0)?;
            let items = memory.u64_at(at.checked_add(layout::LIST_ITEMS)?).ok()?;
            let offset = (store.pending - 1).checked_mul(8)?;
            let element = memory.u64_at(items.checked_add(offset)?).ok()?;
            Some((element, store.entry))
        };
        self.containers.iter().filter_map(of).collect()
    }

    /// Who put an element there.
    pub fn entry(&self, last: &FxHashMap<u64, PyEntry>, element: u64) -> Option<PyEntry> {
        let known = || self.windows.entry(self.pid, PyStore::key(element));
        last.get(&element).copied().or_else(known)
    }
}

/// Of `containers`, the one that grows fastest first, those that can be watched,
/// with how each is read.
pub fn readable(live: &LivePython, containers: &[u64]) -> Vec<(u64, PyStore)> {
    let objects = live.objects();
    let watched = containers.iter().filter_map(|at| Some((*at, store(&objects, *at)?)));
    watched.take(pystore::MOST).collect()
}

/// How what comes to a container is read; `None` for one that keeps no order.
fn store(objects: &Objects<'_, ProcessMemory>, at: u64) -> Option<PyStore> {
    let type_at = objects.memory.u64_at(at.checked_add(layout::OB_TYPE)?).ok()?;
    let has = objects.type_at(type_at)?.flags;
    let count = objects.memory.u64_at(at.checked_add(u64::from(PyStore::COUNT))?).ok()?;
    let kind = if has & flags::LIST_SUBCLASS != 0 {
        PyStore::LIST
    } else if has & flags::DICT_SUBCLASS == 0 {
        return None;
    } else if objects.layout.log2_keys {
        PyStore::DICT_LOG2
    } else {
        PyStore::DICT
    };
    Some(PyStore::new(kind, count))
}
