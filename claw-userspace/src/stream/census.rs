//! Censuses of CPython heaps, as the stream carries them.

use serde::{Deserialize, Serialize};

/// A census of a CPython heap (see `target::cpython::census`). Bytes are those
/// of the blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CensusItem {
    pub pid: u32,
    pub t_ns: u64,
    /// In use in pymalloc pools, all types together.
    pub blocks: u64,
    pub bytes: u64,
    /// … of which in no object, and in pools that changed while they were read.
    pub untyped_bytes: u64,
    pub torn_bytes: u64,
    /// Resident outside the pools, an estimate.
    pub outside_bytes: u64,
    /// Swapped out and not looked at.
    pub swapped_bytes: u64,
    pub took_ns: u64,
    /// Most bytes first; those with the fewest are left out.
    pub types: Vec<TypeCount>,
    /// Containers with a name that have grown since the census before.
    pub grown: Vec<Grown>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TypeCount {
    pub name: String,
    pub objects: u64,
    pub bytes: u64,
}

/// A container that a module or a class of it holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Grown {
    /// `module.NAME` or `module.Class.NAME`.
    pub place: String,
    pub on_class: bool,
    /// Of the container.
    pub type_name: String,
    /// The module's file.
    pub file: Option<String>,
    pub elements: u64,
    pub by: u64,
}

impl Grown {
    /// How many elements it keeps at most, where its type's name says so:
    /// `collections.deque(maxlen=500)`, `functools.lru_cache(maxsize=500)`.
    pub fn bound(&self) -> Option<u64> {
        let (_, most) = self.type_name.split_once("(max")?;
        most.split_once('=')?.1.strip_suffix(')')?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_bound() {
        let bound = |name: &str| Grown { type_name: name.into(), ..Grown::default() }.bound();
        assert_eq!(bound("functools.lru_cache(maxsize=500)"), Some(500));
        assert_eq!(bound("collections.deque(maxlen=7)"), Some(7));
        assert_eq!(bound("functools.lru_cache(maxsize=None)"), None);
        assert_eq!(bound("collections.deque"), None);
        assert_eq!(bound("dict"), None);
    }
}
