//! The processes that `--children` adds: all that descend from those asked for,
//! whenever they were forked.

use std::collections::{BTreeMap, BTreeSet};

use super::Live;
use crate::{
    pipeline::{Select, steps::failed},
    target::process::{Process, parents},
};

/// A child is taken from this age on, ns: a younger one may be about to run
/// another program.
const LEAST_AGE_NS: u64 = 1_000_000_000;
/// Processes of one family, at most.
const MOST: usize = 4096;

/// Pids and start times of all that belong.
#[derive(Debug, Default)]
pub struct Family(BTreeMap<u32, u64>);

impl Family {
    pub fn add(&mut self, process: &Process) {
        if self.0.len() < MOST {
            self.0.insert(process.pid, process.start_ticks);
        }
    }

    pub fn has(&self, process: &Process) -> bool {
        self.0.get(&process.pid) == Some(&process.start_ticks)
    }

    /// Whether any member still runs.
    pub fn lives(&self) -> bool {
        let alive = |(pid, ticks): (&u32, &u64)| {
            Process::open(*pid).is_ok_and(|p| p.start_ticks == *ticks && p.is_alive())
        };
        self.0.iter().any(alive)
    }

    /// Take in the children of members. One whose parent has ended meanwhile
    /// was found before, or is not found.
    fn grow(&mut self) {
        let parents = parents().unwrap_or_default();
        let alive: BTreeMap<u32, u64> = parents.iter().map(|p| (p.pid, p.start_ticks)).collect();
        self.0.retain(|pid, ticks| alive.get(pid) == Some(ticks));
        let members: BTreeSet<u32> = self.0.keys().copied().collect();
        for pid in descendants(members, &parents.iter().map(|p| (p.pid, p.parent)).collect()) {
            if let Some(ticks) = alive.get(&pid).filter(|_| self.0.len() < MOST) {
                self.0.insert(pid, *ticks);
            }
        }
    }
}

/// `members` and all that descend from them; `parents` by pid.
fn descendants(mut members: BTreeSet<u32>, parents: &BTreeMap<u32, u32>) -> BTreeSet<u32> {
    loop {
        let before = members.len();
        let is_child = |(_, parent): &(&u32, &u32)| members.contains(parent);
        let children: Vec<u32> = parents.iter().filter(is_child).map(|(pid, _)| *pid).collect();
        members.extend(children);
        if members.len() == before {
            return members;
        }
    }
}

impl Live<'_> {
    /// Attach to children that are new.
    pub(super) fn attach_children(&mut self) {
        self.family.grow();
        let new: Vec<u32> = self.family.0.keys().copied().collect();
        for pid in new {
            if self.watches(pid) {
                continue;
            }
            let Ok(process) = Process::open(pid) else { continue };
            let young = process.uptime_ns().is_some_and(|age| age < LEAST_AGE_NS);
            if young || self.refused.get(&pid) == Some(&process.start_ticks) {
                continue;
            }
            self.try_to_start(process);
        }
        let family = &self.family;
        self.refused.retain(|pid, _| family.0.contains_key(pid));
    }

    /// Start watching, or remember that it cannot be watched, and say why.
    pub(super) fn try_to_start(&mut self, process: Process) {
        let (pid, start_ticks) = (process.pid, process.start_ticks);
        if let Err(e) = self.start(process) {
            self.refused.insert(pid, start_ticks);
            if !e.is_uninteresting() {
                self.sink.note(&e.to_string());
                self.sink.put(failed("Attaching", e.to_string()));
            }
        }
    }

    /// Look for processes that have started since the last time.
    pub(super) fn find_new(&mut self) {
        if !matches!(self.select, Select::Pids(_)) {
            self.rescan();
        }
        if self.options.children {
            self.attach_children();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_generations_and_nobody_else() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 6), (9, 4)]);
        let of = |pid| descendants(BTreeSet::from([pid]), &parents).into_iter().collect::<Vec<_>>();
        assert_eq!(of(2), [2, 3, 4, 9]);
        assert_eq!(of(5), [5]);
        assert_eq!(of(6), [6], "a loop ends");
    }

    #[test]
    fn a_child_is_found_and_forgotten() {
        let mut family = Family::default();
        family.add(&Process::open(std::process::id()).unwrap());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        family.grow();
        let process = Process::open(child.id()).unwrap();
        assert!(family.has(&process) && family.lives());
        child.kill().unwrap();
        child.wait().unwrap();
        family.grow();
        assert!(!family.has(&process));
    }
}
