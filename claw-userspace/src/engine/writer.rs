//! A finding of a type that grows, narrowed down to who allocates it.

use crate::{
    ledger::{Process, Writer, Written},
    report::{
        clean::clean,
        model::{self, EvidenceKind},
        site::describe,
    },
    tenant,
};

/// How much a site is worth where the interpreter reuses freed objects: the
/// object at its address may be the second since it was allocated.
const REUSED: f64 = 0.7;
/// Share from which on the writer's is all of the type's.
const ALL: f64 = 0.95;

/// The part of `whole` that is `writer`'s.
pub fn of_writer(
    whole: &model::Finding,
    process: &Process,
    type_name: &str,
    written: &Written,
    writer: &Writer,
) -> model::Finding {
    let share = writer.stayed as f64 / written.stayed.max(1) as f64;
    let tenant = writer.tenant.clone().or_else(|| process.info.default_tenant.clone());
    let tenant = tenant.unwrap_or_else(|| tenant::NONE.to_owned());
    let mut f = whole.clone();
    let subject = format!("{type_name}\0{}", writer.site.id);
    f.id = model::finding_id(&process.info.name, f.kind, &tenant, &subject);
    f.tenant = tenant;
    f.site = describe(&writer.site);
    let known = written.coverage() * if written.reused { REUSED } else { 1.0 };
    f.confidence = model::rounded(f.confidence * known.min(1.0));
    if share < ALL {
        let part = |v: Option<f64>| v.map(|v| v * share);
        f.growth = model::Growth {
            percent_per_minute: part(f.growth.percent_per_minute),
            bytes_per_minute: part(f.growth.bytes_per_minute),
            count_per_minute: part(f.growth.count_per_minute),
            interval95: f.growth.interval95.map(|i| i.map(|v| v * share)),
        };
        // Whose the older ones are is not known.
        (f.live.bytes, f.live.objects) = (None, None);
    }
    let windows = if written.windows == 1 { "one window" } else { "windows" };
    let mut proof = format!(
        "{} of {} objects of {} that came in {windows} and stayed{} were allocated here, {} of \
         them in the first half; the site allocated {} of them in all",
        writer.stayed,
        written.stayed,
        clean(type_name),
        if written.held { ", in containers that grow," } else { "" },
        writer.early,
        writer.allocated
    );
    if written.reused {
        proof += "; the interpreter keeps freed ones for reuse, so that some may have had another \
                  writer since";
    }
    f.evidence.push(model::Evidence {
        kind: EvidenceKind::Proof,
        detail: proof,
        value: Some(share),
    });
    if written.coverage() < ALL {
        f.evidence.push(unknown(written, type_name));
    }
    if let Some(r) = &mut f.remedy {
        (r.file, r.line) = (r.file.take().or_else(|| f.site.file.clone()), r.line.or(f.site.line));
    }
    f
}

/// What windows could not tell of a type.
pub fn unknown(written: &Written, type_name: &str) -> model::Evidence {
    model::Evidence {
        kind: EvidenceKind::Proof,
        detail: format!(
            "of {} objects of {} that came in a window and stayed, {:.0} % have a known writer: \
             the others did not pass through an allocator that can be probed in this build",
            written.stayed,
            clean(type_name),
            written.coverage() * 100.0
        ),
        value: Some(written.coverage()),
    }
}
