//! Goroutines without probes: the difference between two looks at a target's
//! memory, as the events that probes would have given.
//!
//! It takes over where goroutines come and go so fast that probes would cost
//! too much. One that lives between two looks is never seen, which is no loss:
//! it does not leak.

use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use super::pace::Pace;
use crate::{
    decode::{Event, What},
    target::{
        go::{
            goroutines::{Goroutine, LookError, look},
            labels,
            layout::GoLayout,
        },
        memory::Memory,
    },
};

/// Time between two looks, at least, and the share of one CPU that they may take.
pub const APART: Duration = Duration::from_secs(2);
pub const SHARE: f64 = 0.005;

#[derive(Debug)]
pub struct Looks {
    pid: u32,
    allgs: u64,
    layout: &'static GoLayout,
    keys: Vec<String>,
    /// Goroutine id → `gopc` of those alive at the last look; `None` before
    /// the first.
    known: Option<FxHashMap<u64, u64>>,
    pub pace: Pace,
}

impl Looks {
    pub fn new(pid: u32, allgs: u64, layout: &'static GoLayout, keys: Vec<String>) -> Self {
        Self { pid, allgs, layout, keys, known: None, pace: Pace::new(APART, SHARE) }
    }

    /// What was born and what ended since the last look. Those of the first
    /// look were there before: only their end is an event.
    ///
    /// # Errors
    /// When the target's memory cannot be read or makes no sense.
    pub fn look(&mut self, memory: &impl Memory, t_ns: u64) -> Result<Vec<Event>, LookError> {
        let alive = look(memory, self.layout, self.allgs)?.alive;
        let first = self.known.is_none();
        let known = self.known.get_or_insert_default();
        let ids: FxHashSet<u64> = alive.iter().map(|g| g.id).collect();
        let mut events = Vec::new();
        let mut event = |id: u64, what: What| {
            events.push(Event { t_ns, pid: self.pid, tid: self.pid, goid: id, what });
        };
        let mut ended: Vec<(u64, u64)> =
            known.iter().filter(|(id, _)| !ids.contains(id)).map(|(id, pc)| (*id, *pc)).collect();
        ended.sort_unstable();
        for (id, gopc) in ended {
            known.remove(&id);
            event(id, What::GoroutineExit { gopc, id });
        }
        let mut is_new = |g: &Goroutine| known.insert(g.id, g.gopc).is_none() && !first;
        let new: Vec<Goroutine> = alive.into_iter().filter(&mut is_new).collect();
        let labels: Vec<u64> = new.iter().map(|g| g.labels).collect();
        let labels = labels::tenants(memory, self.layout.labels, &labels, &self.keys);
        for (g, label) in new.iter().zip(labels) {
            event(
                g.id,
                What::GoroutineNew {
                    id: g.id,
                    gopc: g.gopc,
                    startpc: g.startpc,
                    // Labels that changed while they were read name no tenant.
                    label: label.ok().flatten(),
                    stack: Vec::new(),
                },
            );
        }
        Ok(events)
    }
}
