//! From a report to the process's exit code.

use clap::ValueEnum;

use super::model::{Report, Verdict};

/// The least verdict that counts as failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailOn {
    Leak,
    Suspect,
    Never,
}

/// 0 nothing found, 1 a finding at or above `fail_on`, 3 not enough evidence.
pub fn code(report: &Report, fail_on: FailOn) -> u8 {
    let least = match fail_on {
        FailOn::Leak => Some(Verdict::Leak),
        FailOn::Suspect => Some(Verdict::Suspect),
        FailOn::Never => None,
    };
    if least.is_some_and(|l| report.findings.iter().any(|f| f.verdict >= l)) {
        1
    } else if report.summary.enough_evidence {
        0
    } else {
        3
    }
}
