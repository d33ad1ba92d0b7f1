//! How sure a verdict over a series is, and how grave.

use super::{
    fleet::Found,
    trend::State,
};
use crate::report::model::Severity;

/// Chance below which nothing is surer: beyond, the noise is not as assumed.
const SUREST: f64 = 1e-8;

/// 0 to 1; calibrated by `cargo xtask eval` (docs/detection.md).
pub fn confidence(found: &Found<'_>) -> f64 {
    let s = found.standing;
    if found.state == State::Suspect {
        return 0.4;
    }
    // How far beyond chance, 0 to 1.
    let sure = (s.p.max(SUREST).log10() / SUREST.log10()).clamp(0.0, 1.0);
    if s.with_baseline { 0.88 + 0.1 * sure } else { 0.7 + 0.2 * sure }
}

/// By percent per minute of a fixed level: high from the threshold on, medium
/// from a tenth of it.
pub fn severity(percent_per_minute: f64, threshold: f64) -> Severity {
    if percent_per_minute >= threshold {
        Severity::High
    } else if percent_per_minute >= threshold / 10.0 {
        Severity::Medium
    } else {
        Severity::Low
    }
}
