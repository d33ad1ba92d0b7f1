//! The report: one model, several formats.

pub mod clean;
pub mod exit;
mod finding;
pub mod folded;
pub mod goroutines;
pub mod heap;
pub mod holder;
pub mod json;
pub mod live;
pub mod model;
pub mod output;
pub mod pprof;
pub mod series;
pub mod site;
pub mod text;
