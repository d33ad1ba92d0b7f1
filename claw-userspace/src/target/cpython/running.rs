//! Where a running Python thread's frames and their code objects keep what a
//! stack is made of, per minor version (64-bit builds). Sources:
//! `Include/cpython/pystate.h`, `Include/cpython/code.h`,
//! `Include/cpython/frameobject.h` (3.8–3.10),
//! `Include/internal/pycore_frame.h` (3.11+), `pycore_interpframe_structs.h`
//! (3.14+), `pycore_stackref.h`, `pycore_runtime.h`,
//! `pycore_gil.h`, `pycore_interp.h`. Checked against the headers of installed
//! Pythons by `tests/cpython`. Fields that have not moved are in `code`.

/// From `_PyRuntime` to the running thread's state, which whoever holds the GIL
/// is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// `gilstate.tstate_current`, bytes from `_PyRuntime`.
    Current(u64),
    /// From the main interpreter ([`MAIN`]): its `ceval.gil`, the lock's
    /// `last_holder`.
    Holder { gil: u64, last_holder: u64 },
}

/// `interpreters.main`, from `interpreters.head`.
pub const MAIN: u64 = 8;

/// Where a code object tells which line an instruction is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// `co_lnotab` (≤ 3.9), by byte offset.
    Lnotab(u64),
    /// `co_linetable` of 3.10 (PEP 626), by half of the byte offset.
    Table310(u64),
    /// `co_linetable` since 3.11, by address; `co_code_adaptive`.
    Locations { table: u64, code: u64 },
}

/// Where a code object keeps the names of its local variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locals {
    /// `co_nlocals`, `co_varnames`, `co_cellvars`, `co_freevars` (≤ 3.10).
    Separate { count: u64, names: u64, cells: u64, free: u64 },
    /// `co_localsplusnames`, `co_localspluskinds`.
    Together { names: u64, kinds: u64 },
}

/// Where a generator or coroutine object keeps its frame, and the frame the
/// value on top of its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suspended {
    /// `gi_frame`; `f_stacktop` (≤ 3.9), a pointer behind that value.
    Pointer { frame: u64, top: u64 },
    /// `gi_frame`; `f_valuestack`, `f_stackdepth` (3.10).
    Depth { frame: u64, stack: u64, depth: u64 },
    /// `gi_iframe` within the object, `gi_frame_state`;
    /// `_PyInterpreterFrame.stacktop`, in words from the first local variable.
    Within { frame: u64, state: u64, top: u64 },
    /// The same with `_PyInterpreterFrame.stackpointer`, `above` bytes behind that
    /// value, null while it runs (3.14 on). From the state `over` on it is over.
    Stacked { frame: u64, state: u64, over: i8, pointer: u64, above: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    pub thread: Thread,
    /// `PyThreadState.interp`.
    pub ts_interp: u64,
    /// `PyThreadState.frame`, `.cframe`, `.current_frame`.
    pub ts_frame: u32,
    /// `_PyCFrame.current_frame`, where there is one.
    pub cframe_frame: Option<u32>,
    pub ts_context: u32,
    /// `PyThreadState.thread_id`, `.native_thread_id` where there is one, `.id`.
    pub ts_thread: u32,
    pub ts_native: Option<u32>,
    pub ts_id: u32,
    /// Of a frame, `PyFrameObject` (≤ 3.10) or `_PyInterpreterFrame`: code
    /// object, caller, instruction (`f_lasti`, `prev_instr`, `instr_ptr`),
    /// local variables, and who owns it.
    pub f_code: u32,
    pub f_previous: u32,
    pub f_instruction: u32,
    pub f_locals: u32,
    pub f_owner: Option<u32>,
    pub co_first_line: u64,
    pub co_file: u64,
    /// `co_qualname`, `co_name` before 3.11.
    pub co_name: u64,
    pub lines: Lines,
    pub locals: Locals,
    pub suspended: Suspended,
}

const SEPARATE: Locals = Locals::Separate { count: 28, names: 72, cells: 88, free: 80 };
const TOGETHER: Locals = Locals::Together { names: 96, kinds: 104 };

const POINTER: Suspended = Suspended::Pointer { frame: 16, top: 72 };

const fn object_frames(current: u64, f_lasti: u32, lines: Lines, suspended: Suspended) -> Running {
    Running {
        thread: Thread::Current(current),
        ts_interp: 16,
        ts_frame: 24,
        cframe_frame: None,
        ts_context: 240,
        ts_thread: 176,
        ts_native: None,
        ts_id: 256,
        f_code: 32,
        f_previous: 24,
        f_instruction: f_lasti,
        f_locals: f_lasti + 256,
        f_owner: None,
        co_first_line: 40,
        co_file: 104,
        co_name: 112,
        lines,
        locals: SEPARATE,
        suspended,
    }
}

static R8: Running = object_frames(1368, 104, Lines::Lnotab(120), POINTER);
static R9: Running = object_frames(568, 104, Lines::Lnotab(120), POINTER);
static R10: Running = object_frames(
    568,
    96,
    Lines::Table310(120),
    Suspended::Depth { frame: 16, stack: 64, depth: 80 },
);
static R11: Running = Running {
    thread: Thread::Current(576),
    ts_interp: 16,
    ts_frame: 56,
    cframe_frame: Some(8),
    ts_context: 224,
    ts_thread: 152,
    ts_native: Some(160),
    ts_id: 240,
    f_code: 32,
    f_previous: 48,
    f_instruction: 56,
    f_locals: 72,
    f_owner: Some(69),
    co_first_line: 72,
    co_file: 112,
    co_name: 128,
    lines: Lines::Locations { table: 136, code: 184 },
    locals: TOGETHER,
    suspended: Suspended::Within { frame: 80, state: 75, top: 64 },
};
static R12: Running = Running {
    thread: Thread::Holder { gil: 384, last_holder: 8 },
    cframe_frame: Some(0),
    f_code: 0,
    f_previous: 8,
    f_owner: Some(70),
    ts_context: 208,
    ts_thread: 136,
    ts_native: Some(144),
    ts_id: 224,
    co_first_line: 68,
    lines: Lines::Locations { table: 136, code: 192 },
    suspended: Suspended::Within { frame: 72, state: 67, top: 64 },
    ..R11
};
static R13: Running = Running {
    thread: Thread::Holder { gil: 16, last_holder: 8 },
    ts_frame: 72,
    cframe_frame: None,
    ts_thread: 152,
    ts_native: Some(160),
    lines: Lines::Locations { table: 136, code: 200 },
    ..R12
};
static R14: Running = Running {
    f_owner: Some(74),
    f_locals: 80,
    lines: Lines::Locations { table: 136, code: 208 },
    suspended: Suspended::Stacked { frame: 72, state: 67, over: 1, pointer: 64, above: 8 },
    ..R13
};
static R15: Running = Running {
    ts_context: 232,
    ts_thread: 176,
    ts_native: Some(184),
    ts_id: 248,
    // `FRAME_CLEARED`; between what is awaited and the top is the index that
    // `GET_ITER` pushes (`Python/bytecodes.c`).
    suspended: Suspended::Stacked { frame: 72, state: 67, over: 5, pointer: 64, above: 16 },
    ..R14
};

impl Running {
    pub fn of(minor: u8) -> Option<&'static Self> {
        Some(match minor {
            8 => &R8,
            9 => &R9,
            10 => &R10,
            11 => &R11,
            12 => &R12,
            13 => &R13,
            14 => &R14,
            15 => &R15,
            _ => return None,
        })
    }
}
