//! From the ledger's evidence to findings, in words.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    detect::{Accumulation, Limits, judge},
    explain,
    ledger::{Amount, Group, Ledger, Lifetimes, Place, Population, Process, Site, SiteId},
    report::{clean::clean, model, site::describe, text},
    stream::Session,
    tenant::TenantId,
};

use super::{
    assemble::timestamp,
    series::{LongView, subject},
};
use model::{EvidenceKind, Kind, Severity, Verdict};

/// Growth below this share of the heap per minute is no finding.
const FLOOR_PERCENT: f64 = 0.05;
/// … nor is one below this, whatever the heap, bytes per minute.
const FLOOR_BYTES: f64 = 32.0 * 1024.0;
/// Severity where the heap's size is unknown, bytes per minute.
const HIGH_BYTES: f64 = 16.0 * 1024.0 * 1024.0;
/// A process younger than this at attach may still be warming up: it has to
/// be watched longer before growth is called a leak, s.
const WARM_UP: f64 = 60.0;

/// All findings, by a key that is unique within the run. `lost` is the share of
/// events that did not arrive.
pub fn findings(
    session: &Session,
    ledger: &mut Ledger,
    long_view: &LongView,
    lost: f64,
    now_ns: u64,
) -> BTreeMap<String, model::Finding> {
    let mut found = BTreeMap::new();
    let mut standing = Vec::new();
    for p in ledger.processes() {
        let scope = Scope { session, ledger, long_view, process: p, lost, now_ns };
        let heap = scope.population(&p.heap, Kind::Heap, &mut found);
        let goroutines = scope.population(&p.goroutines, Kind::Goroutine, &mut found);
        let places = scope.places(&mut found);
        standing.push((p.info.pid, heap, goroutines, places));
    }
    for (pid, heap, goroutines, places) in standing {
        if let Some(p) = ledger.process_mut(pid) {
            p.heap.stand(&heap);
            p.goroutines.stand(&goroutines);
            p.places.population.stand(&places);
        }
    }
    found
}

/// Shortest time of watching for any finding, s.
pub fn watched_s(p: &Process, kind: Kind) -> f64 {
    let fresh = (p.info.uptime_ns as f64 / 1e9) < WARM_UP;
    let watched_s = if fresh { 40.0 } else { 20.0 };
    if kind == Kind::Heap { watched_s } else { watched_s + 10.0 }
}

struct Scope<'a> {
    session: &'a Session,
    ledger: &'a Ledger,
    long_view: &'a LongView,
    process: &'a Process,
    lost: f64,
    now_ns: u64,
}

