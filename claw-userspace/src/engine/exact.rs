//! The report of exact mode, from what the ledger counted.

use std::cmp::Ordering;

use crate::{
    engine::Engine,
    ledger::{Estimate, Exact, Process, Scale},
    report::{model, site::describe},
    stream::Session,
    tenant::TenantId,
};

/// Rows that a report keeps of a process, for objects and for goroutines.
const MOST_ROWS: usize = 250;

pub fn interval(rate: f64, spread: Option<f64>) -> Option<[f64; 2]> {
    let spread = spread?;
    Some([(rate * (1.0 - spread)).max(0.0), rate * (1.0 + spread)])
}

/// A tenant's bytes per second, with interval.
pub fn tenant_rate(p: &Process, tenant: TenantId) -> Option<(f64, Option<[f64; 2]>)> {
    let exact = p.exact.as_ref().filter(|e| e.span_ns() > 0)?;
    let Estimate { bytes, spread, .. } = exact.tenant(tenant)?;
    let rate = bytes / (exact.span_ns() as f64 / 1e9);
    Some((rate, interval(rate, spread)))
}

pub fn target(session: &Session, p: &Process) -> Option<model::Exact> {
    let e = p.exact.as_ref().filter(|e| e.span_ns() > 0)?;
    let span_s = e.span_ns() as f64 / 1e9;
    let scale = e.scale();
    let objects = e.objects();
    let objects_per_s = objects.count / span_s;
    Some(model::Exact {
        windows: e.windows,
        from_unix_s: session.unix_s(e.since_ns),
        to_unix_s: session.unix_s(e.until_ns),
        span_s,
        objects_per_s,
        interval95: interval(objects_per_s, objects.spread),
        covered_s: e.covered_ns as f64 / 1e9,
        coverage: e.coverage().min(1.0),
        scaled_by: match scale {
            Scale::Complete => "complete",
            Scale::Sampler(..) => "sampler",
            Scale::Time(_) => "time",
        }
        .into(),
        hits: e.hits,
        estimated_ratio: e.lost_ns / 1e9 / span_s,
        window_every_s: (scale != Scale::Complete).then_some(e.period_ns / 1e9),
        lost: e.lost.clone(),
    })
}

/// Rows of one process, in no order.
fn rows(engine: &Engine, p: &Process, e: &Exact) -> Vec<model::Allocation> {
    let seconds = e.span_ns() as f64 / 1e9;
    e.groups()
        .filter_map(|(subject, estimate)| {
            let type_name = e.types.get(subject.type_index as usize).filter(|t| !t.is_empty());
            let rate = estimate.count / seconds;
            let bytes = (!subject.goroutine).then_some(estimate.bytes);
            Some(model::Allocation {
                pid: p.info.pid,
                kind: if subject.goroutine { "goroutine" } else { "object" }.into(),
                tenant: engine.ledger().tenants.name(subject.tenant).to_owned(),
                type_name: type_name.cloned(),
                site: describe(p.sites.get(subject.site)?),
                bytes,
                count: estimate.count,
                bytes_per_s: bytes.map(|b| b / seconds),
                count_per_s: rate,
                interval95: interval(rate, estimate.spread),
            })
        })
        .collect()
}

/// Most bytes first, then most goroutines.
pub fn allocations(engine: &Engine) -> Vec<model::Allocation> {
    let mut all = Vec::new();
    for p in engine.all_processes() {
        let Some(e) = p.exact.as_ref().filter(|e| e.span_ns() > 0) else { continue };
        let (mut goroutines, mut objects): (Vec<_>, Vec<_>) =
            rows(engine, p, e).into_iter().partition(|a| a.bytes.is_none());
        for rows in [&mut objects, &mut goroutines] {
            rows.sort_by(order);
            rows.truncate(MOST_ROWS);
            all.append(rows);
        }
    }
    all.sort_by(order);
    all
}

fn order(a: &model::Allocation, b: &model::Allocation) -> Ordering {
    let weight = |x: &model::Allocation| (x.bytes.unwrap_or(-1.0), x.count);
    let name = |x: &model::Allocation| (x.pid, x.tenant.clone(), x.type_name.clone());
    weight(b)
        .partial_cmp(&weight(a))
        .unwrap_or(Ordering::Equal)
        .then_with(|| name(a).cmp(&name(b)))
        .then_with(|| a.site.id.cmp(&b.site.id))
}
