//! Stacks that the Go runtime took itself (profile buckets): every logical
//! frame has an address of its own in them, inlined callers an artificial one.
//! Undone here, so that one entry is one real call with what is inlined in it,
//! as `runtime/pprof` does before it writes them (`proto.go`, `pcDeck`).

use rustc_hash::FxHashMap;

use super::{Frame, origin};
use crate::target::go::{binary::GoBinary, inline::Call};

/// Addresses of one binary whose names are kept.
const MOST_KNOWN: usize = 1 << 18;

/// One real call of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// In memory.
    pub return_address: u64,
    /// Innermost first; empty when nothing is known of the address.
    pub frames: Vec<Frame>,
}

/// Logical frames at the instruction `vaddr` of the file.
pub(super) fn go_frames(binary: &GoBinary, vaddr: u64) -> Vec<Frame> {
    binary.calls(vaddr).into_iter().map(|c| frame(binary, c)).collect()
}

fn frame(binary: &GoBinary, c: Call) -> Frame {
    Frame {
        origin: origin(&c.function, &binary.build),
        function: c.function,
        file: c.file,
        line: c.line,
        start_line: c.start_line,
        inlined: c.inlined,
    }
}

/// Names the stacks of one binary, each address once.
#[derive(Debug)]
pub struct Stacks<'a> {
    binary: &'a GoBinary,
    bias: u64,
    known: FxHashMap<u64, Vec<Call>>,
}

impl<'a> Stacks<'a> {
    /// `bias` is what was added to the file's addresses when it was loaded.
    pub fn new(binary: &'a GoBinary, bias: u64) -> Self {
        Self { binary, bias, known: FxHashMap::default() }
    }

    /// Logical frames at an instruction in memory.
    fn calls(&mut self, address: u64) -> &[Call] {
        let vaddr = address.wrapping_sub(self.bias);
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        self.known.entry(vaddr).or_insert_with(|| self.binary.calls(vaddr))
    }

    /// Splits the next real call off: its return address, which of its logical
    /// frames the stack has, and what follows them.
    fn split<'s>(&mut self, stack: &'s [u64]) -> Option<(u64, Vec<usize>, &'s [u64])> {
        let (&address, mut rest) = stack.split_first()?;
        let bias = self.bias;
        let calls = self.calls(address.wrapping_sub(1));
        let mut frames = vec![0];
        for (i, caller) in calls.iter().enumerate().skip(1) {
            // The artificial address of the call that was inlined.
            let artificial = caller.pc.wrapping_add(1).wrapping_add(bias);
            match rest.split_first() {
                Some((next, after)) if *next == artificial => {
                    rest = after;
                    frames.push(i);
                }
                // A wrapper, which the runtime leaves out.
                Some(_) => {}
                // The stack was cut for its depth, the callers are real.
                None => frames.push(i),
            }
        }
        Some((address, frames, rest))
    }

    /// Return addresses of the real calls, leaf first.
    pub fn real(&mut self, stack: &[u64]) -> Vec<u64> {
        let (mut found, mut rest) = (Vec::with_capacity(stack.len()), stack);
        while let Some((address, _, after)) = self.split(rest) {
            found.push(address);
            rest = after;
        }
        found
    }

    /// The real calls with their names, leaf first; without the bottom of the
    /// goroutine (`runtime.goexit`).
    pub fn locations(&mut self, stack: &[u64]) -> Vec<Location> {
        let (mut found, mut rest) = (Vec::new(), stack);
        while let Some((return_address, frames, after)) = self.split(rest) {
            rest = after;
            let binary = self.binary;
            let calls = self.calls(return_address.wrapping_sub(1));
            if calls.first().is_some_and(|c| c.function == "runtime.goexit") {
                continue;
            }
            let frames =
                frames.into_iter().filter_map(|i| Some(frame(binary, calls.get(i)?.clone())));
            let frames = frames.collect();
            found.push(Location { return_address, frames });
        }
        found
    }

    /// Functions of a stack, leaf first.
    pub fn functions(&mut self, stack: &[u64]) -> Vec<String> {
        let mut names = Vec::new();
        for address in stack {
            names.extend(self.calls(address.wrapping_sub(1)).first().map(|c| c.function.clone()));
        }
        names
    }

    /// The part of a stack that `runtime/pprof` shows: the allocator's own
    /// frames at its leaf are left out, unless there is nothing else.
    pub fn shown<'s>(&mut self, stack: &'s [u64]) -> &'s [u64] {
        // 1.24 moved maps out of package runtime and hides those too.
        let internal = self.binary.version.at_least(24);
        let first = stack.iter().position(|address| {
            // As runtime.FuncForPC: of the return address itself.
            !self.calls(*address).first().is_some_and(|c| {
                c.function.starts_with("runtime.")
                    || (internal && c.function.starts_with("internal/runtime/"))
            })
        });
        stack.get(first.unwrap_or(0)..).unwrap_or_default()
    }
}