impl Scope<'_> {
    fn limits(&self, kind: Kind) -> Limits {
        let watched_s = watched_s(self.process, kind);
        match kind {
            Kind::Heap => {
                let percent =
                    self.process.info.heap_bytes.map_or(0.0, |b| b as f64) * FLOOR_PERCENT / 100.0;
                let floor_per_minute = percent.max(FLOOR_BYTES);
                Limits { suspect: 6, leak: 8, watched_s, floor_per_minute }
            }
            _ => Limits { suspect: 8, leak: 12, watched_s, floor_per_minute: 0.5 },
        }
    }

    /// Gives the groups that are findings.
    fn population(
        &self,
        population: &Population,
        kind: Kind,
        found: &mut BTreeMap<String, model::Finding>,
    ) -> Vec<u32> {
        let p = self.process;
        let limits = self.limits(kind);
        let evidence = population.evidence(self.now_ns, self.lost, limits.suspect as u64);
        let judged: Vec<(u32, Accumulation)> =
            evidence.iter().filter_map(|(i, e)| Some((*i, judge(e, &limits)?))).collect();
        if judged.is_empty() {
            return Vec::new();
        }
        let ages = population.ages(self.now_ns);
        let groups = judged.iter().map(|(i, _)| *i).collect();
        for (i, accumulation) in judged {
            let Some(group) = population.groups().get(i as usize) else { continue };
            let Some(site) = p.sites.get(group.site) else { continue };
            let place = match kind {
                Kind::Goroutine => p.places.of(group.tenant, group.site),
                _ => None,
            };
            let about = self.subject(site, place);
            let mut finding =
                self.finding(kind, group, (site, &about), &accumulation, ages.get(&i));
            if kind == Kind::Heap {
                let subject = subject(self.ledger, p, group.tenant, &site.id);
                let more = self.long_view.evidence(&subject, p.info.pid, group.tenant);
                finding.evidence.extend(more);
            }
            if let Some(place) = place {
                self.say_where(&mut finding, place, site);
            }
            found.insert(self.key(kind, &finding.tenant, &about), finding);
        }
        groups
    }

    /// Goroutines that stand still: a finding wherever ever more of one creation
    /// site wait in one place. Gives the groups that are.
    fn places(&self, found: &mut BTreeMap<String, model::Finding>) -> Vec<u32> {
        let p = self.process;
        let population = &p.places.population;
        let limits = self.limits(Kind::Goroutine);
        let evidence = population.evidence(self.now_ns, 0.0, limits.suspect as u64);
        let judged: Vec<(u32, Accumulation)> =
            evidence.iter().filter_map(|(i, e)| Some((*i, judge(e, &limits)?))).collect();
        let groups = judged.iter().map(|(i, _)| *i).collect();
        let found_at = |i: u32| {
            let group = population.groups().get(i as usize)?;
            Some((group, p.places.get(group.site)?))
        };
        let mut places_of: BTreeMap<(TenantId, SiteId), usize> = BTreeMap::new();
        for (group, place) in judged.iter().filter_map(|(i, _)| found_at(*i)) {
            *places_of.entry((group.tenant, place.creation)).or_default() += 1;
        }
        let ages = population.ages(self.now_ns);
        let mut placed = BTreeSet::new();
        for (i, accumulation) in judged {
            let Some((group, place)) = found_at(i) else { continue };
            let Some(site) = p.sites.get(place.creation) else { continue };
            let thread = explain::holds_thread(&place.reason);
            let kind = if thread { Kind::Thread } else { Kind::Goroutine };
            let about = self.subject(site, Some(place));
            let mut finding =
                self.finding(kind, group, (site, &about), &accumulation, ages.get(&i));
            self.say_where(&mut finding, place, site);
            // All of the creation site together, as they were seen to be born:
            // counted more exactly where they all wait in one place.
            let most = p.places.of(group.tenant, place.creation);
            let all = self.key(Kind::Goroutine, &finding.tenant, &self.subject(site, most));
            let key = self.key(kind, &finding.tenant, &about);
            let one = places_of.get(&(group.tenant, place.creation)) == Some(&1);
            let exact =
                one && all == key && found.get(&all).is_some_and(|f| f.verdict >= finding.verdict);
            if !exact {
                if placed.insert((group.tenant, place.creation)) {
                    found.remove(&all);
                }
                found.insert(key, finding);
            }
        }
        groups
    }

    /// What tells one finding at a creation site from another: goroutines that
    /// wait in two places are two leaks, with a line to change for each.
    fn subject(&self, site: &Site, place: Option<&Place>) -> String {
        let blocked = place.and_then(|p| Some((&p.reason, self.process.sites.get(p.blocked)?)));
        match blocked {
            Some((reason, blocked)) => format!("{}>{}>{reason}", site.id, blocked.id),
            None => site.id.clone(),
        }
    }

    fn key(&self, kind: Kind, tenant: &str, subject: &str) -> String {
        format!("{}/{kind:?}/{tenant}/{subject}", self.process.info.pid)
    }

    fn say_where(&self, finding: &mut model::Finding, place: &Place, creation: &Site) {
        let Some(blocked) = self.process.sites.get(place.blocked) else { return };
        finding.blocked_on = Some(explain::blocked_on(&place.reason, blocked));
        if let Some(remedy) = explain::waiting_remedy(&place.reason, creation, blocked) {
            finding.remedy = Some(remedy);
        }
        let at = match &finding.blocked_on {
            Some(b) => match (&b.function, &b.file, b.line) {
                (Some(f), Some(file), Some(line)) => format!(" in {f} ({file}:{line})"),
                (Some(f), ..) => format!(" in {f}"),
                _ => String::new(),
            },
            None => String::new(),
        };
        finding.evidence.push(model::Evidence {
            kind: EvidenceKind::Blocked,
            detail: format!("they stand still: {}{at}", place.reason),
            value: None,
        });
    }

    fn finding(
        &self,
        kind: Kind,
        group: &Group,
        (site, about): (&Site, &str),
        a: &Accumulation,
        ages: Option<&(u64, Lifetimes)>,
    ) -> model::Finding {
        let info = &self.process.info;
        let tenant = self.ledger.tenants.name(group.tenant).to_owned();
        let heap = kind == Kind::Heap;
        // Goroutines have no size; objects only where the rate is known.
        let known = !heap || info.sample_rate.is_some();
        let percent =
            info.heap_bytes.filter(|b| heap && *b > 0).map(|b| a.per_minute / b as f64 * 100.0);
        let severity = self.severity(kind, percent, a);
        model::Finding {
            id: model::finding_id(&info.name, kind, &tenant, about),
            kind,
            verdict: if a.leak { Verdict::Leak } else { Verdict::Suspect },
            severity,
            confidence: model::rounded(a.confidence),
            pid: info.pid,
            process: clean(&info.name),
            tenant,
            type_name: None,
            site: describe(site),
            growth: model::Growth {
                percent_per_minute: percent,
                bytes_per_minute: (heap && known).then_some(a.per_minute),
                count_per_minute: known.then_some(a.objects_per_minute),
                interval95: known.then_some(a.interval95),
            },
            live: model::Live {
                bytes: (heap && known).then_some(group.live.bytes),
                objects: known.then_some(group.live.objects),
                before_attach_bytes: self.before(kind, group).map(|b| b.bytes),
                oldest_s: ages.map(|(oldest, _)| *oldest as f64 / 1e9),
                age_s: ages.and_then(|(_, h)| h.summary_s()),
                freed_lifetime_s: group.lifetimes.summary_s(),
            },
            since: timestamp(self.session, group.first_ns),
            detected_after_s: self.now_ns.saturating_sub(self.session.t_ns) as f64 / 1e9,
            blocked_on: None,
            evidence: self.evidence(kind, group, a),
            holder: None,
            remedy: explain::remedy(kind, site),
        }
    }

    /// What of the group's site is in use since before watching began.
    fn before(&self, kind: Kind, group: &Group) -> Option<Amount> {
        self.process.before.at(group.site).filter(|_| kind == Kind::Heap)
    }

    fn severity(&self, kind: Kind, percent: Option<f64>, a: &Accumulation) -> Severity {
        let threshold = self.session.threshold;
        let share = match (kind, percent) {
            (Kind::Heap, Some(p)) => p / threshold,
            (Kind::Heap, None) => a.per_minute / HIGH_BYTES,
            // A goroutine and what hangs on it: some ten KiB. 60 a minute are
            // a leak that fills a machine within days.
            _ => a.per_minute / 60.0,
        };
        Severity::of(share)
    }

    fn evidence(&self, kind: Kind, group: &Group, a: &Accumulation) -> Vec<model::Evidence> {
        let (what, end) = match kind {
            Kind::Heap => ("sampled objects", "freed"),
            _ => ("goroutines", "ended"),
        };
        let age = if kind == Kind::Heap {
            format!(
                "{} {what} outlived at least one whole GC cycle and their peers; {:.0} % of such \
                 were {end} later",
                a.survivors,
                a.died * 100.0
            )
        } else {
            format!(
                "{} {what} outlived their peers and are still there; {:.0} % of such {end} later",
                a.survivors,
                a.died * 100.0
            )
        };
        let trend = format!(
            "new ones kept joining in {} of {} parts of the time watched, {} of {} ever seen {end}",
            a.parts.0, a.parts.1, group.deaths, group.births
        );
        let evidence = |kind, detail, value| model::Evidence { kind, detail, value: Some(value) };
        let mut all = vec![
            evidence(EvidenceKind::Age, age, a.survivors as f64),
            evidence(EvidenceKind::Trend, trend, a.per_minute),
        ];
        if let Some(b) = self.before(kind, group).filter(|b| b.bytes >= 1.0) {
            let detail = format!(
                "{} in {:.0} objects of this site were in use before watching began and still \
                 are; whose they are is not known",
                text::bytes(b.bytes),
                b.objects
            );
            all.push(evidence(EvidenceKind::Age, detail, b.bytes));
        }
        if self.lost > 0.0 {
            let missed = group.births as f64 * self.lost;
            let detail = format!(
                "{:.2} % of the events were lost: {missed:.0} of the {} may have {end} unseen",
                self.lost * 100.0,
                a.survivors
            );
            all.push(evidence(EvidenceKind::Age, detail, missed));
        }
        all
    }
}
