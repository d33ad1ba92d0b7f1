//! Why an event is missing or incomplete, and the counters that say how often.

/// Indices into the per-CPU counter array. The order is the wire format.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Events written to the ring buffer.
    Sent = 0,
    /// The ring buffer had no room.
    RingFull = 1,
    /// The user stack could not be read (paged out, or no frame pointer).
    StackUnreadable = 2,
    /// The goroutine or its id could not be read.
    GoroutineUnreadable = 3,
    /// The labels could not be read although the goroutine has some.
    LabelUnreadable = 4,
    /// More labels than [`crate::config::MAX_LABELS`]; the rest not looked at.
    LabelsSkipped = 5,
    /// A probe fired in a process that is not a target.
    ForeignProcess = 6,
    /// A special of another kind than a profile sample (finalizer, cleanup).
    OtherSpecial = 7,
}

pub const COUNTERS: u32 = 8;

/// Run count and cost of one probe, indexed by [`crate::EventKind`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeStat {
    /// Times the probe's program ran.
    pub hits: u64,
    /// ns inside the program; the trap that leads to it is not included.
    pub ns: u64,
}

/// Hits of the probes of one process's window, written down or not, and what
/// they cost.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowCost {
    pub hits: u64,
    /// ns inside the programs; the traps that lead to them are not included.
    pub ns: u64,
    /// Time of the first and the latest hit, `CLOCK_MONOTONIC` ns.
    pub first_ns: u64,
    pub last_ns: u64,
}

/// Length of the probe statistics, one entry per [`crate::EventKind`] value.
pub const PROBES: u32 = 8;

/// The counters that mean "something is missing", with the name under which
/// the report shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossReason {
    pub counter: Counter,
    pub name: &'static str,
}

pub const LOSSES: [LossReason; 5] = [
    LossReason { counter: Counter::RingFull, name: "ring_full" },
    LossReason { counter: Counter::StackUnreadable, name: "stack_unreadable" },
    LossReason { counter: Counter::GoroutineUnreadable, name: "goroutine_unreadable" },
    LossReason { counter: Counter::LabelUnreadable, name: "label_unreadable" },
    LossReason { counter: Counter::LabelsSkipped, name: "labels_skipped" },
];

const _: () = assert!((crate::EventKind::Exit as u32) < PROBES);
const _: () = assert!(Counter::OtherSpecial as u32 + 1 == COUNTERS);
