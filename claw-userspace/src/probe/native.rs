//! Windows on a C allocator: where their probes sit, and their programs and
//! maps. Loaded with those of [`super::PyWindows`], whose stacks they share.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use claw_common::{
    NativeEntry, NativeSite, NativeStack, NativeStat, NativeTarget, PyKey, PyStackKey,
};
use rustc_hash::FxHashMap;

use super::{
    cfunction::{self, Where},
    link::{Beside, Links, Loaded, Place},
    object::{ProbeError, take},
    pywindow::forget,
    site::C_ARGUMENTS,
};
use crate::target::{allocator::Allocator, elf::Elf};

const ALLOCATE: [(&str, NativeSite); 6] = [
    ("malloc", NativeSite::Size),
    ("calloc", NativeSite::Count),
    ("realloc", NativeSite::Resize),
    ("memalign", NativeSite::Aligned),
    ("aligned_alloc", NativeSite::Aligned),
    ("mmap", NativeSite::Map),
];
const RELEASE: [(&str, NativeSite); 3] =
    [("free", NativeSite::Free), ("realloc", NativeSite::Resize), ("munmap", NativeSite::Unmap)];

/// The probes of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativePlan {
    pub file: PathBuf,
    /// At the entry and the return of what allocates.
    allocate: Vec<Place>,
    /// At the first instructions of what frees.
    release: Vec<Place>,
    pub functions: Vec<&'static str>,
    /// Some sit at an instruction that the kernel has to step.
    pub stepped: bool,
}

impl NativePlan {
    /// # Errors
    /// In words, when the file cannot be read or lacks what it needs.
    pub fn of(allocator: &Allocator) -> Result<Self, String> {
        let elf = Elf::open(&allocator.opened).map_err(|e| format!("{}: {e}", allocator.file))?;
        let wanted = |n: &str| ALLOCATE.iter().chain(&RELEASE).any(|(name, _)| *name == n);
        let symbols = elf.dynamic_symbols(wanted);
        let mut plan = Self {
            file: allocator.opened.clone(),
            allocate: Vec::new(),
            release: Vec::new(),
            functions: Vec::new(),
            stepped: false,
        };
        let entry = |name| symbols.iter().find(|(n, _)| n == name).map(|(_, at)| *at);
        for (name, site) in ALLOCATE {
            let Some(at) = entry(name) else { continue };
            let Some(place) = plan.place(&elf, name, at, Where::Entry, site)? else { continue };
            // `aligned_alloc` may be another name of `memalign`.
            if plan.allocate.iter().all(|p| p.file_offset != place.file_offset) {
                plan.allocate.push(place);
                plan.functions.push(name);
            }
        }
        for (name, site) in RELEASE {
            let Some(at) = entry(name) else { continue };
            let needed =
                if site == NativeSite::Unmap { &C_ARGUMENTS[..] } else { &C_ARGUMENTS[..1] };
            if let Some(place) = plan.place(&elf, name, at, Where::With(needed), site)? {
                plan.release.push(place);
                if !plan.functions.contains(&name) {
                    plan.functions.push(name);
                }
            }
        }
        for name in ["malloc", "free"] {
            if !plan.functions.contains(&name) {
                return Err(format!("{} exports no {name} that could be probed", allocator.file));
            }
        }
        Ok(plan)
    }

    fn place(
        &mut self,
        elf: &Elf,
        name: &str,
        entry: u64,
        at: Where<'_>,
        site: NativeSite,
    ) -> Result<Option<Place>, String> {
        let place = cfunction::place(elf, entry, at, site as u64);
        let place = place.map_err(|e| format!("code of {name}: {e}"))?;
        self.stepped |= place.is_some_and(|(_, stepped)| stepped);
        Ok(place.map(|(place, _)| place))
    }
}

/// The maps that only these windows use; elsewhere they are kept small.
pub const LARGE_MAPS: [&str; 4] =
    ["NATIVE_ENTRIES", "NATIVE_STACKS", "NATIVE_FREED", "NATIVE_FLIGHTS"];

pub struct Native {
    enter: Loaded,
    leave: Loaded,
    free: Loaded,
    maps: Mutex<Maps>,
}

struct Maps {
    targets: HashMap<MapData, u32, NativeTarget>,
    stats: HashMap<MapData, u32, NativeStat>,
    entries: HashMap<MapData, PyKey, NativeEntry>,
    stacks: HashMap<MapData, PyStackKey, NativeStack>,
    freed: HashMap<MapData, PyKey, u64>,
}

