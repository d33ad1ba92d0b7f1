//! What the interpreters of a process are doing: their running frames, and
//! whether a garbage collection is under way.
//!
//! Sources of the offsets: `Include/internal/pycore_runtime.h`,
//! `pycore_interp.h`, `Include/cpython/pystate.h`, `pycore_frame.h`; from 3.13
//! on the runtime carries them itself (`_Py_DebugOffsets`,
//! `pycore_debug_offsets.h`). Checked against the headers by `tests/cpython`.

use super::{
    code::{self, Code},
    object::Objects,
    pool::u64_at,
    running::Running,
};
use crate::target::memory::Memory;
use claw_common::python::STACKREF_TAG;

/// Interpreters, threads and frames of one that are followed.
const MOST_INTERPRETERS: usize = 64;
const MOST_THREADS: usize = 1 << 14;
const MOST_FRAMES: usize = 1 << 16;
/// Where the runtime's lists are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// `_PyRuntimeState.interpreters.head`.
    pub interpreters: u64,
    /// `PyInterpreterState.next`, `.tstate_head` or `.threads.head`, `.gc` (of
    /// the runtime in 3.8).
    pub next_interpreter: u64,
    pub threads: u64,
    pub gc: u64,
    /// `PyThreadState.next`.
    pub next_thread: u64,
    /// `_gc_runtime_state.enabled` and `.collecting`.
    pub gc_enabled: u64,
    pub gc_collecting: u64,
    /// `_gc_runtime_state.generation_stats` (`pycore_gc.h`, in 3.8
    /// `pycore_pymem.h`); `None` in 3.15, which counts in rings.
    pub gc_stats: Option<u64>,
}

/// Generations of the collector.
pub const GENERATIONS: usize = 3;
/// Bytes of one of them: `collections`, `collected`, `uncollectable`. Up to 3.14
/// they stand before `collecting`.
const GC_STATS_SIZE: u64 = 24;
const GC_STATS: u64 = GC_STATS_SIZE * GENERATIONS as u64;

const fn offsets(minor: u8) -> Offsets {
    let o = Offsets {
        interpreters: 32,
        next_interpreter: 0,
        threads: 8,
        gc: 616,
        next_thread: 8,
        gc_enabled: 12,
        gc_collecting: 200,
        gc_stats: Some(200 - GC_STATS),
    };
    match minor {
        8 => Offsets { gc: 344, ..o },
        9 | 10 => o,
        11 => Offsets { interpreters: 40, threads: 16, gc: 648, ..o },
        _ => Offsets { interpreters: 40, threads: 72, gc: 112, ..o },
    }
}

/// Where `_Py_DebugOffsets` of a version has what is read of it, bytes from its
/// start (`pycore_debug_offsets.h`).
struct DebugOffsets {
    /// `interpreter_state.next`, `.threads_head`, `.gc`.
    interpreter: [usize; 3],
    /// `thread_state.next`, `.interp`, `.current_frame`.
    thread: usize,
    /// `interpreter_frame.previous`, `.executable`, `.instr_ptr`,
    /// `.localsplus`, `.owner`.
    frame: usize,
    /// `gc.collecting`, and `_gc_runtime_state.enabled`, which it does not have.
    collecting: usize,
    enabled: u64,
}

const fn debug_offsets(minor: u8) -> Option<DebugOffsets> {
    Some(match minor {
        13 => DebugOffsets {
            interpreter: [64, 72, 80],
            thread: 168,
            frame: 232,
            collecting: 576,
            enabled: 12,
        },
        14 => DebugOffsets {
            interpreter: [64, 72, 88],
            thread: 192,
            frame: 256,
            collecting: 656,
            enabled: 12,
        },
        15 => DebugOffsets {
            interpreter: [64, 72, 88],
            thread: 192,
            frame: 320,
            collecting: 760,
            enabled: 0,
        },
        _ => return None,
    })
}

/// `runtime_state.interpreters_head`, in all of them.
const INTERPRETERS_HEAD: usize = 40;
/// Bytes of them that are read.
const DEBUG_OFFSETS: usize = 768;

impl Offsets {
    /// Of the running process; `None` when they are not known, or the process
    /// says that its frames are laid out in another way than the table has it.
    pub fn of<M: Memory>(minor: u8, memory: &M, runtime: u64) -> Option<Self> {
        match debug_offsets(minor) {
            Some(debug) => Self::from_runtime(memory, runtime, minor, &debug),
            None => Self::known(minor),
        }
    }

    /// Of 3.8 to 3.12, by minor version.
    pub fn known(minor: u8) -> Option<Self> {
        (8..=12).contains(&minor).then(|| offsets(minor))
    }

