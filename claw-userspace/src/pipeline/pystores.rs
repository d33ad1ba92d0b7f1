//! Who puts what into the containers that grow, while a window is open.

use claw_common::{PyEntry, PyStore};
use rustc_hash::{FxHashMap, FxHashSet};

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

    /// What came to sets, which do not keep it apart from the rest.
    pub fn came_to_sets(&self) -> FxHashSet<u64> {
        let any = self.set.is_some() && self.containers.iter().any(|(_, s)| s.kind == PyStore::SET);
        if any { self.windows.elements(self.pid) } else { FxHashSet::default() }
    }

    /// What came to a list, a deque or a set last is looked up at its next write,
    /// which it did not have yet.
    pub fn last(&self, live: &LivePython) -> FxHashMap<u64, PyEntry> {
        let memory = live.objects().memory;
        let of = |(at, store): &(u64, PyStore)| {
            let store = self.windows.store(self.pid, *at, store.kind);
            let store = store.filter(|s| s.pending > 0)?;
            Some((last(memory, *at, &store)?, store.entry))
        };
        self.containers.iter().filter_map(of).collect()
    }

    /// Who put an element there.
    pub fn entry(&self, last: &FxHashMap<u64, PyEntry>, element: u64) -> Option<PyEntry> {
        let known = || self.windows.entry(self.pid, PyStore::key(element));
        last.get(&element).copied().or_else(known)
    }
}

/// What came last to the container at an address.
fn last<M: Memory>(memory: &M, at: u64, store: &PyStore) -> Option<u64> {
    match store.kind {
        PyStore::LIST => {
            let items = memory.u64_at(at.checked_add(layout::LIST_ITEMS)?).ok()?;
            memory.u64_at(items.checked_add((store.pending - 1).checked_mul(8)?)?).ok()
        }
        PyStore::SET => {
            let word = |offset: u64| memory.u64_at(at.checked_add(offset)?).ok();
            let (table, mask) = (word(layout::SET_TABLE)?, word(layout::SET_MASK)?);
            store.places.iter().take(store.pending as usize).find_map(|place| {
                // The table may be another since.
                (place.checked_sub(table)? / layout::SET_ENTRY <= mask).then_some(())?;
                let key = memory.u64_at(*place).ok().filter(|key| *key != 0)?;
                let hash = memory.u64_at(place.checked_add(8)?).ok()?;
                (hash != layout::SET_DUMMY).then_some(key)
            })
        }
        _ => memory.u64_at(store.pending).ok(),
    }
}

/// Of `containers`, the one that grows fastest first, those that can be watched,
/// with how each is read.
pub fn readable(live: &LivePython, containers: &[u64]) -> Vec<(u64, PyStore)> {
    let objects = live.objects();
    let watched = containers.iter().filter_map(|at| Some((*at, store(&objects, *at)?)));
    watched.take(pystore::MOST).collect()
}

/// How what comes to a container is read; `None` where that is not known. Where a
/// deque ends is told by its first write.
fn store(objects: &Objects<'_, ProcessMemory>, at: u64) -> Option<PyStore> {
    let type_at = objects.memory.u64_at(at.checked_add(layout::OB_TYPE)?).ok()?;
    let typ = objects.type_at(type_at)?;
    let (has, deque) = (typ.flags, typ.name == "collections.deque");
    let set = type_at == objects.types.set;
    let kind = if has & flags::LIST_SUBCLASS != 0 {
        PyStore::LIST
    } else if deque {
        PyStore::DEQUE
    } else if set {
        PyStore::SET
    } else if has & flags::DICT_SUBCLASS == 0 {
        return None;
    } else if objects.layout.log2_keys {
        PyStore::DICT_LOG2
    } else {
        PyStore::DICT
    };
    let count = objects.memory.u64_at(at.checked_add(PyStore::count_at(kind))?).ok()?;
    Some(PyStore::new(kind, count))
}

#[cfg(test)]
mod tests {
    use claw_common::PyStore;

    #[test]
    fn the_end_at_which_an_element_came_to_a_deque() {
        let came = |(n, left, right), (m, l, r)| {
            PyStore::came_right(PyStore::ends(n, left, right), PyStore::ends(m, l, r))
        };
        assert_eq!(came((0, 32, 31), (1, 32, 32)), Some(true));
        assert_eq!(came((0, 32, 31), (1, 31, 31)), Some(false));
        // Into the next block, at either end.
        assert_eq!(came((100, 60, 31), (101, 60, 32)), Some(true));
        assert_eq!(came((64, 0, 63), (65, 0, 0)), Some(true));
        assert_eq!(came((64, 0, 63), (65, 63, 63)), Some(false));
        // `popleft` leaves the index behind the block's last for a moment.
        assert_eq!(PyStore::ends(2, 64, 1), PyStore::ends(2, 0, 1));
        // One that left; one that was rotated; a count that came before its index.
        assert_eq!(came((2, 10, 11), (1, 11, 11)), None);
        assert_eq!(came((3, 10, 12), (4, 8, 11)), None);
        assert_eq!(came((3, 10, 12), (4, 10, 12)), None);
        assert_eq!(came((4, 10, 12), (5, 10, 14)), None);
    }
}
