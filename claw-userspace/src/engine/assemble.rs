//! The report, from what the engine knows.

use std::collections::BTreeMap;

use super::{Engine, assess, exact};
use crate::{
    ledger::{Amount, Opened, Process, SiteId},
    report::{clean::clean, model, site::describe},
    stream::{Limit, MEMORY_MODE, Part, Session},
    tenant::TenantId,
};
use model::Verdict;

/// Wall-clock time of a monotonic one, RFC 3339 UTC.
pub fn timestamp(session: &Session, t_ns: u64) -> String {
    let ns = i128::from(session.wall_ns) + i128::from(t_ns) - i128::from(session.t_ns);
    model::timestamp(ns)
}

/// Censuses of a CPython heap below which silence means nothing.
const FEWEST_CENSUSES: u64 = 3;
/// Seconds after which the trend of resident memory says something: its first
/// window is two hours long.
const RESIDENT_S: f64 = 7200.0;
/// Share of events lost above which silence means nothing.
const MOST_LOST: f64 = 0.05;

pub fn report(e: &Engine) -> model::Report {
    let mut findings: Vec<model::Finding> = e.findings.values().cloned().collect();
    findings.sort_by(|a, b| {
        let rank = |f: &model::Finding| (f.verdict, f.severity, f.kind == model::Kind::Heap);
        let growth = |f: &model::Finding| f.growth.interval95.map_or(0.0, |i| i[0]);
        rank(b).cmp(&rank(a)).then(growth(b).total_cmp(&growth(a))).then(a.id.cmp(&b.id))
    });
    let why = why_not_enough(e);
    let leaks = || findings.iter().filter(|f| f.verdict == Verdict::Leak);
    let count = |v| findings.iter().filter(|f| f.verdict == v).count();
    let events = events(e);
    let summary = model::Summary {
        leaks_detected: u32::try_from(count(Verdict::Leak)).unwrap_or(u32::MAX),
        suspects: u32::try_from(count(Verdict::Suspect)).unwrap_or(u32::MAX),
        severity: findings.iter().map(|f| f.severity).max(),
        time_to_detect_s: leaks().map(|f| f.detected_after_s).min_by(f64::total_cmp),
        lost_events: events.lost.values().sum(),
        enough_evidence: why.is_none(),
        why_not_enough: why,
    };
    let live = e.ledger.processes().map(|p| target(e, p, None));
    let ended = e.ended.iter().map(|x| target(e, &x.process, Some(x.why.clone())));
    model::Report {
        schema: model::SCHEMA.into(),
        execution_id: e.session.execution_id.clone(),
        agent: model::AGENT.into(),
        timestamp: timestamp(&e.session, e.now_ns),
        task: model::TASK.into(),
        host: e.session.host.clone(),
        environment: e.session.environment.clone(),
        duration_s: e.now_ns.saturating_sub(e.session.t_ns) as f64 / 1e9,
        execution_log: e.log.clone(),
        targets: live.chain(ended).collect(),
        tenants: e.ledger.processes().flat_map(|p| tenants(e, p)).collect(),
        allocations: exact::allocations(e),
        findings,
        summary,
    }
}

/// Why an empty list of findings would mean nothing; `None` when it does mean
/// something for at least one process.
fn why_not_enough(e: &Engine) -> Option<String> {
    let lost = e.counters.lost_share();
    if lost > MOST_LOST {
        return Some(format!(
            "{:.0} % of the events were lost; a larger --ring-size would keep them",
            lost * 100.0
        ));
    }
    let mut reasons = Vec::new();
    for p in e.all_processes() {
        let watched_s = e.now_ns.saturating_sub(p.info.t_ns) as f64 / 1e9;
        let why = why_not_enough_of(p, watched_s)?;
        reasons.push(format!("process {}: {why}", p.info.pid));
    }
    if reasons.is_empty() {
        return Some("nothing was watched".to_owned());
    }
    reasons.truncate(3);
    Some(reasons.join("; "))
}

