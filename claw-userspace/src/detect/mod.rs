//! Is it a leak? Pure: numbers in, a judgement out; time is a parameter.

mod accumulation;
pub mod fdr;
pub mod fleet;
mod floor;
pub mod forest;
pub mod parity;
pub mod rolling;
pub mod series;
pub mod trend;
pub mod verdict;

pub use accumulation::{Accumulation, Evidence, Limits, Survivor, judge};
pub use floor::{Outlived, Rise, outlived, rise};
