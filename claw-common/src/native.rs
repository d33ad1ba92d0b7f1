//! The window on a process's C allocator: what was allocated while it was open
//! and stayed, with the function that asked for it and the Python stack above.
//!
//! Which address an allocation gets is known when it returns, and its size when
//! it is called, so there is a probe at both. Return probes are the kernel's
//! own: they replace a return address while the function runs, which C code
//! does not look at. (Go's stacks move, CPython's windows need none.)

use crate::{RecordedLabel, WindowCost};

/// Which function a probe sits in, by its arguments: its attach cookie.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NativeSite {
    /// `f(size)`: `malloc`.
    Size = 0,
    /// `f(count, size)`: `calloc`.
    Count = 1,
    /// `f(old, size)`: `realloc`.
    Resize = 2,
    /// `f(alignment, size)`: `memalign`, `aligned_alloc`.
    Aligned = 3,
    /// `mmap`: only what is anonymous and can be touched.
    Map = 4,
    /// `f(old)`: `free`.
    Free = 5,
    /// `f(old, size)`: `munmap`.
    Unmap = 6,
}

/// `NativeTarget.active`.
pub const OFF: u32 = 0;
pub const RECORDING: u32 = 1;
/// Nothing new is written down; what is freed is still taken out.
pub const SETTLING: u32 = 2;

/// Allocations, and calls under way, known at once.
pub const MAX_ENTRIES: u32 = 1 << 16;
pub const MAX_FLIGHTS: u32 = 1 << 12;
pub const MAX_STACKS: u32 = 1 << 13;
pub const MAX_CLASSES: u32 = 1 << 12;
/// A size class that is one of mappings.
pub const MAPPED: u64 = 1 << 63;

/// One process, beside its [`crate::PyTarget`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NativeTarget {
    /// Device and inode of its pid namespace, in which `native_thread_id` is.
    pub ns_dev: u64,
    pub ns_ino: u64,
    /// `PyThreadState.native_thread_id`; 0 where there is none (≤ 3.10).
    pub ts_tid: u32,
    /// `PyThreadState.thread_id`, and where in what it points to glibc keeps
    /// the kernel's id.
    pub ts_pthread: u32,
    pub pthread_tid: u32,
    pub active: u32,
}

/// A call that has not returned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NativeFlight {
    /// Stack pointer at its first instruction: an inner call has a lower one.
    pub sp: u64,
    pub size: u64,
    pub mapped: u64,
}

/// An allocation that was not freed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeEntry {
    /// `CLOCK_MONOTONIC`, ns.
    pub time_ns: u64,
    /// As asked for, bytes.
    pub size: u64,
    /// Size of its chunk, which is also known of one that is freed.
    pub class: u64,
    pub stack: u64,
    /// As [`crate::PyEntry::label`].
    pub label: RecordedLabel,
}

/// Key: [`crate::PyStackKey`] with index 0. The Python frames, when there are
/// any, are under the same hash.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NativeStack {
    /// Return address into the function that asked for the memory.
    pub caller: u64,
    /// Allocations and their bytes, in all.
    pub count: u64,
    pub bytes: u64,
}

/// Cost and losses of one process's window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NativeStat {
    pub cost: WindowCost,
    /// Written down.
    pub entries: u64,
    /// Not written down: there was no room for an entry, a call or a stack.
    pub no_room: u64,
    /// Written down without a Python stack: the thread did not hold the GIL, or
    /// is none of Python's.
    pub no_python: u64,
    pub label_unreadable: u64,
    /// See [`crate::PyStat::unknown_node`].
    pub unknown_node: u64,
}

const _: () = assert!(core::mem::size_of::<NativeTarget>() == 32);
const _: () = assert!(core::mem::size_of::<NativeFlight>() == 24);
const _: () = assert!(core::mem::size_of::<NativeEntry>() == 104);
const _: () = assert!(core::mem::size_of::<NativeStack>() == 24);
const _: () = assert!(core::mem::size_of::<NativeStat>() == 72);
