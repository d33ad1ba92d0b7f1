//! Who holds what grows in a CPython heap, as the stream carries it.

use serde::{Deserialize, Serialize};

use crate::target::cpython::graph::paths::TypeHolders;

/// Seen on a copy of the memory, taken while the process stood still.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HoldersItem {
    pub pid: u32,
    pub t_ns: u64,
    /// How long it stood, and what was copied meanwhile.
    pub pause_ns: u64,
    pub bytes: u64,
    /// Spent on all of it, most of it after the process went on.
    pub took_ns: u64,
    /// Everything was followed: what was not reached is unreachable.
    pub whole: bool,
    /// The collector is switched off in the process.
    pub gc_off: bool,
    pub types: Vec<TypeHolders>,
}
