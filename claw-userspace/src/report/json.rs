//! The report as JSON. The shape is published as `schema/report-1.json`.

use super::model::{JsonLine, Report};

/// The JSON Schema of the report.
pub const SCHEMA: &str = include_str!("../../schema/report-1.json");

/// One document, indented.
///
/// # Errors
/// Never for a report; the signature is serde's.
pub fn document(report: &Report) -> serde_json::Result<String> {
    serde_json::to_string_pretty(report).map(|s| s + "\n")
}

/// One line of `--format jsonl`.
///
/// # Errors
/// As [`document`].
pub fn line(event: &JsonLine) -> serde_json::Result<String> {
    serde_json::to_string(event).map(|s| s + "\n")
}
