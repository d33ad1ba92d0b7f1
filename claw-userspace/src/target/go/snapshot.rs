//! Every goroutine of a running program with its stack, in one look.
//!
//! The program runs on meanwhile. A stack counts only when its goroutine was in
//! the same place before and after the stack was read; otherwise it is read
//! again, and what keeps changing has no stack here.

use rustc_hash::FxHashMap;

use super::{
    goroutines::{Found, Goroutine, LookError, State, at, look},
    layout::GoLayout,
    unwind::Unwinder,
};
use crate::target::{
    bulk::{Piece, read_pieces},
    memory::Memory,
};

/// Times that a changing goroutine is read.
const ROUNDS: usize = 4;
/// Bytes of a stack that are read; what lies deeper is cut off.
const MOST_STACK: u64 = 256 << 10;
/// Bytes of all stacks together: a million goroutines use some two thousand
/// each. A hostile memory has room for more at every address.
const MOST_BYTES: u64 = 8 << 30;
/// Frames of distinct stacks that are kept; of what comes after them, only the
/// leaf is.
const MOST_KEPT: usize = 1 << 21;
/// Largest stack that is believed (`maxstacksize` is 1 GB).
const MAX_STACK: u64 = 4 << 30;

/// What is known of a goroutine's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StackState {
    /// Index into [`Snapshot::stacks`].
    Known(u32),
    /// As far as it could be followed.
    Partial(u32),
    /// It ran: its stack is in registers and changes all the time.
    Running,
    /// It changed whenever it was read.
    Torn,
}

/// A register file found elsewhere (a core dump): `pc`, `sp`.
pub type Registers = (u64, u64);

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub goroutines: Vec<(Goroutine, StackState)>,
    /// Distinct stacks, leaf first (see [`super::unwind::Trace`]).
    pub stacks: Vec<Vec<u64>>,
    /// Slots that were no goroutine in any known state.
    pub torn_slots: usize,
    /// Reads that were done again because the goroutine had moved.
    pub retried: usize,
    /// Of [`MOST_BYTES`] and [`MOST_KEPT`], what was used.
    bytes: u64,
    frames: usize,
}

/// `allgs` is the address of the slice header; `registers` are those of all
/// threads, where they are known.
///
/// # Errors
/// When memory cannot be read or holds no slice of goroutines.
pub fn snapshot(
    memory: &impl Memory,
    layout: &GoLayout,
    allgs: u64,
    unwinder: &mut Unwinder,
    registers: &[Registers],
) -> Result<Snapshot, LookError> {
    let seen = look(memory, layout, allgs)?;
    let mut s = Snapshot { torn_slots: seen.torn, ..Snapshot::default() };
    s.read(memory, layout, unwinder, registers, seen.alive);
    s.goroutines.sort_unstable_by_key(|(g, _)| g.id);
    Ok(s)
}

/// The stacks of some of the goroutines of a [`look`].
pub fn stacks_of(
    memory: &impl Memory,
    layout: &GoLayout,
    unwinder: &mut Unwinder,
    goroutines: Vec<Goroutine>,
) -> Snapshot {
    let mut s = Snapshot::default();
    s.read(memory, layout, unwinder, &[], goroutines);
    s
}

impl Snapshot {
    fn read(
        &mut self,
        memory: &impl Memory,
        layout: &GoLayout,
        unwinder: &mut Unwinder,
        registers: &[Registers],
        alive: Vec<Goroutine>,
    ) {
        let mut interned: FxHashMap<Vec<u64>, u32> = FxHashMap::default();
        let mut todo = alive;
        for round in 0..ROUNDS {
            let mut places: Vec<(Goroutine, u64, u64, bool)> = Vec::new();
            for g in std::mem::take(&mut todo) {
                match place(&g, registers) {
                    Some((pc, sp, trap)) => places.push((g, pc, sp, trap)),
                    None if g.state == State::Running => {
                        self.goroutines.push((g, StackState::Running));
                    }
                    None => self.goroutines.push((g, StackState::Torn)),
                }
            }
            if places.is_empty() {
                return;
            }
            let traces = self.unwind(memory, unwinder, &mut interned, &places);
            let addresses: Vec<u64> = places.iter().map(|(g, ..)| g.address).collect();
            at(memory, layout, &addresses, |i, found| {
                let Some((g, ..)) = places.get(i) else { return };
                let trace = traces.get(i).copied().flatten();
                match (found, trace) {
                    (Found::Alive(now), Some(stack)) if now.stamp == g.stamp && now.id == g.id => {
                        self.goroutines.push((now, stack));
                    }
                    // It ended meanwhile: no longer one of the living.
                    (Found::Free, _) => {}
                    (Found::Alive(now), _) if round + 1 < ROUNDS && now.id == g.id => {
                        todo.push(now);
                    }
                    (Found::Alive(now), _) if now.id == g.id => {
                        self.goroutines.push((now, StackState::Torn));
                    }
                    // The slot was given to another one, which is too young to
                    // have been there when the look began.
                    (Found::Alive(_), _) => {}
                    (Found::Torn, _) => self.torn_slots += 1,
                }
            });
            self.retried += todo.len();
        }
    }

    fn unwind(
        &mut self,
        memory: &impl Memory,
        unwinder: &mut Unwinder,
        interned: &mut FxHashMap<Vec<u64>, u32>,
        places: &[(Goroutine, u64, u64, bool)],
    ) -> Vec<Option<StackState>> {
        let pieces: Vec<Piece> = places
            .iter()
            .map(|(g, _, sp, _)| {
                let left = MOST_BYTES - self.bytes;
                let len = g.stack.1.saturating_sub(*sp).min(MOST_STACK).min(left);
                self.bytes += len;
                Piece { address: *sp, len: usize::try_from(len).unwrap_or(0) }
            })
            .collect();
        let mut traces = vec![None; places.len()];
        read_pieces(memory, &pieces, |i, bytes| {
            let (Some((_, pc, _, trap)), Some(bytes)) = (places.get(i), bytes) else { return };
            let mut trace = unwinder.unwind(*pc, bytes, *trap);
            if self.frames >= MOST_KEPT {
                trace.complete &= trace.frames.len() <= 1;
                trace.frames.truncate(1);
            }
            let next = u32::try_from(self.stacks.len()).unwrap_or(u32::MAX);
            let stack = match interned.get(&trace.frames) {
                Some(stack) => *stack,
                None => {
                    self.frames += trace.frames.len();
                    interned.insert(trace.frames.clone(), next);
                    self.stacks.push(trace.frames);
                    next
                }
            };
            if let Some(slot) = traces.get_mut(i) {
                *slot = Some(if trace.complete {
                    StackState::Known(stack)
                } else {
                    StackState::Partial(stack)
                });
            }
        });
        traces
    }
}

/// Where its stack begins: `pc`, `sp`, and whether no call led there. `None`
/// when that is not known or makes no sense.
fn place(g: &Goroutine, registers: &[Registers]) -> Option<(u64, u64, bool)> {
    let (low, high) = g.stack;
    let size = high.checked_sub(low).filter(|s| *s <= MAX_STACK)?;
    let within = |sp: u64| sp.checked_sub(low).is_some_and(|at| at < size);
    let running = registers.iter().find(|(_, sp)| within(*sp));
    if g.state == State::Running {
        return running.map(|(pc, sp)| (*pc, *sp, true));
    }
    (within(g.sp) && g.pc != 0).then_some((g.pc, g.sp, false))
}
