//! A finding of memory that grows outside the pools, narrowed down to who
//! allocates it.

use super::part;
use crate::{
    ledger::{NativeSite, Process},
    report::{
        clean::clean,
        model::{self, EvidenceKind},
    },
};

/// Sites that are named, at most.
const MOST: usize = 8;
/// How sure a site is: that it allocated what stayed was seen, but what stays
/// for some seconds may go later.
const SURE: f64 = 0.9;

/// `whole` by tenant and site, with the part of its key that tells them apart;
/// `whole` itself where windows have told nothing.
pub fn findings(whole: model::Finding, process: &Process) -> Vec<(String, model::Finding)> {
    let leaking = process.natives.leaking();
    if leaking.is_empty() {
        return vec![(String::new(), whole)];
    }
    let of = |(i, n): (usize, &&NativeSite)| {
        let f = of_site(&whole, process, n);
        (if i == 0 { String::new() } else { format!("/{}", f.id) }, f)
    };
    leaking.iter().take(MOST).enumerate().map(of).collect()
}

fn of_site(whole: &model::Finding, process: &Process, n: &NativeSite) -> model::Finding {
    let natives = &process.natives;
    let share = (n.kept_bytes / natives.kept_bytes.max(1.0)).min(1.0);
    let mut f = part::of(whole, process, n.tenant.as_ref(), &n.site, &n.site.id, share);
    f.confidence = model::rounded(f.confidence * SURE);
    let native = n.site.frames.first().map_or_else(String::new, |f| clean(&f.function));
    let library = clean(&n.library);
    let windows = match natives.windows {
        1 => "one window".to_owned(),
        many => format!("{many} windows"),
    };
    f.evidence.push(model::Evidence {
        kind: EvidenceKind::Proof,
        detail: format!(
            "{native} in {library} asked for it: in {windows} on the C allocator {} of the {} \
             allocations made here were not freed, {} of them from the first half, and of their \
             sizes that many more came than went",
            n.stayed, n.allocated, n.early
        ),
        value: Some(share),
    });
    if let Some(r) = &mut f.remedy {
        if !n.interpreter && f.holder.is_none() {
            let file = library.rsplit('/').next().unwrap_or_default();
            r.text = format!(
                "{native} in {file} allocates memory that is not freed: see that what it makes is \
                 closed or released where this line is done with it; if it is, the library leaks."
            );
        }
        (r.file, r.line) = (f.site.file.clone().or_else(|| r.file.take()), f.site.line.or(r.line));
    }
    f
}
