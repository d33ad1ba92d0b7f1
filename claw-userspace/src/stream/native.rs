//! Windows on the C allocator of a process, as the stream carries them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::symbol::Frame;

/// What was allocated outside the pools of a CPython process while a window was
/// open, and stayed. Bytes are those that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NativeWindow {
    pub pid: u32,
    /// Everything that was allocated from here to there was written down, and
    /// until `checked_ns` it was seen what of that was freed.
    pub from_ns: u64,
    pub to_ns: u64,
    pub checked_ns: u64,
    /// The allocator's file and the functions in it that were probed.
    pub allocator: String,
    pub functions: Vec<String>,
    pub hits: u64,
    /// The target's work that was lost to it, ns (estimate).
    pub lost_work_ns: f64,
    /// What was not written down, or not in full, by reason.
    pub lost: BTreeMap<String, u64>,
    /// Leaf first, the native frame before Python's; [`NativeWriter::stack`]
    /// counts from here.
    pub stacks: Vec<Vec<Frame>>,
    /// Of all that stayed, those beyond the number of the same size that were
    /// freed meanwhile, bytes.
    pub kept_bytes: f64,
    /// The largest.
    pub by: Vec<NativeWriter>,
}

/// Who allocated it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NativeWriter {
    /// Cleaned; `None` when no rule within the process gave one.
    pub tenant: Option<String>,
    pub stack: u32,
    /// File of the function that asked for the memory, and whether that is the
    /// interpreter's own.
    pub library: String,
    pub interpreter: bool,
    /// Allocations of this stack in all, whoever's.
    pub allocated: u64,
    /// Those of this tenant that were not freed, and of them the ones from the
    /// first half of the window.
    pub stayed: u64,
    pub early: u64,
    pub stayed_bytes: u64,
    /// See [`NativeWindow::kept_bytes`].
    pub kept_bytes: f64,
}
