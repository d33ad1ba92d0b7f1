//! From the censuses of a CPython heap to findings, in words.

use std::collections::BTreeMap;

use crate::{
    detect::{Rise, rise},
    explain::python_remedy,
    ledger::{Held, Process, TypeHistory, Writer},
    report::{clean::clean, holder::root, model},
    stream::Session,
    target::cpython::{graph::paths::Path, object::is_own},
};

use super::{assemble::timestamp, holder, native, waiting, writer};
use model::{EvidenceKind, Kind, Severity, Verdict};

/// Growth below this share of the heap per minute is no finding, percent …
const FLOOR_PERCENT: f64 = 0.05;
/// … nor is one below this, bytes per minute.
const FLOOR_BYTES: f64 = 32.0 * 1024.0;
/// … outside the pools, where the figure is an estimate.
const FLOOR_OUTSIDE: f64 = 1024.0 * 1024.0;
/// A process younger than this may still be warming up: what grows in it is no
/// leak yet, s.
const WARM_UP: f64 = 60.0;
/// Memory outside the pools that no container grows with may be that of the C
/// allocator, whose arenas fill up for minutes as each thread meets its largest
/// request; no leak before this, s.
const SETTLED: f64 = 300.0;
/// Objects of a type of the standard library's that come with one of the
/// service's own, at most: its dict, its numbers, its strings.
const COMPANIONS: f64 = 8.0;
/// Types of the interpreter's own whose objects hold others.
const HOLD_OTHERS: [&str; 5] = ["dict", "list", "set", "frozenset", "tuple"];
/// Types that threads and tasks are made of, and what one of them takes outside
/// the pools, bytes: its stack, mostly.
const FLOW_PARTS: [&str; 6] =
    ["threading.", "_thread.", "asyncio.", "_asyncio.", "queue.", "weakref."];
const FLOW_BYTES: f64 = 256.0 * 1024.0;
/// How far the growth of a container may be from that of what it holds.
const AS_FAST: [f64; 2] = [0.5, 2.0];
/// … of one that is bounded: taking it for the holder ends the alarm.
const JUST_AS_FAST: [f64; 2] = [0.8, 1.25];

/// Writers of one type that are named, at most.
const MOST_WRITERS: usize = 8;

struct Growing<'a> {
    name: &'a str,
    history: &'a TypeHistory,
    bytes: Rise,
    objects_per_minute: f64,
}

/// All findings of one process, by a key that is unique within the run.
/// `flows` are those of its threads and tasks.
pub fn findings(
    session: &Session,
    p: &Process,
    flows: &BTreeMap<String, model::Finding>,
    now_ns: u64,
) -> BTreeMap<String, model::Finding> {
    let mut found = BTreeMap::new();
    let Some(last) = &p.censuses.last else { return found };
    let heap = p.info.heap_bytes.map(|b| b as f64);
    let floor = (heap.unwrap_or(0.0) * FLOOR_PERCENT / 100.0).max(FLOOR_BYTES);
    let mut growing: Vec<Growing<'_>> = p
        .censuses
        .types
        .iter()
        .filter(|(_, h)| h.bytes.last().is_some_and(|(t, _)| t == last.t_ns))
        .filter_map(|(name, history)| {
            let bytes = rise(&history.bytes.points(), floor)?;
            let objects = rise(&history.objects.points(), 0.0)?;
            Some(Growing { name, history, bytes, objects_per_minute: objects.per_minute })
        })
        .collect();
    growing.sort_by(|a, b| b.bytes.per_minute.total_cmp(&a.bytes.per_minute));
    let scope = Scope { session, process: p, now_ns, heap, census_ns: last.t_ns };
    // What a thread or task holds grows with it.
    let flow_rate: f64 = flows.values().filter_map(|f| f.growth.count_per_minute).sum();
    growing.retain(|g| {
        let part = FLOW_PARTS.iter().any(|p| g.name.starts_with(p)) || !is_own(g.name);
        !part || g.objects_per_minute > flow_rate * COMPANIONS
    });
    let own: f64 = growing.iter().filter(|g| is_own(g.name)).map(|g| g.objects_per_minute).sum();
    let all_bytes: f64 = growing.iter().map(|g| g.bytes.per_minute).sum();
    let outside = rise(&p.censuses.outside.points(), floor.max(FLOOR_OUTSIDE))
        // Large tables and buffers grow with the objects that own them.
        .filter(|outside| outside.per_minute > all_bytes + flow_rate * FLOW_BYTES);
    // What comes with the service's own objects, or with what grows outside
    // the pools, is theirs; of the rest one is named.
    let is_other = |g: &&Growing<'_>| !is_own(g.name) && g.objects_per_minute > own * COMPANIONS;
    // … unless windows have told who makes it.
    let told = |name: &str| p.writers.of(name).is_some_and(|w| !w.leaking().is_empty());
    let others: Vec<&Growing<'_>> =
        growing.iter().filter(is_other).filter(|g| outside.is_none() || told(g.name)).collect();
    let other = outermost(&others).map(|g| g.name);
    for g in growing.iter().filter(|g| is_own(g.name) || other == Some(g.name)) {
        found.extend(scope.heap(g, all_bytes));
    }
    if let Some(outside) = &outside {
        let key = format!("{}/census//outside", p.info.pid);
        let by_site = native::findings(scope.outside(outside), p);
        found.extend(by_site.into_iter().map(|(part, f)| (key.clone() + &part, f)));
    }
    found
}

