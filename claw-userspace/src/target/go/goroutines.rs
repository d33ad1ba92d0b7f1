//! The goroutines of a running program, read from `runtime.allgs` without
//! stopping it. What is read may change meanwhile: an entry that makes no
//! sense is left out and counted, never reported.

use super::layout::GoLayout;
use crate::target::{
    bulk::{Piece, read_pieces},
    memory::{Memory, MemoryError},
};

/// What a goroutine is doing (`runtime2.go`, the same numbers in all versions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    Runnable,
    Running,
    Syscall,
    Waiting,
    CopyStack,
    Preempted,
    /// Waiting, and the collector proved that nothing can wake it (Go ≥ 1.26).
    Leaked,
}

impl State {
    fn from_number(n: u32) -> Option<Self> {
        Some(match n {
            1 => Self::Runnable,
            2 => Self::Running,
            3 => Self::Syscall,
            4 => Self::Waiting,
            8 => Self::CopyStack,
            9 => Self::Preempted,
            10 => Self::Leaked,
            _ => return None,
        })
    }

    /// As the runtime prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runnable => "runnable",
            Self::Running => "running",
            Self::Syscall => "syscall",
            Self::Waiting => "waiting",
            Self::CopyStack => "copystack",
            Self::Preempted => "preempted",
            Self::Leaked => "leaked",
        }
    }

    /// Whether `g.waitreason` means anything.
    pub fn waits(self) -> bool {
        matches!(self, Self::Waiting | Self::Leaked)
    }
}

/// A goroutine that is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goroutine {
    /// Address of its `g`.
    pub address: u64,
    pub id: u64,
    pub state: State,
    /// See [`super::waits`].
    pub wait_reason: u8,
    /// `nanotime` (`CLOCK_MONOTONIC`, ns) at the end of the GC before the one
    /// that first found it blocked (`work.tstart`, which `gcMark` sets last);
    /// 0 when there was none.
    pub wait_since: u64,
    /// Id of its creator; 0 when the runtime does not keep it (Go 1.19).
    pub parent: u64,
    /// Return address of the `go` statement.
    pub gopc: u64,
    pub startpc: u64,
    /// `g.labels`, 0 when it has none (see [`super::labels`]).
    pub labels: u64,
    pub locked: bool,
    /// Its stack's lowest address and the one after its highest.
    pub stack: (u64, u64),
    /// Where it goes on when it runs again, or called the kernel or C from.
    pub sp: u64,
    pub pc: u64,
    /// Its status, and how often the scheduler counted a change of it (modulo
    /// 256).
    turn: u64,
}

/// See [`Goroutine::stamp`].
pub type Stamp = (u64, u64, u64);

impl Goroutine {
    /// Differs when it ran between two looks, but for one time in 256.
    pub fn stamp(&self) -> Stamp {
        (self.sp, self.pc, self.turn)
    }
}

/// All that were found in one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub alive: Vec<Goroutine>,
    /// Entries that were no goroutine in any known state.
    pub torn: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("runtime.allgs at {address:#x} is no slice: length {len}, capacity {cap}")]
    Slice { address: u64, len: u64, cap: u64 },
    #[error("{0} goroutine slots are more than the {MAX_SLOTS} that are read")]
    TooMany(u64),
    #[error("runtime.allgs kept changing while it was read")]
    Moving,
}

/// Slots are never given back, so this is the most that ever were at once.
const MAX_SLOTS: u64 = 1 << 21;
const TRIES: usize = 5;
/// `g.sched`, the same in every version.
const G_SCHED: u32 = 56;
/// `_Gscan`, set beside the state while the collector scans the stack.
const SCAN: u32 = 0x1000;
/// States in which the slot is free: idle, moribund, dead, dead on an extra M.
const FREE: [u32; 4] = [0, 5, 6, 11];

/// `allgs` is the address of the slice header.
///
/// # Errors
/// When memory cannot be read or is no slice of goroutines.
pub fn look(memory: &impl Memory, layout: &GoLayout, allgs: u64) -> Result<Look, LookError> {
    let slots = slots(memory, allgs)?;
    let mut look = Look { alive: Vec::with_capacity(slots.len()), torn: 0 };
    at(memory, layout, &slots, |_, found| match found {
        Found::Alive(g) => look.alive.push(g),
        Found::Free => {}
        Found::Torn => look.torn += 1,
    });
    // Mostly in order already, which a stable sort makes use of.
    look.alive.sort_by_key(|g| g.id);
    let all = look.alive.len();
    look.alive.dedup_by_key(|g| g.id);
    look.torn += all - look.alive.len();
    Ok(look)
}

/// What one slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Alive(Goroutine),
    Free,
    Torn,
}

/// Read the `g` at each of `addresses`; `each` gets its index.
pub fn at(
    memory: &impl Memory,
    layout: &GoLayout,
    addresses: &[u64],
    mut each: impl FnMut(usize, Found),
) {
    let len = layout.g_labels as usize + 8;
    let pieces: Vec<Piece> =
        addresses.iter().map(|address| Piece { address: *address, len }).collect();
    read_pieces(memory, &pieces, |i, bytes| {
        let address = addresses.get(i).copied().unwrap_or(0);
        let found = match bytes {
            Some(g) if address != 0 => parse(layout, address, g),
            _ => Found::Torn,
        };
        each(i, found);
    });
}

