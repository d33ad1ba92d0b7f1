//! One ring-buffer record: an [`EventHeader`], then `stack_len` return
//! addresses (`u64`, native endian, leaf first).

/// Most stack frames kept for one event: the kernel's default
/// `perf_event_max_stack` is 127, and 128 is the depth of Go's own profiles.
pub const MAX_STACK: usize = 128;

/// Bytes of a tenant label's value that are kept. Kubernetes limits label
/// values to 63 bytes; longer ones are cut and counted.
pub const MAX_LABEL: usize = 64;

/// What happened. The discriminants are part of the recording format.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The Go runtime sampled an allocation (`runtime.profilealloc`).
    GoAlloc = 1,
    /// A sampled Go object was freed by the sweeper (`runtime.freeSpecial`).
    GoFree = 2,
    /// A goroutine was created (`runtime.newproc1`).
    GoroutineNew = 3,
    /// A goroutine ended (`runtime.gdestroy`, `runtime.goexit0`).
    GoroutineExit = 4,
    /// A mark phase ended (`runtime.gcMarkTermination`).
    GoGc = 5,
    /// The target replaced its program (`execve`).
    Exec = 6,
    /// The target's thread-group leader exited.
    Exit = 7,
    /// One allocation of an open window of exact mode (`--stream`).
    GoEveryAlloc = 32,
}

impl EventKind {
    pub fn from_u16(v: u16) -> Option<Self> {
        Some(match v {
            1 => Self::GoAlloc,
            2 => Self::GoFree,
            3 => Self::GoroutineNew,
            4 => Self::GoroutineExit,
            5 => Self::GoGc,
            6 => Self::Exec,
            7 => Self::Exit,
            32 => Self::GoEveryAlloc,
            _ => return None,
        })
    }
}

/// The tenant label found on the goroutine, if any.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordedLabel {
    /// Rank of the key that matched among the configured ones, or
    /// [`RecordedLabel::NONE`].
    pub key: u8,
    /// Bytes of `value` that are set, at most [`MAX_LABEL`].
    pub len: u8,
    /// Length of the value in the target, saturated; above `len` it was cut.
    pub full_len: u16,
    pub _pad: u32,
    pub value: [u8; MAX_LABEL],
}

impl RecordedLabel {
    pub const NONE: u8 = u8::MAX;
    /// No label.
    pub const UNSET: Self =
        Self { key: Self::NONE, len: 0, full_len: 0, _pad: 0, value: [0; MAX_LABEL] };
}

/// Fixed part of every event.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EventHeader {
    /// An [`EventKind`].
    pub kind: u16,
    /// Return addresses that follow, at most [`MAX_STACK`].
    pub stack_len: u16,
    /// Thread group and thread, as the initial pid namespace numbers them.
    pub tgid: u32,
    pub tid: u32,
    pub _pad: u32,
    /// `CLOCK_MONOTONIC`, ns.
    pub time_ns: u64,
    /// Goroutine on whose behalf it happened; 0 when there is none.
    pub goid: u64,
    /// GoAlloc, GoFree: object address. Goroutine events: address of the `g`.
    /// GoEveryAlloc: id of the stack, negative when it was not kept.
    pub addr: u64,
    /// GoAlloc: bytes of the slot. GoFree: bytes as the runtime passes them.
    /// GoEveryAlloc: bytes requested.
    pub size: u64,
    /// GoFree: address of the profile bucket (`specialprofile.b`), whose stack
    /// tells the site of objects sampled before the agent attached.
    /// GoroutineNew: the new goroutine's id. GoroutineExit: the ending one's.
    /// GoEveryAlloc: address of the runtime type.
    pub aux: u64,
    /// GoroutineNew, GoroutineExit: `g.gopc`, the `go` statement's return
    /// address. GoEveryAlloc: return address of the allocator's caller.
    pub gopc: u64,
    /// GoroutineNew: `g.startpc`, entry of the goroutine's function.
    pub startpc: u64,
    pub label: RecordedLabel,
}

pub const HEADER_SIZE: usize = core::mem::size_of::<EventHeader>();
/// Largest record the BPF side writes.
pub const MAX_EVENT: usize = HEADER_SIZE + MAX_STACK * 8;

const _: () = assert!(core::mem::size_of::<RecordedLabel>() == 72);
const _: () = assert!(HEADER_SIZE == 144);
const _: () = assert!(HEADER_SIZE.is_multiple_of(8), "the stack that follows is u64");
const _: () = assert!(MAX_LABEL <= u8::MAX as usize);
