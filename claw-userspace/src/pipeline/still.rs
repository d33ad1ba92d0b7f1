//! Goroutines that stand still: those found in the same place in two looks at
//! a target's memory, with the stack that says where and why, and those of
//! them that have moved since.
//!
//! What moves all the time is never sent, so a busy service costs no more than
//! the looks.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    looks::{APART, SHARE},
    pace::Pace,
};
use crate::{
    stream::{Item, Still},
    target::{
        go::{
            binary::GoBinary,
            goroutines::{Goroutine, LookError, Stamp, State, look},
            labels,
            layout::GoLayout,
            snapshot::{StackState, stacks_of},
            unwind::Unwinder,
            waits,
        },
        memory::Memory,
    },
};

/// Goroutines that are followed; of more, the youngest are.
const MOST: usize = 1 << 19;
/// Frames of a stack that are sent: the site is near the leaf.
const MOST_FRAMES: usize = 64;

#[derive(Debug)]
pub struct StillLooks {
    pid: u32,
    allgs: u64,
    layout: &'static GoLayout,
    keys: Vec<String>,
    known: FxHashMap<u64, Known>,
    begun: bool,
    pub pace: Pace,
}

#[derive(Debug)]
struct Known {
    stamp: Stamp,
    since_ns: u64,
    /// It stood there at the first look: nobody knows since when.
    before: bool,
    sent: bool,
}

impl StillLooks {
    pub fn new(pid: u32, allgs: u64, layout: &'static GoLayout, keys: Vec<String>) -> Self {
        Self {
            pid,
            allgs,
            layout,
            keys,
            known: FxHashMap::default(),
            begun: false,
            pace: Pace::new(APART, SHARE),
        }
    }

    /// What stands still and what moved since the last look.
    ///
    /// # Errors
    /// When the target's memory cannot be read or makes no sense.
    pub fn look(
        &mut self,
        memory: &impl Memory,
        (binary, bias): (&GoBinary, u64),
        t_ns: u64,
    ) -> Result<Vec<Item>, LookError> {
        let mut alive = look(memory, self.layout, self.allgs)?.alive;
        if alive.len() > MOST {
            alive.drain(..alive.len() - MOST);
        }
        let ids: FxHashSet<u64> = alive.iter().map(|g| g.id).collect();
        let mut items = Vec::new();
        let mut gone: Vec<u64> =
            self.known.iter().filter(|(id, k)| k.sent && !ids.contains(id)).map(|k| *k.0).collect();
        self.known.retain(|id, _| ids.contains(id));
        let mut still = Vec::new();
        for g in alive {
            let before = !self.begun;
            let fresh = || Known { stamp: g.stamp(), since_ns: t_ns, before, sent: false };
            let known = self.known.entry(g.id).or_insert_with(fresh);
            if known.stamp != g.stamp() {
                if known.sent {
                    gone.push(g.id);
                }
                *known = Known { before: false, ..fresh() };
            } else if !known.sent && known.since_ns < t_ns && stands(g.state) {
                still.push(g);
            }
        }
        self.begun = true;
        gone.sort_unstable();
        items.extend(gone.into_iter().map(|id| Item::Moved { pid: self.pid, id, t_ns }));
        let mut unwinder = Unwinder::new(binary, bias);
        let found = stacks_of(memory, self.layout, &mut unwinder, still);
        let labels: Vec<u64> = found.goroutines.iter().map(|g| g.labels).collect();
        let labels = labels::tenants(memory, self.layout.labels, &labels, &self.keys);
        for ((g, stack), label) in found.all().zip(labels) {
            let (StackState::Known(i) | StackState::Partial(i)) = stack else { continue };
            let Some(known) = self.known.get_mut(&g.id).filter(|k| k.stamp == g.stamp()) else {
                continue;
            };
            known.sent = true;
            let stack = found.stacks.get(i as usize).map_or(&[][..], Vec::as_slice);
            let stack = stack.get(..MOST_FRAMES).unwrap_or(stack).to_vec();
            items.push(Item::Still(Still {
                pid: self.pid,
                id: g.id,
                gopc: g.gopc,
                since_ns: known.since_ns,
                before: known.before,
                reason: reason(g, self.layout.minor),
                // Labels that changed while they were read name no tenant.
                label: label.ok().flatten(),
                stack,
            }));
        }
        Ok(items)
    }
}

/// In these states it goes on only when something else happens.
fn stands(state: State) -> bool {
    matches!(state, State::Waiting | State::Leaked | State::Syscall)
}

fn reason(g: &Goroutine, minor: u32) -> String {
    let words = g.state.waits().then(|| waits::reason(minor, g.wait_reason)).flatten();
    words.filter(|w| !w.is_empty()).unwrap_or(g.state.name()).to_owned()
}
