//! Where something is read from.

use std::path::PathBuf;

/// A running process, or a dump and the executable that it was made with where
/// that is not the one that the dump names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Process(u32),
    Core { path: PathBuf, exe: Option<PathBuf> },
}
