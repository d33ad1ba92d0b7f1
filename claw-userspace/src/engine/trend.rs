//! Leaks that the trend finds by itself: what a (tenant, site) has in use, or
//! what is resident of the process, grew for good by every gate of `detect`,
//! though ages do not show it (no sampler, few survivors, foreign code).

use std::collections::BTreeMap;

use crate::{
    detect::{fleet::Found, series::Subject, trend::State, verdict},
    explain,
    ledger::{Ledger, Process},
    report::{clean::clean, model, site::describe},
    stream::Session,
};

use super::{
    assemble::timestamp,
    series::{LongView, RESIDENT, resident, subject},
};
use model::{EvidenceKind, Kind, Verdict};

/// The first window of ten-minute bins: within its two hours a cache that fills
/// has shown its bend. What grows fast is found earlier, by age.
const LEAST_WINDOW: u8 = 4;

/// Add what only the trend shows, and make a leak of what was suspected by age
/// and is confirmed by it.
pub fn findings(
    session: &Session,
    ledger: &Ledger,
    long_view: &LongView,
    now_ns: u64,
    found: &mut BTreeMap<String, model::Finding>,
) {
    let leaks: BTreeMap<&Subject, Found<'_>> = long_view
        .found()
        .into_iter()
        .filter(|f| f.state == State::Leak && f.standing.window >= LEAST_WINDOW)
        .map(|f| (f.subject, f))
        .collect();
    if leaks.is_empty() {
        return;
    }
    for p in ledger.processes() {
        let scope = Scope { session, long_view, process: p, now_ns };
        for group in p.heap.groups() {
            let Some(site) = p.sites.get(group.site) else { continue };
            let Some(leak) = leaks.get(&subject(ledger, p, group.tenant, &site.id)) else {
                continue;
            };
            let tenant = ledger.tenants.name(group.tenant);
            let key = format!("{}/{:?}/{tenant}/{}", p.info.pid, Kind::Heap, site.id);
            match found.get_mut(&key) {
                Some(known) if known.verdict == Verdict::Suspect => {
                    known.verdict = Verdict::Leak;
                    known.confidence = known.confidence.max(confidence(leak));
                }
                Some(_) => {}
                None => {
                    let mut finding = scope.finding(Kind::Heap, tenant, describe(site), leak);
                    finding.live.bytes = Some(group.live.bytes);
                    finding.live.objects = Some(group.live.objects);
                    finding.evidence = long_view.evidence(leak.subject, p.info.pid, group.tenant);
                    finding.remedy = explain::remedy(Kind::Heap, site);
                    found.insert(key, finding);
                }
            }
        }
        // What is resident grows with anything that leaks: the closer finding
        // says it.
        let known = found.values().any(|f| f.pid == p.info.pid);
        if let Some(leak) = leaks.get(&resident(ledger, p)).filter(|_| !known) {
            let finding = scope.resident(leak);
            found.insert(format!("{}/{:?}/", p.info.pid, Kind::Rss), finding);
        }
    }
}

fn confidence(leak: &Found<'_>) -> f64 {
    model::rounded(verdict::confidence(leak.standing))
}

struct Scope<'a> {
    session: &'a Session,
    long_view: &'a LongView,
    process: &'a Process,
    now_ns: u64,
}

impl Scope<'_> {
    fn resident(&self, leak: &Found<'_>) -> model::Finding {
        let info = &self.process.info;
        let tenant = info.default_tenant.clone().unwrap_or_else(|| "-".to_owned());
        let site = model::Site {
            id: model::finding_id(&info.name, Kind::Rss, &tenant, RESIDENT),
            function: RESIDENT.to_owned(),
            file: None,
            line: None,
            stack: Vec::new(),
        };
        let mut finding = self.finding(Kind::Rss, &tenant, site, leak);
        finding.live.bytes = self.process.rss_bytes.map(|b| b as f64);
        finding.evidence = self.long_view.trend_evidence(leak.subject);
        finding.evidence.push(model::Evidence {
            kind: EvidenceKind::Trend,
            detail: "no allocation site that is watched grows as it does: native memory, \
                     fragmentation, or more than was sampled"
                .into(),
            value: None,
        });
        finding
    }

    fn finding(
        &self,
        kind: Kind,
        tenant: &str,
        site: model::Site,
        leak: &Found<'_>,
    ) -> model::Finding {
        let (info, s) = (&self.process.info, leak.standing);
        let percent = s.slope * 60.0 / s.base() * 100.0;
        let since_ns = (leak.t0 + f64::from(s.since_s)) * 1e9;
        model::Finding {
            id: model::finding_id(&info.name, kind, tenant, &site.id),
            kind,
            type_name: None,
            verdict: Verdict::Leak,
            severity: verdict::severity(percent, self.session.threshold),
            confidence: confidence(leak),
            pid: info.pid,
            process: clean(&info.name),
            tenant: tenant.to_owned(),
            site,
            growth: model::Growth {
                percent_per_minute: Some(percent),
                bytes_per_minute: Some(s.slope * 60.0),
                count_per_minute: None,
                interval95: Some(s.interval.map(|v| f64::from(v) * 60.0)),
            },
            live: model::Live {
                bytes: None,
                objects: None,
                before_attach_bytes: None,
                oldest_s: None,
                age_s: None,
                freed_lifetime_s: None,
            },
            since: timestamp(self.session, since_ns.max(0.0) as u64),
            detected_after_s: self.now_ns.saturating_sub(self.session.t_ns) as f64 / 1e9,
            blocked_on: None,
            evidence: Vec::new(),
            holder: None,
            remedy: None,
        }
    }
}
