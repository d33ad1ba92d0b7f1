//! A finding of a type that grows, narrowed down to who allocates it.

use super::part::{self, ALL};
use crate::{
    explain,
    ledger::{Process, Writer, Written},
    report::{
        clean::clean,
        model::{self, EvidenceKind},
    },
};

/// How much a site is worth where the end of objects is not seen: the object at
/// its address may be the second since it was allocated.
const REUSED: f64 = 0.7;
/// … and at least where it is, however few objects have a known writer.
const EXACT: f64 = 0.9;

/// The part of `whole` that is `writer`'s.
pub fn of_writer(
    whole: &model::Finding,
    process: &Process,
    type_name: &str,
    written: &Written,
    writer: &Writer,
) -> model::Finding {
    // Of those whose writer is known: that of the others is nobody's for now.
    let share = writer.stayed as f64 / written.entered.max(1) as f64;
    let subject = format!("{type_name}\0{}", writer.site.id);
    let mut f = part::of(whole, process, writer.tenant.as_ref(), &writer.site, &subject, share);
    let known = written.coverage().min(1.0);
    // Where the end of objects is seen every writer that is known is the right
    // one, and others are as likely to be the same.
    let known = if written.reused { known * REUSED } else { known.max(EXACT) };
    f.confidence = model::rounded(f.confidence * known);
    let windows = if written.windows == 1 { "one window" } else { "windows" };
    let mut proof = format!(
        "{} of {} objects of {} that came in {windows} and stayed{} were made or put there here, \
         {} of them in the first half; {} have come from here in all",
        writer.stayed,
        written.stayed,
        clean(type_name),
        if written.held { ", in containers that grow," } else { "" },
        writer.early,
        writer.allocated
    );
    if written.reused {
        proof += "; the end of objects is not seen, so that some may be the second at their \
                  address";
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
        if f.holder.is_none()
            && let Some(text) = explain::queue_remedy(&writer.site.frames)
        {
            r.text = text;
        }
        (r.file, r.line) = (r.file.take().or_else(|| f.site.file.clone()), r.line.or(f.site.line));
    }
    f
}

/// What windows could not tell of a type.
pub fn unknown(written: &Written, type_name: &str) -> model::Evidence {
    let name = clean(type_name);
    let detail = if written.stayed == 0 {
        format!(
            "in windows far more objects of {name} came and left than became more, as in a cache \
             that is full, and none of the containers that grow has them: who makes those that \
             stay is not known"
        )
    } else {
        format!(
            "of {} objects of {name} that came in a window and stayed, {:.0} % have a known \
             writer: the others did not pass through an allocator that can be probed in this build",
            written.stayed,
            written.coverage() * 100.0
        )
    };
    let value = (written.stayed > 0).then(|| written.coverage());
    model::Evidence { kind: EvidenceKind::Proof, detail, value }
}
