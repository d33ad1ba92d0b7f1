//! Is it a leak? Pure: numbers in, a judgement out; time is a parameter.

mod accumulation;
mod floor;

pub use accumulation::{Accumulation, Evidence, Limits, Survivor, judge};
pub use floor::{Rise, rise};