    fn from_runtime<M: Memory>(
        memory: &M,
        runtime: u64,
        minor: u8,
        debug: &DebugOffsets,
    ) -> Option<Self> {
        let mut b = [0u8; DEBUG_OFFSETS];
        memory.read(runtime, &mut b).ok()?;
        let at = |offset: usize| Some(u64_at(&b, offset)).filter(|v| *v < 1 << 20);
        let r = Running::of(minor)?;
        let frame = [r.f_previous, r.f_code, r.f_instruction, r.f_locals, r.f_owner?];
        let told = (0..5).map(|i| at(debug.frame + i * 8));
        let agrees = frame.iter().map(|o| Some(u64::from(*o))).eq(told)
            && at(debug.thread + 8)? == r.ts_interp
            && at(debug.thread + 16)? == u64::from(r.ts_frame);
        (b.starts_with(b"xdebugpy") && agrees).then_some(())?;
        let [next_interpreter, threads, gc] = debug.interpreter;
        let gc_collecting = at(debug.collecting)?;
        Some(Self {
            interpreters: at(INTERPRETERS_HEAD)?,
            next_interpreter: at(next_interpreter)?,
            threads: at(threads)?,
            gc: at(gc)?,
            next_thread: at(debug.thread)?,
            gc_enabled: debug.enabled,
            gc_collecting,
            gc_stats: gc_collecting.checked_sub(GC_STATS).filter(|_| minor < 15),
        })
    }
}

/// A Python function that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Active {
    pub code: u64,
    /// Address of its first local variable.
    pub locals: u64,
    /// Where it stands: an address, up to 3.10 `f_lasti`.
    pub instruction: u64,
}

/// What was found in the runtime's lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interpreters {
    pub count: usize,
    pub threads: usize,
    pub collecting: bool,
    /// Whether the collector is switched on in all of them.
    pub gc_enabled: bool,
    /// Collections since the process began, of each generation; `None` where
    /// they are not known.
    pub collections: Option<[u64; GENERATIONS]>,
    pub frames: Vec<Active>,
}

/// A thread that the interpreter knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState {
    pub address: u64,
    /// Address of its innermost frame; `None` when it runs no Python.
    pub frame: Option<u64>,
}

/// Read the runtime's lists; `thread` gets every thread.
fn lists<M: Memory>(
    memory: &M,
    runtime: u64,
    minor: u8,
    o: &Offsets,
    mut thread: impl FnMut(ThreadState),
) -> Interpreters {
    let at = |base: u64, offset: u64| memory.u64_at(base.checked_add(offset)?).ok();
    let pointer = |base: u64, offset: u64| at(base, offset).filter(|p| *p != 0);
    let byte = |base: u64, offset: u64| at(base, offset).map_or(0, |w| w & 0xffff_ffff);
    let none = o.gc_stats.map(|_| [0; GENERATIONS]);
    let mut found = Interpreters { gc_enabled: true, collections: none, ..Interpreters::default() };
    let mut next = pointer(runtime, o.interpreters);
    while let Some(interpreter) = next.filter(|_| found.count < MOST_INTERPRETERS) {
        found.count += 1;
        let gc = if minor == 8 { runtime } else { interpreter }.wrapping_add(o.gc);
        found.collecting |= byte(gc, o.gc_collecting) != 0;
        found.gc_enabled &= byte(gc, o.gc_enabled) != 0;
        // One that cannot be read is not none: a later count would look like news.
        found.collections = found.collections.zip(o.gc_stats).and_then(|(mut sums, stats)| {
            for (generation, sum) in (0..).zip(&mut sums) {
                *sum = sum.saturating_add(at(gc, stats + generation * GC_STATS_SIZE)?);
            }
            Some(sums)
        });
        let mut state = pointer(interpreter, o.threads);
        while let Some(address) = state.filter(|_| found.threads < MOST_THREADS) {
            found.threads += 1;
            let frame = Running::of(minor).and_then(|r| {
                let frame = pointer(address, r.ts_frame.into());
                match r.cframe_frame {
                    Some(current) => frame.and_then(|c| pointer(c, current.into())),
                    None => frame,
                }
            });
            thread(ThreadState { address, frame });
            state = pointer(address, o.next_thread);
        }
        next = pointer(interpreter, o.next_interpreter);
    }
    found
}

