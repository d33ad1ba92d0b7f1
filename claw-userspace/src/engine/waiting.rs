//! Is what grows in a CPython heap garbage that waits for the collector?
//!
//! Cycles are freed by the collector alone, and it goes over everything rarely:
//! up to 3.13 once a quarter of the heap is new. Until then garbage piles up as
//! evenly as a leak.

use crate::{
    detect::{Outlived, Rise, outlived},
    ledger::{HeldBy, Process, TypeHistory},
    report::model::{Evidence, EvidenceKind, Finding, Verdict},
    target::cpython::graph::paths::RootKind,
};

/// Versions whose collector goes over everything in steps, and does not count
/// when it is round (`Python/gc.c`).
const IN_STEPS: [&str; 5] = ["3.14.0", "3.14.1", "3.14.2", "3.14.3", "3.14.4"];

/// Put into `finding`, of a type with this history and rise, what is known of
/// that; false when it is garbage and no finding. `held` is what a copy of the
/// memory says of the type.
pub fn apply(
    finding: &mut Finding,
    process: &Process,
    type_name: &str,
    (history, rise): (&TypeHistory, &Rise),
    held: Option<&HeldBy<'_>>,
) -> bool {
    let awaited = process.collector.is_awaited();
    if !awaited || IN_STEPS.contains(&process.info.version.as_str()) {
        return true;
    }
    let latest = process.collector.latest();
    let seen = latest.map_or(Outlived::Unclear, |(from_ns, to_ns)| {
        let span = (from_ns as f64 / 1e9, to_ns as f64 / 1e9);
        outlived(&history.bytes.points(), span, rise.per_minute)
    });
    // A container to which elements keep coming is in use, and so are they.
    let grows = |h: &HeldBy<'_>| {
        h.path.kind != RootKind::Unreachable && h.grown.is_some_and(|(by, all)| by * 2 >= all)
    };
    let by_writers = process.writers.of(type_name).is_some_and(|w| w.held && w.stayed > 0);
    let is_held = finding.holder.is_some() || by_writers;
    let is_held = held.map_or(is_held, |h| grows(h) || (is_held && h.grown.is_none()));
    let detail = match seen {
        Outlived::Yes => "it has lived through a full garbage collection: no garbage that waits",
        _ if is_held => return true,
        Outlived::No => return false,
        Outlived::Unclear => {
            finding.verdict = finding.verdict.min(Verdict::Suspect);
            "since it began no full garbage collection has shown whether it stays, and nothing \
             that grows is seen to hold it: it may be garbage that waits for one"
        }
    };
    finding.evidence.push(Evidence {
        kind: EvidenceKind::Proof,
        detail: detail.to_owned(),
        value: None,
    });
    true
}
