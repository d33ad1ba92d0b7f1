//! The long view of a watch: what each (tenant, site) has in use, an interval
//! each, through the same trend code as series from elsewhere; and the matrix
//! of tenants, whose odd rows the isolation forest names.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    detect::{
        fleet::{Fleet, Found, Profiles},
        forest::{FEATURES, FEWEST, Outliers, Row, Seeded, oddest_feature},
        rolling::{Hour, Rolling, SETTLED_S},
        series::{Point, Subject},
        trend::{Standing, State},
    },
    ledger::{Ledger, Process},
    report::model::{Evidence, EvidenceKind, Tenant},
    tenant::TenantId,
};

const FEATURE_NAMES: [&str; FEATURES] = [
    "bytes in use per byte allocated a second",
    "bytes in use",
    "bytes per object in use",
    "goroutines",
    "bytes allocated a second",
];
/// Score from which a tenant is called odd.
const ODD: f64 = 0.6;

/// A tenant's own course.
#[derive(Debug, Default)]
struct Course {
    /// Allocated since attach at the last interval, bytes.
    born: f64,
    /// Time since it was first seen, s.
    seen_s: f64,
    coefficient: Option<f64>,
    score: Option<f64>,
    odd: Option<usize>,
}

#[derive(Debug, Default)]
pub struct LongView {
    fleet: Fleet,
    courses: BTreeMap<(u32, TenantId), Course>,
    /// By process name and tenant: bytes in use per byte allocated a second,
    /// of earlier runs too.
    rolling: BTreeMap<(String, String), Rolling>,
    /// Hours that changed since they were last asked for.
    learned: BTreeSet<(String, String)>,
    last_ns: Option<u64>,
    peers: usize,
}

/// Hours of this many (process, tenant) are kept, beside those from a store.
const MOST_ROLLING: usize = 20_000;

impl LongView {
    pub fn new(profiles: Profiles) -> Self {
        Self { fleet: Fleet::new(profiles, Default::default()), ..Self::default() }
    }

    /// What earlier runs saw of a process' tenant.
    pub fn remember(&mut self, process: String, tenant: String, hour: u64, seen: Hour) {
        self.rolling.entry((process, tenant)).or_default().put(hour, seen);
    }

    /// This hour of those that were learned since the last call.
    pub fn learned(&mut self, hour: u64) -> Vec<(String, String, Hour)> {
        let of = |key: (String, String)| {
            let seen = self.rolling.get(&key)?.at(hour)?;
            Some((key.0, key.1, seen))
        };
        std::mem::take(&mut self.learned).into_iter().filter_map(of).collect()
    }

    /// An interval is over. `suspected`: tenants that have findings; `hour`
    /// is since the Unix epoch.
    pub fn tick(&mut self, ledger: &Ledger, now_ns: u64, hour: u64, suspected: &[(u32, String)]) {
        for (subject, point) in series(ledger, now_ns) {
            let id = self.fleet.id(&subject);
            self.fleet.put(id, &point);
        }
        for p in ledger.processes() {
            let Some(rss) = p.rss_bytes else { continue };
            let mut point = Point::new(now_ns as f64 / 1e9, rss as f64);
            point.uptime = uptime_s(p, now_ns);
            let id = self.fleet.id(&resident(ledger, p));
            self.fleet.put(id, &point);
        }
        let passed = self.last_ns.map_or(0.0, |l| now_ns.saturating_sub(l) as f64 / 1e9);
        self.last_ns = Some(now_ns);
        if passed <= 0.0 {
            return;
        }
        self.courses.retain(|(pid, _), _| ledger.process(*pid).is_some());
        let mut rows: Vec<((u32, TenantId), Row)> = Vec::new();
        for p in ledger.processes().filter(|p| p.heap_known()) {
            for (tenant, sums) in by_tenant(p) {
                let key = (p.info.pid, tenant);
                let course = self.courses.entry(key).or_default();
                let rate = (sums.born - course.born).max(0.0) / passed;
                course.born = sums.born;
                let is_suspected = suspected
                    .iter()
                    .any(|(pid, t)| *pid == key.0 && t == ledger.tenants.name(tenant));
                course.seen_s += passed;
                let raw = sums.live / rate;
                let name = (p.info.name.clone(), ledger.tenants.name(tenant).to_owned());
                let room = self.rolling.len() < MOST_ROLLING || self.rolling.contains_key(&name);
                if raw.is_finite() && raw > 0.0 && room {
                    let rolling = self.rolling.entry(name.clone()).or_default();
                    // Frozen on suspicion, so that a slow leak is not learned.
                    if !is_suspected {
                        rolling.learn(hour, raw, passed);
                        self.learned.insert(name);
                    }
                    let ordinary = rolling.ordinary(hour);
                    course.coefficient =
                        ordinary.filter(|_| course.seen_s >= SETTLED_S).map(|o| raw / o);
                }
                let per_object = sums.live / sums.objects.max(1.0);
                let row = [sums.live / rate, sums.live, per_object, sums.goroutines, rate];
                rows.push((key, row.map(|v| v.max(1.0).ln())));
            }
        }
        self.peers = rows.len();
        if rows.len() >= FEWEST {
            self.score(&rows);
        }
    }