/// Read the runtime's lists, with the frames of all threads.
pub fn interpreters<M: Memory>(memory: &M, runtime: u64, minor: u8, o: &Offsets) -> Interpreters {
    let mut running = Vec::new();
    let mut found = lists(memory, runtime, minor, o, |thread| {
        if let Some(r) = Running::of(minor) {
            frames(memory, r, thread.frame, MOST_FRAMES, &mut running);
        }
    });
    found.frames = running;
    found
}

/// Garbage collections so far (see [`Interpreters::collections`]), and whether
/// the collector is switched on.
pub fn collections<M: Memory>(
    memory: &M,
    runtime: u64,
    minor: u8,
    o: &Offsets,
) -> Option<([u64; GENERATIONS], bool)> {
    let found = lists(memory, runtime, minor, o, |_| {});
    let collections = found.collections.filter(|_| found.count > 0)?;
    Some((collections, found.gc_enabled))
}

/// All threads of all interpreters.
pub fn threads<M: Memory>(memory: &M, runtime: u64, minor: u8, o: &Offsets) -> Vec<ThreadState> {
    let mut found = Vec::new();
    lists(memory, runtime, minor, o, |thread| found.push(thread));
    found
}

/// Add `frame` and its callers, until there are `most` in `found`.
pub fn frames<M: Memory>(
    memory: &M,
    r: &Running,
    frame: Option<u64>,
    most: usize,
    found: &mut Vec<Active>,
) {
    let at = |base: u64, offset: u32| memory.u64_at(base.checked_add(offset.into())?).ok();
    let mut next = frame;
    // A chain may run in a circle over frames that cannot be read.
    for _ in found.len()..most {
        let Some(frame) = next.filter(|f| *f != 0) else { return };
        found.extend(Active::at(memory, r, frame));
        next = at(frame, r.f_previous);
    }
}

impl Active {
    /// The frame at an address; `None` when it cannot be read.
    pub fn at<M: Memory>(memory: &M, r: &Running, frame: u64) -> Option<Self> {
        let at = |offset: u32| memory.u64_at(frame.checked_add(offset.into())?).ok();
        Some(Self {
            // Whole addresses before 3.14.
            code: at(r.f_code)? & !STACKREF_TAG,
            locals: frame.wrapping_add(r.f_locals.into()),
            instruction: at(r.f_instruction)?,
        })
    }
}

/// A function, from its code object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    pub name: String,
    pub file: String,
    /// Of its definition.
    pub line: u32,
}

/// `None` when there is no code object at `code`.
pub fn function<M: Memory>(objects: &Objects<'_, M>, code: u64) -> Option<Function> {
    let code = Code::read(objects, Running::of(objects.layout.minor)?, code)?;
    Some(Function { name: code.function, file: code.file, line: code.first_line })
}

/// Names of the local variables of a function, in the order of their slots.
pub fn local_names<M: Memory>(objects: &Objects<'_, M>, code: u64) -> Vec<Option<String>> {
    let running = Running::of(objects.layout.minor);
    let found = running.and_then(|r| code::local_names(objects, r, code)).unwrap_or_default();
    let slots = found.iter().map(|(_, slot, _)| usize::from(*slot) + 1).max().unwrap_or(0);
    let mut names = vec![None; slots];
    for (name, slot, _) in found {
        if let Some(n) = names.get_mut(usize::from(slot)) {
            *n = Some(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::BytesMemory;

    const BASE: u64 = 0x1000;
    const LAYOUT: Offsets = Offsets {
        interpreters: 0,
        next_interpreter: 0,
        threads: 8,
        gc: 0,
        gc_enabled: 16,
        gc_collecting: 24,
        gc_stats: Some(32),
        ..offsets(12)
    };

    /// A runtime that names one interpreter, of which `len` bytes can be read.
    fn counted(len: usize, interpreter: u64) -> Option<([u64; GENERATIONS], bool)> {
        let mut bytes = vec![0; 0x100 + len];
        let mut put = |at: usize, value: u64| {
            if let Some(word) = bytes.get_mut(at..at + 8) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        };
        put(0, interpreter);
        put(0x110, 1);
        for (i, n) in [(0, 70), (1, 6), (2, 5)] {
            put(0x120 + i * GC_STATS_SIZE as usize, n);
        }
        let memory = BytesMemory { base: BASE, bytes };
        collections(&memory, BASE, 12, &LAYOUT)
    }

    #[test]
    fn counts_that_cannot_be_read_are_not_known() {
        assert_eq!(counted(0x80, BASE + 0x100), Some(([70, 6, 5], true)));
        assert_eq!(counted(0x48, BASE + 0x100), None, "the last is out of reach");
        assert_eq!(counted(0x80, 0), None, "no interpreter");
    }
}
