//! Windows on CPython processes, as the stream carries them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::symbol::Frame;

/// What a window on a CPython process saw of the types that grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PyWindow {
    pub pid: u32,
    /// All probes were in place from here to there, and what was there at the
    /// end was looked for at `checked_ns` again; 0: it was not.
    pub from_ns: u64,
    pub to_ns: u64,
    pub checked_ns: u64,
    /// Functions that were probed.
    pub functions: Vec<String>,
    pub hits: u64,
    /// The target's work that was lost to it, ns (estimate).
    pub lost_work_ns: f64,
    /// What was not written down, or not in full, by reason.
    pub lost: BTreeMap<String, u64>,
    /// Leaf first; [`PyWriter::stack`] counts from here.
    pub stacks: Vec<Vec<Frame>>,
    pub gains: Vec<PyGain>,
}

/// When the probes of a window on a CPython process were in place, from the first
/// that was put in to the last that was taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Placed {
    pub pid: u32,
    pub from_ns: u64,
    pub to_ns: u64,
    /// The target's work that was lost to them, ns (estimate).
    pub lost_work_ns: f64,
}

/// Objects of one type.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PyGain {
    pub type_name: String,
    /// At addresses where none was when the window opened, and still there when
    /// it was checked.
    pub stayed: u64,
    /// Of those, with a known writer.
    pub entered: u64,
    /// The end of objects was not seen, so that a writer may be that of an
    /// earlier object at the same address.
    pub reused: bool,
    /// Only those count that containers hold which grow: others come and go.
    pub held: bool,
    /// The largest of them.
    pub by: Vec<PyWriter>,
}

impl PyGain {
    /// See [`is_unclear`].
    pub fn is_unclear(&self) -> bool {
        is_unclear(self.entered, self.stayed)
    }
}

/// Of those that stayed too few, less than four in five, have a known writer.
pub fn is_unclear(entered: u64, stayed: u64) -> bool {
    entered.saturating_mul(5) < stayed.saturating_mul(4)
}

/// Who allocated them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PyWriter {
    /// Cleaned; `None` when no rule within the process gave one.
    pub tenant: Option<String>,
    pub stack: u32,
    pub stayed: u64,
    /// Of those, allocated in the first half of the window.
    pub early: u64,
    /// Objects of the type that were allocated by this stack in all, whoever's.
    pub allocated: u64,
}