/// What is missing to tell a leak of one process; `None` when nothing is.
fn why_not_enough_of(p: &Process, watched_s: f64) -> Option<String> {
    if p.info.mode == MEMORY_MODE {
        return (watched_s < RESIDENT_S).then(|| {
            "only its resident memory is known, and growth of that is told from a cache that \
             fills after two hours"
                .to_owned()
        });
    }
    if p.info.runtime == "cpython" {
        let n = p.censuses.taken;
        return (n < FEWEST_CENSUSES || watched_s < 20.0).then(|| {
            format!("{n} censuses in {watched_s:.0} s, too few to tell growth from work at hand")
        });
    }
    if !p.heap_known() {
        if !p.sees(Part::Goroutines) {
            return Some("neither its heap nor its goroutines are seen".to_owned());
        }
        let needed_s = assess::watched_s(p, model::Kind::Goroutine);
        return (watched_s < needed_s).then(|| {
            format!(
                "its goroutines alone can be judged, and were looked at for {watched_s:.0} s; \
                 leaks are told from work at hand after {needed_s:.0} s"
            )
        });
    }
    if p.events == 0 {
        return Some("no event was seen".to_owned());
    }
    if watched_s < 20.0 {
        return Some(format!("watched for {watched_s:.0} s, too short to tell"));
    }
    (p.gc_cycles < 2).then(|| {
        format!(
            "{} GC cycles were seen, two are needed to tell garbage from what stays",
            p.gc_cycles
        )
    })
}

fn events(e: &Engine) -> model::Events {
    let mut lost: BTreeMap<String, u64> = e.counters.lost.clone();
    for (name, count) in e.ledger.forgotten() {
        lost.insert(name.to_owned(), count);
    }
    for p in e.ledger.processes() {
        for (name, count) in
            p.exact.iter().flat_map(|x| &x.lost).chain(&p.writers.lost).chain(&p.natives.lost)
        {
            *lost.entry(name.clone()).or_default() += count;
        }
    }
    if e.log_dropped > 0 {
        lost.insert("log_lines".into(), e.log_dropped);
    }
    model::Events { received: e.events, lost }
}

/// The part of the probes on all Go processes together that is this one's: the
/// kernel's counters are for all, so it is what their events say.
fn share_of_probes(e: &Engine, p: &Process) -> f64 {
    let go = || e.all_processes().filter(|p| p.info.runtime == "go");
    let events: u64 = go().map(|p| p.events).sum();
    match (p.info.runtime.as_str(), events) {
        ("go", 0) => 1.0 / go().count().max(1) as f64,
        ("go", all) => p.events as f64 / all as f64,
        _ => 0.0,
    }
}

fn target(e: &Engine, p: &Process, gone: Option<String>) -> model::Target {
    let totals = p.heap.groups().iter().fold(Amount::default(), |mut sum, g| {
        sum.bytes += g.live.bytes;
        sum.variance += g.live.variance;
        sum
    });
    let known = p.heap_known();
    let shared = share_of_probes(e, p);
    let seconds = e.counters.t_ns.saturating_sub(e.session.t_ns) as f64 / 1e9;
    let collections = p.collections.map(|(first, now)| {
        let mut since = now;
        since.iter_mut().zip(first).for_each(|(n, before)| *n = n.saturating_sub(before));
        since
    });
    model::Target {
        pid: p.info.pid,
        name: clean(&p.info.name),
        runtime: p.info.runtime.clone(),
        version: clean(&p.info.version),
        mode: p.info.mode.clone(),
        stripped: p.info.stripped,
        container: p.info.container.as_ref().map(|c| c.id.clone()),
        image: p.info.container.as_ref().and_then(|c| c.image.clone()),
        events: model::Events { received: p.events, ..events(e) },
        overhead: model::Overhead {
            hits: (e.counters.hits as f64 * shared) as u64
                + p.exact.as_ref().map_or(0, |x| x.hits)
                + p.writers.hits
                + p.natives.hits,
            estimated_ratio: (seconds > 0.0).then(|| {
                let windows = p.exact.as_ref().map_or(0.0, |x| x.lost_ns);
                let probes = e.counters.probe_ns as f64 * shared;
                (probes + windows + p.writers.lost_work_ns + p.natives.lost_work_ns) / 1e9 / seconds
            }),
        },
        blocked: p.info.blocked.clone(),
        live_bytes: match &p.censuses.last {
            Some(census) => Some(census.bytes as f64),
            None => known.then_some(totals.bytes),
        },
        live_bytes_se: known.then_some(totals.variance.max(0.0).sqrt()),
        rss_bytes: p.rss_bytes,
        memory_limit: p.limit.map(|l| memory_limit(e, p.info.pid, l)),
        gc_cycles: if p.info.runtime == "go" {
            Some(u64::from(p.gc_cycles))
        } else {
            collections.map(|c| c.iter().fold(0u64, |sum, n| sum.saturating_add(*n)))
        },
        gc_generations: collections,
        before_attach: before_attach(p),
        gone,
        latest_windows: p.recent.iter().map(|w| window(&e.session, w)).collect(),
        exact: exact::target(&e.session, p),
    }
}