/// Of the interpreter's own types that grow together, largest first, the one
/// that is likely to hold the others: strings and numbers do not.
fn outermost<'a>(growing: &[&'a Growing<'a>]) -> Option<&'a Growing<'a>> {
    let first = growing.first()?;
    let holds =
        |g: &&&Growing<'_>| HOLD_OTHERS.contains(&g.name) || g.name.starts_with("collections.");
    let many = |g: &&&Growing<'_>| g.objects_per_minute * COMPANIONS >= first.objects_per_minute;
    Some(growing.iter().filter(many).find(holds).unwrap_or(first))
}

struct Scope<'a> {
    session: &'a Session,
    process: &'a Process,
    now_ns: u64,
    heap: Option<f64>,
    census_ns: u64,
}

impl Scope<'_> {
    /// One finding of the type, or where windows have told who allocates, one of
    /// each (tenant, site). The first has the key that the type alone had.
    fn heap(&self, g: &Growing<'_>, all_bytes: f64) -> Vec<(String, model::Finding)> {
        let key = format!("{}/census/{}", self.process.info.pid, g.name);
        let mut whole = self.whole(g, all_bytes);
        // Of a single look the largest may be a cache that is full.
        let grows = whole.holder.as_ref().map(|h| h.root.clone());
        let likely = |path: &Path| grows.as_ref() == Some(&root(path));
        let held = self.process.holders.of(g.name, g.objects_per_minute, likely);
        let shown = (g.history, &g.bytes);
        if !waiting::apply(&mut whole, self.process, g.name, shown, held.as_ref()) {
            return Vec::new();
        }
        if let Some(held) = held {
            holder::apply(&mut whole, &held, &clean(g.name));
        }
        let Some(written) = self.process.writers.of(g.name) else { return vec![(key, whole)] };
        let leaking = written.leaking();
        if leaking.is_empty() {
            whole.evidence.push(writer::unknown(written, g.name));
            return vec![(key, whole)];
        }
        let of = |(i, w): (usize, &&Writer)| {
            let finding = writer::of_writer(&whole, self.process, g.name, written, w);
            (if i == 0 { key.clone() } else { format!("{key}/{}", finding.id) }, finding)
        };
        leaking.iter().take(MOST_WRITERS).enumerate().map(of).collect()
    }

    fn whole(&self, g: &Growing<'_>, all_bytes: f64) -> model::Finding {
        let held = self.holder(g.objects_per_minute);
        let mut evidence = vec![trend(&g.bytes, &format!("bytes of {}", g.name))];
        if all_bytes > g.bytes.per_minute {
            evidence.push(model::Evidence {
                kind: EvidenceKind::Trend,
                detail: "all growing types together, bytes per minute: what these objects hold \
                         grows with them"
                    .into(),
                value: Some(all_bytes),
            });
        }
        let live = model::Live {
            bytes: g.history.bytes.last().map(|(_, v)| v),
            objects: g.history.objects.last().map(|(_, v)| v),
            before_attach_bytes: None,
            oldest_s: None,
            age_s: None,
            freed_lifetime_s: None,
        };
        let since = g.history.bytes.first_ns();
        let count = Some(g.objects_per_minute);
        self.finding(Kind::Heap, g.name, &g.bytes, (live, count, since), held, evidence)
    }

    fn outside(&self, rise: &Rise) -> model::Finding {
        const SUBJECT: &str = "(memory outside the Python object pools)";
        let last = self.process.censuses.outside.last().map(|(_, v)| v);
        let mut evidence = vec![trend(rise, "resident memory outside the pools")];
        evidence.push(model::Evidence {
            kind: EvidenceKind::Proof,
            detail: "the Python objects in the pools do not grow as fast: these are blocks of \
                     more than 512 bytes (buffers, long strings, tables) or memory of a C \
                     extension"
                .into(),
            value: None,
        });
        let live = model::Live {
            bytes: last,
            objects: None,
            before_attach_bytes: None,
            oldest_s: None,
            age_s: None,
            freed_lifetime_s: None,
        };
        let since = self.process.censuses.outside.first_ns();
        let held = self.fastest();
        self.finding(Kind::Rss, SUBJECT, rise, (live, None, since), held, evidence)
    }

    fn finding(
        &self,
        kind: Kind,
        subject: &str,
        rise: &Rise,
        (live, count, since): (model::Live, Option<f64>, Option<u64>),
        held: Option<&Held>,
        mut evidence: Vec<model::Evidence>,
    ) -> model::Finding {
        let info = &self.process.info;
        let tenant = info.default_tenant.clone().unwrap_or_else(|| "-".to_owned());
        let percent = self.heap.map(|h| rise.per_minute / h * 100.0);
        let warm = info.uptime_ns as f64 / 1e9 + rise.span_s >= WARM_UP;
        let bound = held.and_then(|h| h.grown.bound());
        evidence.extend(bound.map(full_at));
        let settled = kind != Kind::Rss
            || held.is_some()
            || rise.span_s >= SETTLED
            || self.process.natives.explain(rise.per_minute);
        let share = percent
            .map_or(rise.per_minute / (16.0 * 1024.0 * 1024.0), |p| p / self.session.threshold);
        let id = model::finding_id(&info.name, kind, &tenant, subject);
        let file = held.and_then(|h| h.grown.file.clone());
        model::Finding {
            type_name: (kind == Kind::Heap).then(|| clean(subject)),
            site: model::Site {
                id: id.clone(),
                function: clean(subject),
                file: file.clone(),
                line: None,
                stack: Vec::new(),
            },
            id,
            kind,
            verdict: if rise.leak && warm && settled && bound.is_none() {
                Verdict::Leak
            } else {
                Verdict::Suspect
            },
            severity: Severity::of(share),
            confidence: model::rounded(rise.confidence),
            pid: info.pid,
            process: clean(&info.name),
            tenant,
            growth: model::Growth {
                percent_per_minute: percent,
                bytes_per_minute: Some(rise.per_minute),
                count_per_minute: count,
                interval95: Some(rise.interval95),
            },
            live,
            since: timestamp(self.session, since.unwrap_or(self.census_ns)),
            detected_after_s: self.now_ns.saturating_sub(self.session.t_ns) as f64 / 1e9,
            blocked_on: None,
            evidence,
            holder: held.map(|h| model::Holder {
                root: format!(
                    "{} {}",
                    if h.grown.on_class { "class attribute" } else { "global" },
                    h.grown.place
                ),
                path: vec![
                    model::HolderStep {
                        type_name: h.grown.type_name.clone(),
                        field: Some(h.grown.place.clone()),
                        bytes: None,
                        count: Some(1),
                    },
                    model::HolderStep {
                        type_name: clean(subject),
                        field: None,
                        bytes: None,
                        count: None,
                    },
                ],
                objects: h.grown.elements,
            }),
            remedy: Some(model::Remedy {
                text: python_remedy(kind, subject, held.map(|h| &h.grown)),
                file,
                line: None,
            }),
        }
    }

    /// The container that grows as fast as the objects do; of several the one
    /// that comes closest.
    fn holder(&self, objects_per_minute: f64) -> Option<&Held> {
        self.growing_containers()
            .map(|(h, rate)| (h, rate / objects_per_minute))
            .filter(|(h, ratio)| {
                let [low, high] = if h.grown.bound().is_some() { JUST_AS_FAST } else { AS_FAST };
                (low..high).contains(ratio)
            })
            .min_by(|(_, a), (_, b)| a.ln().abs().total_cmp(&b.ln().abs()))
            .map(|(h, _)| h)
    }

    /// The only container that grows, if there is one alone.
    fn fastest(&self) -> Option<&Held> {
        let mut all = self.growing_containers();
        let only = all.next().map(|(h, _)| h);
        only.filter(|_| all.next().is_none())
    }

    fn growing_containers(&self) -> impl Iterator<Item = (&Held, f64)> {
        let held = self.process.censuses.held.values();
        held.filter_map(|h| {
            // It keeps growing, and did not just once.
            let rise = rise(&h.elements.points(), 0.0);
            Some((h, h.per_minute(self.census_ns)?)).filter(|_| rise.is_some())
        })
    }
}

/// What holds the objects keeps so many at most.
pub fn full_at(bound: u64) -> model::Evidence {
    model::Evidence {
        kind: EvidenceKind::Proof,
        detail: format!(
            "what holds them keeps {bound} entries at most: it fills up, and growth ends then"
        ),
        value: Some(bound as f64),
    }
}

fn trend(rise: &Rise, what: &str) -> model::Evidence {
    let (rising, steps) = rise.steps;
    model::Evidence {
        kind: EvidenceKind::Trend,
        detail: format!(
            "{what}: the least that any later census counted rose in {rising} of {steps} steps \
             over {:.0} s, without slowing down",
            rise.span_s
        ),
        value: Some(rise.per_minute),
    }
}
