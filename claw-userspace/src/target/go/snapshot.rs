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
    /// In the order of their ids.
    pub goroutines: Vec<Goroutine>,
    /// Of each of them.
    pub states: Vec<StackState>,
    /// Distinct stacks, leaf first (see [`Unwinder::unwind`]).
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
    let mut s = Snapshot { torn_slots: seen.torn, goroutines: seen.alive, ..Snapshot::default() };
    s.read(memory, layout, unwinder, registers);
    Ok(s)
}

/// The stacks of some of the goroutines of a [`look`], in its order.
pub fn stacks_of(
    memory: &impl Memory,
    layout: &GoLayout,
    unwinder: &mut Unwinder,
    goroutines: Vec<Goroutine>,
) -> Snapshot {
    let mut s = Snapshot { goroutines, ..Snapshot::default() };
    s.read(memory, layout, unwinder, &[]);
    s
}

/// Where the stack of one begins (see [`place`]).
struct Place {
    /// Of the goroutine.
    index: usize,
    pc: u64,
    sp: u64,
    trap: bool,
}

impl Snapshot {
    /// The goroutines, each with what is known of its stack.
    pub fn all(&self) -> impl Iterator<Item = (&Goroutine, StackState)> {
        self.goroutines.iter().zip(self.states.iter().copied())
    }

    fn read(
        &mut self,
        memory: &impl Memory,
        layout: &GoLayout,
        unwinder: &mut Unwinder,
        registers: &[Registers],
    ) {
        let mut all = std::mem::take(&mut self.goroutines);
        // `None`: not known yet, or no longer one of the living.
        let mut states: Vec<Option<StackState>> = vec![None; all.len()];
        let mut interned: FxHashMap<Vec<u64>, u32> = FxHashMap::default();
        let mut todo: Vec<usize> = (0..all.len()).collect();
        for round in 0..ROUNDS {
            let mut places = Vec::with_capacity(todo.len());
            for index in std::mem::take(&mut todo) {
                let (Some(g), Some(state)) = (all.get(index), states.get_mut(index)) else {
                    continue;
                };
                match place(g, registers) {
                    Some((pc, sp, trap)) => places.push(Place { index, pc, sp, trap }),
                    None if g.state == State::Running => *state = Some(StackState::Running),
                    None => *state = Some(StackState::Torn),
                }
            }
            if places.is_empty() {
                break;
            }
            let traces = self.unwind(memory, unwinder, &mut interned, &all, &places);
            let addresses: Vec<u64> = places
                .iter()
                .map(|p| all.get(p.index).map_or(0, |g: &Goroutine| g.address))
                .collect();
            at(memory, layout, &addresses, |i, found| {
                let Some(index) = places.get(i).map(|p| p.index) else { return };
                let (Some(g), Some(state)) = (all.get_mut(index), states.get_mut(index)) else {
                    return;
                };
                match found {
                    // The slot was given to another one, which is too young to
                    // have been there when the look began.
                    Found::Alive(now) if now.id != g.id => {}
                    Found::Alive(now) => {
                        let trace = traces.get(i).copied().flatten();
                        let trace = trace.filter(|_| now.stamp() == g.stamp());
                        *g = now;
                        *state = match trace {
                            None if round + 1 < ROUNDS => {
                                todo.push(index);
                                None
                            }
                            known => known.or(Some(StackState::Torn)),
                        };
                    }
                    // It ended meanwhile: no longer one of the living.
                    Found::Free => {}
                    Found::Torn => self.torn_slots += 1,
                }
            });
            self.retried += todo.len();
        }
        let mut alive = states.iter();
        all.retain(|_| alive.next().is_some_and(Option::is_some));
        self.goroutines = all;
        self.states = states.into_iter().flatten().collect();
    }

    fn unwind(
        &mut self,
        memory: &impl Memory,
        unwinder: &mut Unwinder,
        interned: &mut FxHashMap<Vec<u64>, u32>,
        goroutines: &[Goroutine],
        places: &[Place],
    ) -> Vec<Option<StackState>> {
        let pieces: Vec<Piece> = places
            .iter()
            .map(|p| {
                let high = goroutines.get(p.index).map_or(0, |g| g.stack.1);
                let left = MOST_BYTES - self.bytes;
                let len = high.saturating_sub(p.sp).min(MOST_STACK).min(left);
                self.bytes += len;
                Piece { address: p.sp, len: usize::try_from(len).unwrap_or(0) }
            })
            .collect();
        let mut traces = vec![None; places.len()];
        let mut frames = Vec::new();
        read_pieces(memory, &pieces, |i, bytes| {
            let (Some(p), Some(bytes)) = (places.get(i), bytes) else { return };
            let mut complete = unwinder.unwind(p.pc, bytes, p.trap, &mut frames);
            if self.frames >= MOST_KEPT {
                complete &= frames.len() <= 1;
                frames.truncate(1);
            }
            let next = u32::try_from(self.stacks.len()).unwrap_or(u32::MAX);
            let stack = match interned.get(&frames) {
                Some(stack) => *stack,
                None => {
                    self.frames += frames.len();
                    interned.insert(frames.clone(), next);
                    self.stacks.push(frames.clone());
                    next
                }
            };
            if let Some(slot) = traces.get_mut(i) {
                *slot = Some(if complete {
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