/// The probes of an open window.
pub struct Opened {
    /// On what allocates: dropped when nothing new is to be written down.
    pub allocate: Links,
    pub release: Links,
}

impl Native {
    /// # Errors
    /// When the kernel refuses a program, with the reason.
    pub fn load(beside: &Beside, bpf: &mut Ebpf) -> Result<Self, ProbeError> {
        let (enter, leave) = (beside.load("native_enter")?, beside.load("native_leave")?);
        let free = beside.load("native_free")?;
        let maps = Maps {
            targets: take(bpf, "NATIVE_TARGETS")?,
            stats: take(bpf, "NATIVE_STATS")?,
            entries: take(bpf, "NATIVE_ENTRIES")?,
            stacks: take(bpf, "NATIVE_STACKS")?,
            freed: take(bpf, "NATIVE_FREED")?,
        };
        Ok(Self { enter, leave, free, maps: Mutex::new(maps) })
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Attach with a clean account; nothing is written down before
    /// [`Self::set`] says so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(
        &self,
        pid: u32,
        target: NativeTarget,
        plan: &NativePlan,
    ) -> Result<Opened, ProbeError> {
        self.set(pid, target)?;
        let at = |e| ProbeError::Map("NATIVE_STATS", e);
        self.maps().stats.insert(pid, NativeStat::default(), 0).map_err(at)?;
        let refused = |source| ProbeError::Window { pid, source };
        let release = self.free.attach(pid, &plan.file, &plan.release).map_err(refused)?;
        let mut allocate = self.enter.attach(pid, &plan.file, &plan.allocate).map_err(refused)?;
        let leave = self.leave.attach_returns(pid, &plan.file, &plan.allocate).map_err(refused)?;
        allocate.add(leave);
        Ok(Opened { allocate, release })
    }

    /// # Errors
    /// When the map has no room.
    pub fn set(&self, pid: u32, target: NativeTarget) -> Result<(), ProbeError> {
        let at = |e| ProbeError::Map("NATIVE_TARGETS", e);
        self.maps().targets.insert(pid, target, 0).map_err(at)
    }

    pub fn stat(&self, pid: u32) -> NativeStat {
        self.maps().stats.get(&pid, 0).unwrap_or_default()
    }

    /// What was allocated and not freed.
    pub fn entries(&self, pid: u32) -> Vec<NativeEntry> {
        let maps = self.maps();
        let of = maps.entries.iter().filter_map(Result::ok).filter(|(k, _)| k.tgid == pid);
        of.map(|(_, entry)| entry).collect()
    }

    /// By the stack's hash.
    pub fn stacks(&self, pid: u32) -> FxHashMap<u64, NativeStack> {
        let maps = self.maps();
        let of = maps.stacks.iter().filter_map(Result::ok).filter(|(k, _)| k.tgid == pid);
        of.map(|(k, stack)| (k.hash, stack)).collect()
    }

    /// How many were freed that had been there before, by size class.
    pub fn freed(&self, pid: u32) -> FxHashMap<u64, u64> {
        let maps = self.maps();
        let of = maps.freed.iter().filter_map(Result::ok).filter(|(k, _)| k.tgid == pid);
        of.map(|(k, n)| (k.address, n)).collect()
    }

    /// Let a process go: everything about it is forgotten.
    pub fn remove(&self, pid: u32) {
        let mut maps = self.maps();
        let _ = maps.targets.remove(&pid);
        let _ = maps.stats.remove(&pid);
        forget(&mut maps.entries, |k| k.tgid == pid);
        forget(&mut maps.stacks, |k| k.tgid == pid);
        forget(&mut maps.freed, |k| k.tgid == pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::process::Process;

    #[test]
    fn this_machines_allocator_can_be_probed() {
        let me = Process::open(std::process::id()).unwrap();
        let allocator = match Allocator::of(&me) {
            Ok(allocator) => allocator,
            Err(why) => return println!("skipped: {why}"),
        };
        let plan = NativePlan::of(&allocator).unwrap();
        for name in ["malloc", "calloc", "realloc", "mmap", "free", "munmap"] {
            assert!(plan.functions.contains(&name), "{name}");
        }
        assert_eq!(plan.release.len(), 3);
        let mut offsets: Vec<u64> = plan.allocate.iter().map(|p| p.file_offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), plan.allocate.len(), "no place twice");
        let nothing = Allocator { opened: "/bin/true".into(), file: "true".into() };
        assert!(NativePlan::of(&nothing).unwrap_err().contains("exports no malloc"));
    }
}
