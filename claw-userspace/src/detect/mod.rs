//! Is it a leak? Pure: numbers in, a judgement out; time is a parameter.

mod accumulation;

pub use accumulation::{Accumulation, Evidence, Limits, Survivor, judge};
