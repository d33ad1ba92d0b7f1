//! A finding of a type that grows, with who holds it.

use super::census::full_at;
use crate::{
    explain::holder_remedy,
    ledger::HeldBy,
    report::{
        holder::holder,
        model::{self, EvidenceKind, Verdict},
    },
    target::cpython::graph::paths::RootKind,
};

/// What was seen, and at what price.
pub fn evidence(held: &HeldBy<'_>, type_name: &str) -> Vec<model::Evidence> {
    let path = held.path;
    let ms = held.pause_ns as f64 / 1e6;
    let mib = held.bytes >> 20;
    let mut detail = match held.grown {
        Some((by, all)) => format!(
            "of the {all} objects of {type_name} that came between looks, {by} are held this way; \
             in all {} of {}",
            path.objects, held.all
        ),
        None => {
            format!("{} of {} objects of {type_name} are held this way", path.objects, held.all)
        }
    };
    detail += &format!(" (seen on a copy of {mib} MiB, for which the process stood {ms:.1} ms)");
    let mut all = vec![model::Evidence {
        kind: EvidenceKind::Proof,
        detail,
        value: Some(path.objects as f64),
    }];
    all.extend(path.bound.map(full_at));
    all
}

/// Put what was seen on a copy into a finding that the censuses made.
pub fn apply(finding: &mut model::Finding, held: &HeldBy<'_>, type_name: &str) {
    let path = held.path;
    let told = evidence(held, type_name);
    finding.evidence.retain(|e| !told.contains(e));
    finding.evidence.extend(told);
    // What a census names is better than memory without a name.
    if path.kind == RootKind::Native && finding.holder.is_some() {
        return;
    }
    finding.holder = Some(holder(path));
    if path.bound.is_some() {
        finding.verdict = finding.verdict.min(Verdict::Suspect);
    }
    finding.site.file = path.file.clone().or_else(|| finding.site.file.take());
    finding.site.line = path.line.or(finding.site.line);
    finding.remedy = Some(model::Remedy {
        text: holder_remedy(type_name, path, held.gc_off),
        file: path.file.clone(),
        line: path.line,
    });
}
