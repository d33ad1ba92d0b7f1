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
    /// Probe hits, all programs together.
    Hits = 8,
    /// ns spent inside the programs of this agent's probes.
    ProbeNs = 9,
}

pub const COUNTERS: u32 = 10;

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

const _: () = assert!(Counter::ProbeNs as u32 + 1 == COUNTERS);
