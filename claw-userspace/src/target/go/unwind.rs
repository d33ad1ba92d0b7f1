//! Stacks of goroutines that do not run, by the runtime's own tables: where the
//! return address lies is known for every instruction (`pcsp`), also where a
//! function has no frame pointer yet or none at all. The same steps as
//! `runtime.unwinder` (`traceback.go`), so the same stacks.

use rustc_hash::FxHashMap;

use super::binary::GoBinary;

/// Functions that an instruction, not a call, led into: what is below them
/// goes on at that instruction (`FuncID_asyncPreempt`, `FuncID_sigpanic`).
const TRAPS: [&str; 2] = ["runtime.asyncPreempt", "runtime.sigpanic"];
/// Addresses whose step is remembered.
const MOST_STEPS: usize = 1 << 18;
/// Frames of one stack; Go's own texts show a hundred.
const MOST_FRAMES: usize = 1 << 12;
/// Frames of all stacks together: those of a million goroutines may be 32 deep
/// on average. A hostile memory has a stack of thousands for each.
const MOST_IN_ALL: usize = 1 << 25;

#[derive(Clone, Copy, Debug)]
struct Step {
    delta: u64,
    entry: bool,
    top: bool,
    writes_sp: bool,
    trap: bool,
}

#[derive(Debug)]
pub struct Unwinder<'a> {
    binary: &'a GoBinary,
    bias: u64,
    steps: FxHashMap<u64, Option<Step>>,
    /// Frames that may still be followed.
    left: usize,
}

impl<'a> Unwinder<'a> {
    /// `bias` is what was added to the file's addresses when it was loaded.
    pub fn new(binary: &'a GoBinary, bias: u64) -> Self {
        Self { binary, bias, steps: FxHashMap::default(), left: MOST_IN_ALL }
    }

    fn step(&mut self, pc: u64) -> Option<Step> {
        if let Some(step) = self.steps.get(&pc) {
            return *step;
        }
        let vaddr = pc.wrapping_sub(self.bias);
        let step = self.binary.unwind_step(vaddr).map(|s| Step {
            delta: s.sp_delta.into(),
            entry: s.entry == vaddr,
            top: s.top,
            writes_sp: s.writes_sp,
            trap: TRAPS.contains(&s.function.as_str()),
        });
        if self.steps.len() < MOST_STEPS {
            self.steps.insert(pc, step);
        }
        step
    }

    /// The stack of what stands at `pc`; `stack` holds the memory from its
    /// stack pointer on. `trap` says that no call led to `pc`.
    ///
    /// `frames` becomes the stack, leaf first: return addresses, or one more
    /// than the instruction where none was called, so that the call is always
    /// before the address. Says whether it was followed to its outermost
    /// function.
    pub fn unwind(&mut self, pc: u64, stack: &[u8], trap: bool, frames: &mut Vec<u64>) -> bool {
        frames.clear();
        let (mut pc, mut at, mut trap) = (pc, 0usize, trap);
        loop {
            let Some(step) = self.step(pc) else { return false };
            if step.top && !frames.is_empty() {
                return true;
            }
            let enough = frames.len() >= MOST_FRAMES || self.left == 0;
            if (step.writes_sp || enough) && !frames.is_empty() {
                return false;
            }
            self.left = self.left.saturating_sub(1);
            frames.push(if trap || step.entry { pc.wrapping_add(1) } else { pc });
            trap = step.trap;
            // The stack pointer only ever goes up: this ends.
            let slot = usize::try_from(step.delta).ok().and_then(|d| at.checked_add(d));
            let next = slot.and_then(|s| {
                let bytes = stack.get(s..s.checked_add(8)?)?;
                Some((s + 8, u64::from_le_bytes(bytes.try_into().ok()?)))
            });
            let Some((after, address)) = next else { return false };
            (at, pc) = (after, address);
        }
    }
}
