//! What is healthy: named baselines, one file each that can live in git.

mod file;
mod learn;

pub use file::{Baseline, BaselineError, Entry, SCHEMA, folder, list, path_of};
pub use learn::{is_series, learn, learn_any, load_or_learn};
