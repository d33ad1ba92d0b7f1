//! How sure a verdict over a series is, and how grave.

use super::trend::{Standing, State};
use crate::report::model::Severity;

/// Chance below which nothing is surer: beyond, the noise is not as assumed.
const SUREST: f64 = 1e-8;

/// Of a suspect.
pub const SUSPECT: f64 = 0.4;

/// 0 to 1; calibrated by `cargo xtask eval` (docs/eval.md).
pub fn confidence(s: &Standing) -> f64 {
    if s.state == State::Suspect {
        return SUSPECT;
    }
    // How far beyond chance, 0 to 1.
    let sure = (f64::from(s.p).max(SUREST).log10() / SUREST.log10()).clamp(0.0, 1.0);
    if s.with_baseline { 0.95 + 0.03 * sure } else { 0.90 + 0.07 * sure }
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