fn parse(layout: &GoLayout, address: u64, g: &[u8]) -> Found {
    let word = |at: u32| word(g, at as usize);
    let byte = |at: u32| g.get(at as usize).copied().unwrap_or(0);
    // `atomicstatus uint32; stackLock uint32; goid; schedlink; waitsince;
    // waitreason` in every version.
    let status = word(layout.g_goid - 8) as u32 & !SCAN;
    let id = word(layout.g_goid);
    if FREE.contains(&status) {
        return Found::Free;
    }
    let Some(state) = State::from_number(status).filter(|_| id != 0) else { return Found::Torn };
    // sched.sp and sched.pc; syscallsp and syscallpc come after sched.bp.
    let at = if state == State::Syscall { layout.g_sched_bp + 8 } else { G_SCHED };
    let (sp, pc) = (word(at), word(at + 8));
    let seq = u64::from(byte(layout.g_tracking_seq));
    Found::Alive(Goroutine {
        address,
        id,
        state,
        wait_reason: byte(layout.g_goid + 24),
        wait_since: word(layout.g_goid + 16),
        parent: if layout.g_parent == 0 { 0 } else { word(layout.g_parent) },
        gopc: word(layout.g_gopc),
        startpc: word(layout.g_startpc),
        labels: word(layout.g_labels),
        locked: word(layout.g_lockedm) != 0,
        stack: (word(0), word(8)),
        sp,
        pc,
        turn: seq << 32 | u64::from(status),
    })
}

/// Addresses of all `g`. The runtime appends to the slice, which may move it.
fn slots(memory: &impl Memory, allgs: u64) -> Result<Vec<u64>, LookError> {
    for _ in 0..TRIES {
        let mut header = [0; 24];
        memory.read(allgs, &mut header)?;
        let [data, len, cap] = [0, 8, 16].map(|at| word(&header, at));
        if len > cap || (len > 0 && (data == 0 || !data.is_multiple_of(8))) {
            return Err(LookError::Slice { address: allgs, len, cap });
        }
        if len > MAX_SLOTS {
            return Err(LookError::TooMany(len));
        }
        let mut bytes = vec![0; len as usize * 8];
        let read = memory.read(data, &mut bytes);
        // An array that was left may be anything by now.
        if memory.u64_at(allgs)? == data {
            read?;
            return Ok(bytes.chunks_exact(8).map(|c| word(c, 0)).collect());
        }
    }
    Err(LookError::Moving)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{go::layout::LAYOUTS, memory::BytesMemory};

    const BASE: u64 = 0x1000;
    const LAYOUT: &GoLayout = &LAYOUTS[6];
    const G: u64 = 0x400;

    /// A slice header, its array, and the goroutines as (state, id).
    fn memory(gs: &[(u32, u64)]) -> BytesMemory {
        let mut bytes = vec![0; 0x1000 + gs.len() * G as usize];
        let mut put = |at: u64, value: u64| {
            bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(0, BASE + 0x100);
        put(8, gs.len() as u64);
        put(16, 64);
        for (i, (state, id)) in (0u64..).zip(gs) {
            let g = 0x1000 + i * G;
            put(0x100 + i * 8, BASE + g);
            put(g + u64::from(LAYOUT.g_goid) - 8, u64::from(*state));
            put(g + u64::from(LAYOUT.g_goid), *id);
            put(g + u64::from(LAYOUT.g_gopc), 0x40_0000 + i);
        }
        BytesMemory { base: BASE, bytes }
    }

    #[test]
    fn the_living_are_told_from_free_slots_and_nonsense() {
        let m = memory(&[(4, 1), (6, 2), (0x1004, 3), (2, 4), (77, 5), (1, 4)]);
        let look = look(&m, LAYOUT, BASE).unwrap();
        let ids: Vec<u64> = look.alive.iter().map(|g| g.id).collect();
        assert_eq!(ids, [1, 3, 4]);
        assert_eq!(look.alive[1].gopc, 0x40_0002);
        assert_eq!(look.torn, 2, "an unknown state, and an id for the second time");
    }

    #[test]
    fn wild_slots_are_counted() {
        let mut m = memory(&[(4, 1), (4, 2)]);
        m.bytes[0x100..0x108].copy_from_slice(&u64::MAX.to_le_bytes());
        let look = look(&m, LAYOUT, BASE).unwrap();
        assert_eq!((look.alive.len(), look.torn), (1, 1));
    }

    #[test]
    fn what_is_no_slice_is_refused() {
        let set = |at: usize, value: u64| {
            let mut m = memory(&[(4, 1)]);
            m.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            look(&m, LAYOUT, BASE).unwrap_err().to_string()
        };
        assert!(set(8, 65).contains("no slice"));
        assert!(set(0, 0x1003).contains("no slice"));
        assert!(set(0, 0x7fff_0000).contains("cannot read"));
        let mut m = memory(&[]);
        m.bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        m.bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        m.bytes[0..8].copy_from_slice(&BASE.to_le_bytes());
        assert!(look(&m, LAYOUT, BASE).unwrap_err().to_string().contains("more than"));
    }
}
