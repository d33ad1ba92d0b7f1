//! Threads and asyncio tasks of a CPython process, as the stream carries them.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FlowKind {
    #[default]
    Thread,
    /// Of asyncio, pending.
    Task,
}

/// All threads or tasks at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PyFlows {
    pub pid: u32,
    pub t_ns: u64,
    pub kind: FlowKind,
    /// How often they have been looked at, with this time.
    pub looks: u32,
    /// Those whose frames could not be read, and those in groups that found no
    /// room in `groups`.
    pub unknown: u64,
    pub left_out: u64,
    /// Most alive first.
    pub groups: Vec<FlowGroup>,
}

/// Those that were started with the same function, of one tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlowGroup {
    pub start: FlowLine,
    /// Cleaned; `None` when no rule within the process gave one.
    pub tenant: Option<String>,
    pub alive: u64,
    /// Of those, seen at the look before as well.
    pub old: u64,
    /// Since that look: those that had been old then and are over now.
    pub old_ended: u64,
    /// When the oldest was first seen.
    pub oldest_ns: u64,
    /// Where most of them stand, and what they wait for there.
    pub at: Option<FlowLine>,
    pub waits_for: Option<String>,
    pub standing: u64,
}

/// A line of the program, cleaned.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FlowLine {
    pub function: String,
    pub file: String,
    /// 0: not known.
    pub line: u32,
}
