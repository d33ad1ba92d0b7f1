//! One value of a series, and whose series it is.

use serde::{Deserialize, Serialize};

/// Whose memory a series tells of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Subject {
    pub process: String,
    /// `-` when none.
    pub tenant: String,
    /// Empty: the whole of process and tenant.
    pub site: String,
}

/// NaN stands for what is not known.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// s.
    pub t: f64,
    /// In use, bytes.
    pub live: f64,
    /// Units of work per second.
    pub load: f64,
    /// Age of the process, s.
    pub uptime: f64,
    /// In use and older than its peers live, bytes.
    pub old: f64,
    /// Objects allocated and freed since the process began.
    pub allocs: f64,
    pub frees: f64,
    /// Taken right after a collection.
    pub gc: bool,
}

impl Point {
    pub fn new(t: f64, live: f64) -> Self {
        let unknown = f64::NAN;
        Self {
            t,
            live,
            load: unknown,
            uptime: unknown,
            old: unknown,
            allocs: unknown,
            frees: unknown,
            gc: false,
        }
    }
}