/// Of a process, with the time at which its leaks reach it.
fn memory_limit(e: &Engine, pid: u32, limit: Limit) -> model::MemoryLimit {
    let Limit { of, bytes, used_bytes } = limit;
    let of_memory = |f: &&model::Finding| matches!(f.kind, model::Kind::Heap | model::Kind::Rss);
    let leaks = e.findings.values().filter(|f| f.pid == pid && f.verdict == Verdict::Leak);
    let per_minute: f64 = leaks.filter(of_memory).filter_map(|f| f.growth.bytes_per_minute).sum();
    let left = bytes.saturating_sub(used_bytes) as f64;
    let reached_in_s = (per_minute > 0.0).then(|| (left / per_minute * 60.0).round());
    model::MemoryLimit { of, bytes, used_bytes, reached_in_s }
}

fn window(session: &Session, w: &Opened) -> model::Window {
    model::Window {
        from_unix_s: session.unix_s(w.from_ns),
        to_unix_s: session.unix_s(w.to_ns),
        lost_work_s: w.lost_ns / 1e9,
    }
}

/// Sites shown of what was there before.
const MOST_HELD: usize = 10;

fn before_attach(p: &Process) -> Option<model::BeforeAttach> {
    let total = p.before.total().filter(|_| p.heap_known())?;
    let held = |(id, amount): (SiteId, Amount)| {
        let site = describe(p.sites.get(id)?);
        Some(model::HeldSite {
            id: site.id,
            function: site.function,
            file: site.file,
            line: site.line,
            bytes: amount.bytes,
            objects: amount.objects,
        })
    };
    let sites = p.before.largest().into_iter().take(MOST_HELD).filter_map(held).collect();
    Some(model::BeforeAttach { bytes: total.bytes, objects: total.objects, sites })
}

#[derive(Default)]
struct Sums {
    before: Option<f64>,
    live: Amount,
    born: f64,
    goroutines: u64,
}

fn tenants(e: &Engine, p: &Process) -> Vec<model::Tenant> {
    let mut sums: BTreeMap<TenantId, Sums> = BTreeMap::new();
    for g in p.heap.groups() {
        let s = sums.entry(g.tenant).or_default();
        s.live.objects += g.live.objects;
        s.live.bytes += g.live.bytes;
        s.live.variance += g.live.variance;
        s.born += g.born.bytes;
    }
    for tenant in p.exact.iter().flat_map(|x| x.tenants()) {
        sums.entry(tenant).or_default();
    }
    for g in p.goroutines.groups() {
        sums.entry(g.tenant).or_default().goroutines += g.live_samples;
    }
    let known = p.heap_known();
    if let Some(before) = p.before.total().filter(|b| known && b.bytes > 0.0) {
        sums.entry(p.before.tenant).or_default().before = Some(before.bytes);
    }
    let seconds = e.now_ns.saturating_sub(p.info.t_ns) as f64 / 1e9;
    let mut tenants: Vec<model::Tenant> = sums
        .into_iter()
        .map(|(id, s)| {
            let exact = exact::tenant_rate(p, id);
            let sampled = (known && seconds > 0.0).then(|| s.born / seconds);
            let mut tenant = model::Tenant {
                tenant: e.ledger.tenants.name(id).to_owned(),
                pid: p.info.pid,
                live_bytes: known.then_some(s.live.bytes),
                live_bytes_se: known.then_some(s.live.variance.max(0.0).sqrt()),
                live_objects: known.then_some(s.live.objects),
                before_attach_bytes: s.before,
                alloc_bytes_per_s: exact.map_or(sampled, |(rate, _)| Some(rate)),
                alloc_interval95: exact.and_then(|(_, interval)| interval),
                goroutines: p.sees(Part::Goroutines).then_some(s.goroutines),
                coefficient: None,
                anomaly_score: None,
                odd_feature: None,
            };
            e.long_view.describe(&mut tenant, id);
            tenant
        })
        .collect();
    if let (Some(census), Some(tenant)) = (&p.censuses.last, &p.info.default_tenant) {
        tenants.push(model::Tenant {
            tenant: tenant.clone(),
            pid: p.info.pid,
            live_bytes: Some(census.bytes as f64),
            live_bytes_se: None,
            live_objects: Some(census.blocks as f64),
            before_attach_bytes: None,
            alloc_bytes_per_s: None,
            alloc_interval95: None,
            goroutines: None,
            coefficient: None,
            anomaly_score: None,
            odd_feature: None,
        });
    }
    tenants.sort_by(|a, b| {
        let live = |t: &model::Tenant| t.live_bytes.unwrap_or(0.0);
        live(b).total_cmp(&live(a)).then_with(|| a.tenant.cmp(&b.tenant))
    });
    tenants
}