    fn score(&mut self, rows: &[((u32, TenantId), Row)]) {
        let matrix: Vec<Row> = rows.iter().map(|(_, r)| *r).collect();
        let Ok(forest) = Seeded::fit(&matrix, 1) else { return };
        for (key, row) in rows {
            let Some(course) = self.courses.get_mut(key) else { continue };
            let score = forest.score(row);
            course.score = Some(score);
            course.odd = (score >= ODD).then(|| oddest_feature(&forest, &matrix, row).0);
        }
    }

    /// Coefficient and anomaly score of a tenant.
    pub fn describe(&self, tenant: &mut Tenant, id: TenantId) {
        let Some(course) = self.courses.get(&(tenant.pid, id)) else { return };
        tenant.coefficient = course.coefficient;
        tenant.anomaly_score = course.score;
        tenant.odd_feature = course.odd.map(|k| FEATURE_NAMES[k].to_owned());
    }

    /// Everything that stands, false discoveries held down.
    pub fn found(&self) -> Vec<Found<'_>> {
        self.fleet.found()
    }

    /// What the long view says of a (tenant, site).
    pub fn standing(&self, subject: &Subject) -> Option<&Standing> {
        self.fleet.standing(subject)
    }

    /// Evidence beside that of age.
    pub fn evidence(&self, subject: &Subject, pid: u32, tenant: TenantId) -> Vec<Evidence> {
        let mut all = self.trend_evidence(subject);
        let course = self.courses.get(&(pid, tenant));
        if let Some((score, odd)) = course.and_then(|c| Some((c.score?, c.odd?))) {
            let detail = format!(
                "the tenant is odd among {} (score {score:.2}) by its {}",
                self.peers, FEATURE_NAMES[odd]
            );
            all.push(Evidence { kind: EvidenceKind::Forest, detail, value: Some(score) });
        }
        all
    }

    /// What the trend says.
    pub fn trend_evidence(&self, subject: &Subject) -> Vec<Evidence> {
        let mut all = Vec::new();
        if let Some(s) = self.standing(subject) {
            let what = if s.state == State::Leak { "" } else { ", not yet confirmed" };
            let whose = if subject.site == RESIDENT {
                "resident memory grew by"
            } else {
                "bytes in use grew, as a share of the heap, by"
            };
            let detail = format!(
                "{whose} {:.1} % in {:.0} min without coming back{what}",
                s.grew() / s.base() * 100.0,
                f64::from(s.at_s.saturating_sub(s.since_s)) / 60.0
            );
            let value = Some(s.slope * 60.0);
            all.push(Evidence { kind: EvidenceKind::Trend, detail, value });
            if s.with_baseline {
                let detail = "beyond what the baseline rose, fell and warmed up".to_owned();
                all.push(Evidence { kind: EvidenceKind::Baseline, detail, value: Some(s.base()) });
            }
        }
        all
    }
}

struct Sums {
    live: f64,
    born: f64,
    objects: f64,
    goroutines: f64,
}

fn by_tenant(p: &Process) -> BTreeMap<TenantId, Sums> {
    let none = || Sums { live: 0.0, born: 0.0, objects: 0.0, goroutines: 0.0 };
    let mut sums = BTreeMap::new();
    for g in p.heap.groups() {
        let s = sums.entry(g.tenant).or_insert_with(none);
        s.live += g.live.bytes;
        s.born += g.born.bytes;
        s.objects += g.live.objects;
    }
    for g in p.goroutines.groups() {
        sums.entry(g.tenant).or_insert_with(none).goroutines += g.live_samples as f64;
    }
    sums
}

/// Site of the series of what is resident of a process.
pub const RESIDENT: &str = "(resident memory)";

/// The subject of that series; apart from the sites, whose sum it is not.
pub fn resident(ledger: &Ledger, p: &Process) -> Subject {
    let process = format!("{} {RESIDENT}", process_name(ledger, p));
    Subject { process, tenant: "-".to_owned(), site: RESIDENT.to_owned() }
}

fn uptime_s(p: &Process, now_ns: u64) -> f64 {
    p.info.uptime_ns.saturating_add(now_ns.saturating_sub(p.info.t_ns)) as f64 / 1e9
}

/// Instances of one program are told apart by their pid.
fn process_name(ledger: &Ledger, p: &Process) -> String {
    let name = &p.info.name;
    let alone = ledger.processes().filter(|q| q.info.name == *name).count() < 2;
    if alone { name.clone() } else { format!("{name}:{}", p.info.pid) }
}

/// The subject of a site in a process.
pub fn subject(ledger: &Ledger, p: &Process, tenant: TenantId, site: &str) -> Subject {
    let process = process_name(ledger, p);
    Subject { process, tenant: ledger.tenants.name(tenant).to_owned(), site: site.to_owned() }
}

/// What the heap would be had only this (tenant, site) changed since attach: so
/// growth is a share of the heap, and what died of the time before counts.
pub fn series(ledger: &Ledger, now_ns: u64) -> Vec<(Subject, Point)> {
    let mut all = Vec::new();
    for p in ledger.processes().filter(|p| p.heap_known()) {
        let heap = p.info.heap_bytes.map_or(0.0, |b| b as f64);
        for (g, change) in p.heap.groups().iter().zip(p.heap.changes()) {
            let Some(site) = p.sites.get(g.site) else { continue };
            let mut point = Point::new(now_ns as f64 / 1e9, (heap + change).max(0.0));
            point.uptime = uptime_s(p, now_ns);
            all.push((subject(ledger, p, g.tenant, &site.id), point));
        }
    }
    all
}
