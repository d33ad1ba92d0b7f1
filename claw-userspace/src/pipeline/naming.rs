//! Names of a Go process's addresses, each sent once and before what uses it.

use rustc_hash::FxHashSet;

use crate::{decode::What, stream::Item, symbol::Symbolizer};

/// Addresses of one process that are sent only once; as many of its buckets.
pub const MOST_SEEN: usize = 1 << 18;

#[derive(Debug)]
pub struct Naming {
    pid: u32,
    pub symbolizer: Symbolizer,
    seen: FxHashSet<u64>,
}

impl Naming {
    pub fn new(pid: u32, symbolizer: Symbolizer) -> Self {
        Self { pid, symbolizer, seen: FxHashSet::default() }
    }

    pub fn name(&mut self, addresses: &[u64], put: &mut impl FnMut(Item)) {
        let pid = self.pid;
        for pc in addresses.iter().copied().filter(|pc| *pc != 0) {
            if self.seen.len() < MOST_SEEN && self.seen.insert(pc) {
                put(Item::Frames { pid, pc, frames: self.symbolizer.frames(pc) });
            }
        }
    }

    /// Send an event, or a goroutine that stands still, after the names of its
    /// addresses.
    pub fn put(&mut self, item: Item, put: &mut impl FnMut(Item)) {
        match &item {
            Item::Event(event) => match &event.what {
                What::Alloc { stack, .. } => self.name(stack, put),
                What::GoroutineNew { stack, gopc, .. } => {
                    self.name(stack, put);
                    self.name(&[*gopc], put);
                }
                What::GoroutineExit { gopc, .. } => self.name(&[*gopc], put),
                _ => {}
            },
            Item::Still(s) => {
                self.name(&s.stack, put);
                self.name(&[s.gopc], put);
            }
            _ => {}
        }
        put(item);
    }
}
