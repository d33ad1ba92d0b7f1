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

/// Interpreters, threads and frames of one that are followed.
const MOST_INTERPRETERS: usize = 64;
const MOST_THREADS: usize = 1 << 14;
const MOST_FRAMES: usize = 1 << 16;
/// `_gc_runtime_state.enabled` and `.collecting`.
pub const GC_ENABLED: u64 = 12;
pub const GC_COLLECTING: u64 = 200;

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
}

const fn offsets(minor: u8) -> Offsets {
    let o = Offsets { interpreters: 32, next_interpreter: 0, threads: 8, gc: 616, next_thread: 8 };
    match minor {
        8 => Offsets { gc: 344, ..o },
        9 | 10 => o,
        11 => Offsets { interpreters: 40, threads: 16, gc: 648, ..o },
        _ => Offsets { interpreters: 40, threads: 72, gc: 112, ..o },
    }
}

impl Offsets {
    /// Of the running process; `None` when they are not known.
    pub fn of<M: Memory>(minor: u8, memory: &M, runtime: u64) -> Option<Self> {
        if minor == 13 { Self::from_runtime(memory, runtime) } else { Self::known(minor) }
    }

    /// Of 3.8 to 3.12, by minor version.
    pub fn known(minor: u8) -> Option<Self> {
        (8..=12).contains(&minor).then(|| offsets(minor))
    }

    /// `_Py_DebugOffsets` of 3.13.
    fn from_runtime<M: Memory>(memory: &M, runtime: u64) -> Option<Self> {
        let mut b = [0u8; 600];
        memory.read(runtime, &mut b).ok()?;
        let at = |offset: usize| Some(u64_at(&b, offset)).filter(|v| *v < 1 << 20);
        (b.starts_with(b"xdebugpy") && at(576)? == GC_COLLECTING).then_some(())?;
        Some(Self {
            interpreters: at(40)?,
            next_interpreter: at(64)?,
            threads: at(72)?,
            gc: at(80)?,
            next_thread: at(168)?,
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
    let mut found = Interpreters { gc_enabled: true, ..Interpreters::default() };
    let mut next = pointer(runtime, o.interpreters);
    while let Some(interpreter) = next.filter(|_| found.count < MOST_INTERPRETERS) {
        found.count += 1;
        let gc = if minor == 8 { runtime } else { interpreter }.wrapping_add(o.gc);
        found.collecting |= byte(gc, GC_COLLECTING) != 0;
        found.gc_enabled &= byte(gc, GC_ENABLED) != 0;
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
            code: at(r.f_code)?,
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
