//! The report: one model, several formats.

pub mod model;
