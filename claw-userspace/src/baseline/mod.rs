//! What is healthy: named baselines, one file each that can live in git, and
//! the rolling ones of this machine.

mod file;
mod learn;
mod store;

pub use file::{Baseline, BaselineError, Entry, SCHEMA, folder, list, path_of};
pub use learn::{is_series, learn, learn_any, load_or_learn};
pub use store::{HourOf, LONGEST_NAME, MOST_ROWS, Store, StoreError};
