//! Exact mode: what the BPF side counts for every allocation and every new
//! goroutine while a window is open, instead of sending each one.

use crate::{RecordedLabel, WindowCost};

/// Which function a probe of exact mode sits in: its attach cookie.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExactSite {
    /// `runtime.mallocgc(size, typ, needzero)`.
    Malloc = 0,
    /// A size-specialised `runtime.mallocgc…SC…`, same arguments; `mallocgc`
    /// calls it too, and then has counted the object itself.
    Specialised = 1,
    /// The call `runqput(pp, newg, next)` in `newproc`.
    NewprocRunqput = 2,
    /// Where `newproc1` has returned the new `g`.
    NewprocResult = 3,
}

/// What allocations are counted by. Zero-padded: it is compared bytewise.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExactKey {
    pub tgid: u32,
    /// Id in the stack map; negative when the stack was not kept.
    pub stack: i32,
    /// Address of the runtime type, 0 when the allocator was given none;
    /// goroutines: `g.startpc`.
    pub typ: u64,
    /// Return address of the allocator's caller; goroutines: `g.gopc`.
    pub caller: u64,
    /// Bits of the size, or [`ExactKey::GOROUTINE`].
    pub class: u32,
    pub _pad: u32,
    pub label: RecordedLabel,
}

impl ExactKey {
    pub const GOROUTINE: u32 = u32::MAX;
}

/// Totals of one key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExactValue {
    pub count: u64,
    /// As requested, before the allocator rounds up.
    pub bytes: u64,
}

/// What the programs must know of a target in exact mode. Addresses are those
/// of the running process.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExactTarget {
    /// Code of `mallocgc`, and of all size-specialised functions together.
    pub malloc: [u64; 2],
    pub specialised: [u64; 2],
    /// Count what hits: all probes are in place.
    pub active: u32,
    /// Also send each allocation.
    pub stream: u32,
}

/// Cost and losses of one target's window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowStat {
    pub cost: WindowCost,
    /// Not counted: no room for a new key.
    pub overflow: u64,
    /// Counted without a stack: unreadable, or its place in the map taken.
    pub stack_lost: u64,
    /// Counted without a tenant: no goroutine could be read.
    pub goroutine_unreadable: u64,
    /// Not sent: the ring was full (`stream` only).
    pub stream_lost: u64,
}

/// Keys, and stacks, that are kept at once.
pub const MAX_KEYS: u32 = 16_384;
pub const MAX_STACKS: u32 = 16_384;

const _: () = assert!(core::mem::size_of::<ExactKey>() == 104);
const _: () = assert!(core::mem::size_of::<ExactValue>() == 16);
const _: () = assert!(core::mem::size_of::<ExactTarget>() == 40);
const _: () = assert!(core::mem::size_of::<WindowStat>() == 64);
