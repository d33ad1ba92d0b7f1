//! The window on a CPython process: what the BPF side must know of it, and
//! what it writes down for each object that is allocated while the window is
//! open.
//!
//! An allocation is seen where it begins, not where it ends: the block that
//! pymalloc is about to hand out is the head of the free list of its size
//! class, which nothing can change in between, since the caller holds the GIL.
//! So one probe at the allocator's first instructions gives type (or size),
//! address and stack, and no return address in the target is ever rewritten.

use crate::{RecordedLabel, WindowCost};

/// Which function a probe sits in, by its arguments: its attach cookie.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PySite {
    /// `f(PyTypeObject *type, …)`: `PyType_GenericAlloc`, `_PyObject_GC_New`.
    Type = 0,
    /// `f(size_t nbytes)`: `PyObject_Malloc`.
    Size = 1,
    /// `f(size_t count, size_t each)`: `PyObject_Calloc`.
    Count = 2,
    /// `f(void *old, size_t nbytes)`: `PyObject_Realloc`.
    Resize = 3,
    /// `tp_dealloc(PyObject *op)`: the object is over, and who made it says
    /// nothing of the next at its address.
    Dealloc = 4,
}

/// What the BPF side knows of a type: the size class of its objects, and the
/// bytes of a block before the object.
pub fn type_word(class: u32, before: u32) -> u32 {
    (class & 0xff) | before << 8
}

/// `FRAME_OWNED_BY_CSTACK`: from here on a frame is no Python function's.
/// `FRAME_OWNED_BY_INTERPRETER` from 3.14 on.
pub const OWNED_BY_CSTACK: u8 = 3;

/// Low bits of a reference in a frame that say how it is held (`_PyStackRef`,
/// `pycore_stackref.h`, 3.14 on): no object's address has them.
pub const STACKREF_TAG: u64 = 3;

/// Frames of one stack that are kept, leaf first.
pub const MAX_FRAMES: usize = 24;
/// Context variables that are looked for.
pub const MAX_VARIABLES: usize = 4;
/// Objects, stacks, frames, types and code objects known at once.
pub const MAX_ENTRIES: u32 = 1 << 17;
pub const MAX_STACKS: u32 = 1 << 13;
pub const MAX_STACK_FRAMES: u32 = 1 << 17;
pub const MAX_TYPES: u32 = 1 << 10;
pub const MAX_CODES: u32 = 1 << 14;
/// Containers that are watched at once, in all processes.
pub const MAX_STORES: u32 = 1 << 10;
/// pymalloc's size classes: 16, 32 … 512 bytes.
pub const CLASSES: u32 = 32;

/// A context variable that names a tenant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PyVariable {
    /// Address of the `ContextVar`; 0 when there is none.
    pub address: u64,
    /// Its hash, folded to 32 bits as `hamt_hash` does.
    pub hash: u32,
    /// Rank of the rule that names it.
    pub rank: u32,
}

/// One process. Addresses are absolute, offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PyTarget {
    /// Where the address of the running thread's `PyThreadState` stands.
    pub tstate_at: u64,
    /// `usedpools`, `struct pools` of the main interpreter.
    pub used_pools: u64,
    pub type_str: u64,
    pub type_int: u64,
    /// Types of the nodes of a context's mapping; 0 when not known.
    pub type_bitmap: u64,
    pub type_array: u64,
    pub variables: [PyVariable; MAX_VARIABLES],
    /// `PyThreadState.frame`, `.cframe` or `.current_frame`.
    pub ts_frame: u32,
    /// `_PyCFrame.current_frame`; `u32::MAX` where there is no `cframe`.
    pub cframe_frame: u32,
    /// Fields of a frame: its code object, its caller, the instruction it
    /// stands at, its local variables.
    pub f_code: u32,
    pub f_previous: u32,
    pub f_instruction: u32,
    pub f_locals: u32,
    /// Where it says who owns it, a byte, and what to keep of that; 0 where it
    /// does not.
    pub f_owner: u32,
    pub owner_mask: u32,
    /// `PyThreadState.context`.
    pub ts_context: u32,
    /// Where a compact `str`'s characters begin: ASCII, others.
    pub str_ascii: u32,
    pub str_compact: u32,
    /// `PyLongObject` begins with `lv_tag` (3.12+) instead of `ob_size`.
    pub int_tag: u32,
    /// Size classes that [`PySite::Size`] and the like look at, one bit each.
    pub classes: u32,
    /// Rank of the rule `thread-name`; `u32::MAX` when it is not given.
    pub thread_rank: u32,
    /// Local variables are looked for in every frame.
    pub locals: u32,
    /// Write down what hits.
    pub active: u32,
}

/// A type (or a code object) of one process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PyKey {
    pub address: u64,
    pub tgid: u32,
    pub _pad: u32,
}

/// A local variable of a code object that names a tenant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PyLocal {
    /// Among `localsplus`; [`PyLocal::NONE`] when it has none.
    pub index: u16,
    /// It is a cell.
    pub cell: u16,
    pub rank: u32,
}

impl PyLocal {
    pub const NONE: u16 = u16::MAX;
}

/// A stack of one type in one process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PyStackKey {
    /// Of type and frames.
    pub hash: u64,
    pub tgid: u32,
    /// Of a frame: its number. Of a stack: 0.
    pub index: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PyStack {
    /// Allocations.
    pub count: u64,
    pub frames: u32,
    /// There were more.
    pub cut: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PyFrame {
    /// Address of the code object; 0: no Python function's.
    pub code: u64,
    /// Address of the instruction; ≤ 3.10: `f_lasti`.
    pub instruction: u64,
}

/// Who allocated the block at an address last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PyEntry {
    /// `CLOCK_MONOTONIC`, ns.
    pub time_ns: u64,
    pub stack: u64,
    /// `key` is a rule's rank, with the flags below.
    pub label: RecordedLabel,
}

/// A container that grows, whose count of elements a hardware watchpoint sees
/// written: who puts something there is who keeps it, whatever it was made by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PyStore {
    /// As its latest write left it.
    pub count: u64,
    /// The count of a list, a deque or a set is written before its new element is:
    /// that of `entry` is to be looked up at the next write. In a list it is the
    /// last of so many, in a deque it is at this address, in a set at one of so
    /// many of `places`; 0: none is.
    pub pending: u64,
    /// One of the constants below.
    pub kind: u64,
    /// Of a deque: the indices of its ends as the latest write left them, see
    /// [`Self::ends`].
    pub ends: u64,
    /// Of a set: addresses of entries that held nothing.
    pub places: [u64; Self::PLACES],
    pub entry: PyEntry,
}

impl PyStore {
    /// `PyListObject`.
    pub const LIST: u64 = 0;
    /// `PyDictObject` with `PyDictKeysObject` as up to 3.10, and from 3.11 on.
    pub const DICT: u64 = 1;
    pub const DICT_LOG2: u64 = 2;
    /// `dequeobject`.
    pub const DEQUE: u64 = 3;
    /// `PySetObject`.
    pub const SET: u64 = 4;

    /// Entries of a set that may be meant.
    pub const PLACES: usize = 6;
    /// Items of a block of a deque (`BLOCKLEN`).
    pub const BLOCK: u64 = 64;
    /// Ends that are not known.
    pub const NO_ENDS: u64 = u64::MAX;

    /// Where the count is: `ob_size` of a list or a deque, `ma_used` of a dict,
    /// `used` of a set.
    pub fn count_at(kind: u64) -> u64 {
        if kind == Self::SET { 24 } else { 16 }
    }

    pub fn new(kind: u64, count: u64) -> Self {
        let entry = PyEntry { time_ns: 0, stack: 0, label: RecordedLabel::UNSET };
        let places = [0; Self::PLACES];
        Self { count, pending: 0, kind, ends: Self::NO_ENDS, places, entry }
    }

    /// Where a deque of `count` elements begins and ends, `leftindex` and
    /// `rightindex` modulo [`Self::BLOCK`]; [`Self::NO_ENDS`] when not all three
    /// are of one moment.
    pub fn ends(count: u64, left: u64, right: u64) -> u64 {
        let modulo = Self::BLOCK - 1;
        if count & modulo != right.wrapping_sub(left).wrapping_add(1) & modulo {
            return Self::NO_ENDS;
        }
        (left & modulo) << 8 | right & modulo
    }

    /// Whether the ends of a deque went from `old` to `new` by an element that
    /// came at its right, or at its left; `None` when by something else.
    pub fn came_right(old: u64, new: u64) -> Option<bool> {
        if old == Self::NO_ENDS || new == Self::NO_ENDS {
            return None;
        }
        let modulo = Self::BLOCK - 1;
        let [left, right] = [8, 0].map(|at| (new >> at).wrapping_sub(old >> at) & modulo);
        match (left, right) {
            (0, 1) => Some(true),
            (n, 0) if n == modulo => Some(false),
            _ => None,
        }
    }

    /// Under what an element of a container stands among the entries, which are
    /// by block otherwise: blocks are aligned.
    pub fn key(element: u64) -> u64 {
        element | 1
    }

    /// The element of such a key; `None` for that of a block.
    pub fn element(key: u64) -> Option<u64> {
        (key & 1 == 1).then_some(key & !1)
    }
}

impl PyEntry {
    /// The label's value is an `int`: its low 8 bytes.
    pub const INT: u8 = 0x40;
    /// … is Latin-1 and not ASCII.
    pub const LATIN1: u8 = 0x20;
    pub const RANK: u8 = 0x1f;
}

/// Cost and losses of one process's window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PyStat {
    pub cost: WindowCost,
    /// Written down.
    pub entries: u64,
    /// Not written down: no pool of that size had a free block, so that a new
    /// one was begun.
    pub no_block: u64,
    /// … there was no room for a new stack, or the thread had none.
    pub no_stack: u64,
    /// A tenant's value that is no `str` or `int`, or could not be read.
    pub label_unreadable: u64,
    /// Type of a node of a context that is not known yet; 0: none was met.
    pub unknown_node: u64,
}

const _: () = assert!(core::mem::size_of::<PyVariable>() == 16);
const _: () = assert!(core::mem::size_of::<PyTarget>() == 176);
const _: () = assert!(core::mem::size_of::<PyKey>() == 16);
const _: () = assert!(core::mem::size_of::<PyLocal>() == 8);
const _: () = assert!(core::mem::size_of::<PyStackKey>() == 16);
const _: () = assert!(core::mem::size_of::<PyStack>() == 16);
const _: () = assert!(core::mem::size_of::<PyFrame>() == 16);
const _: () = assert!(core::mem::size_of::<PyEntry>() == 88);
const _: () = assert!(core::mem::size_of::<PyStore>() == 168);
const _: () = assert!(core::mem::size_of::<PyStat>() == 72);
