//! From the threads and tasks of a CPython process to findings, in words: old
//! ones stay and new ones join.

use std::collections::BTreeMap;

use crate::{
    detect::{Rise, rise},
    explain::flow_remedy,
    ledger::{FlowHistory, Process},
    report::model,
    stream::{FlowKind, FlowLine, Session},
};

use super::assemble::timestamp;
use model::{EvidenceKind, Kind, Severity, Verdict};

/// Growth below this is none, a minute.
const FLOOR: f64 = 0.2;
/// Of those that had stayed, the share that may have ended after all, for a
/// leak and for a finding.
const ENDED: [f64; 2] = [0.05, 0.5];
/// A process younger than this may still be starting its workers, s.
const WARM_UP: f64 = 60.0;
/// Slow growth is looked at in longer steps, of which there have to be this
/// many.
const LONG_STEPS: [usize; 4] = [1, 2, 4, 8];
const FEWEST_LONG: usize = 8;
/// A thread or task and what hangs on it is some ten KiB: 60 a minute fill a
/// machine within days.
const HIGH: f64 = 60.0;

/// All findings of one process, by a key that is unique within the run.
pub fn findings(session: &Session, p: &Process, now_ns: u64) -> BTreeMap<String, model::Finding> {
    let mut found = BTreeMap::new();
    for (kind, histories) in &p.flows {
        for h in histories.groups.values() {
            let Some(rise) = steady(&h.old.points()) else { continue };
            let ended = h.old_ended as f64 / (h.old_ended + h.last.old).max(1) as f64;
            if ended <= ENDED[1] {
                let finding = finding(session, p, *kind, h, (&rise, ended), now_ns);
                found.insert(format!("{}/{kind:?}/{}", p.info.pid, finding.id), finding);
            }
        }
    }
    found
}

fn steady(points: &[(f64, f64)]) -> Option<Rise> {
    LONG_STEPS.into_iter().find_map(|step| {
        let thinned: Vec<(f64, f64)> = points.iter().rev().step_by(step).rev().copied().collect();
        (step == 1 || thinned.len() >= FEWEST_LONG).then(|| rise(&thinned, FLOOR)).flatten()
    })
}

fn finding(
    session: &Session,
    p: &Process,
    flow: FlowKind,
    h: &FlowHistory,
    (rise, ended): (&Rise, f64),
    now_ns: u64,
) -> model::Finding {
    let (info, group) = (&p.info, &h.last);
    let (kind, what) = match flow {
        FlowKind::Thread => (Kind::Thread, "threads"),
        FlowKind::Task => (Kind::Task, "pending tasks"),
    };
    let tenant = group.tenant.clone().or_else(|| info.default_tenant.clone());
    let tenant = tenant.unwrap_or_else(|| "-".to_owned());
    let FlowLine { function, file, line } = group.start.clone();
    let id = model::finding_id(&info.name, kind, &tenant, &format!("{function} {file}"));
    let warm = info.uptime_ns as f64 / 1e9 + rise.span_s >= WARM_UP;
    let oldest_s = now_ns.saturating_sub(group.oldest_ns) as f64 / 1e9;
    let known = |line: u32| (line > 0).then_some(line);
    let at = group.at.clone();
    let blocked_on =
        at.as_ref().zip(group.waits_for.as_ref()).map(|(at, reason)| model::BlockedOn {
            reason: reason.clone(),
            function: Some(at.function.clone()),
            file: Some(at.file.clone()),
            line: known(at.line),
        });
    let (rising, steps) = rise.steps;
    let mut evidence = vec![
        model::Evidence {
            kind: EvidenceKind::Trend,
            detail: format!(
                "{what} started with {function} that stay: the least that any later look counted \
                 rose in {rising} of {steps} steps over {:.0} s, without slowing down",
                rise.span_s
            ),
            value: Some(rise.per_minute),
        },
        model::Evidence {
            kind: EvidenceKind::Age,
            detail: format!(
                "of those that were seen twice, {} are over and {} are not; the oldest was first \
                 seen {oldest_s:.0} s ago",
                h.old_ended, group.old
            ),
            value: Some(ended),
        },
    ];
    if let Some(at) = &at {
        evidence.push(model::Evidence {
            kind: EvidenceKind::Blocked,
            detail: format!(
                "{} of {} stand in {} ({}:{})",
                group.standing, group.alive, at.function, at.file, at.line
            ),
            value: Some(group.standing as f64),
        });
    }
    let place = at.filter(|a| a.line > 0);
    model::Finding {
        type_name: None,
        site: model::Site {
            id: id.clone(),
            function,
            file: Some(file),
            line: known(line),
            stack: Vec::new(),
        },
        id,
        kind,
        verdict: if rise.leak && warm && ended <= ENDED[0] {
            Verdict::Leak
        } else {
            Verdict::Suspect
        },
        severity: Severity::of(rise.per_minute / HIGH),
        confidence: model::rounded(rise.confidence * (1.0 - ended)),
        pid: info.pid,
        process: crate::report::clean::clean(&info.name),
        tenant,
        growth: model::Growth {
            percent_per_minute: None,
            bytes_per_minute: None,
            count_per_minute: Some(rise.per_minute),
            interval95: Some(rise.interval95),
        },
        live: model::Live {
            bytes: None,
            objects: Some(group.alive as f64),
            before_attach_bytes: None,
            oldest_s: Some(oldest_s),
            age_s: None,
            freed_lifetime_s: None,
        },
        since: timestamp(session, group.oldest_ns),
        detected_after_s: now_ns.saturating_sub(session.t_ns) as f64 / 1e9,
        blocked_on,
        evidence,
        holder: None,
        remedy: Some(model::Remedy {
            text: flow_remedy(flow, group),
            file: place.as_ref().map(|p| p.file.clone()),
            line: place.map(|p| p.line),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::Engine,
        ledger::Bounds,
        stream::{FlowGroup, Item, PyFlows, TargetInfo},
    };

    const SECOND: u64 = 1_000_000_000;

    /// Of one group, what each look counts: alive, old, old ones that ended.
    fn judge(kind: FlowKind, looks: &[[u64; 3]]) -> Vec<model::Finding> {
        let session = Session {
            execution_id: "test".into(),
            host: "host".into(),
            environment: None,
            wall_ns: 0,
            t_ns: 0,
            interval_ns: 10 * SECOND,
            threshold: 5.2,
        };
        let mut engine = Engine::new(session, Bounds::default());
        engine.apply(Item::Target(TargetInfo {
            pid: 7,
            start_ticks: 1,
            uptime_ns: 100 * SECOND,
            t_ns: 0,
            name: "svc".into(),
            exe: "/svc".into(),
            runtime: "cpython".into(),
            version: "3.12.1".into(),
            stripped: false,
            container: None,
            mode: "census".into(),
            sample_rate: None,
            heap_bytes: None,
            default_tenant: None,
            labels_before_default: 0,
            blocked: Vec::new(),
        }));
        for (i, [alive, old, old_ended]) in (0u64..).zip(looks) {
            let line = |function: &str, line| FlowLine {
                function: function.into(),
                file: "/app/a.py".into(),
                line,
            };
            let group = FlowGroup {
                start: line("work", 3),
                tenant: Some("acme".into()),
                alive: *alive,
                old: *old,
                old_ended: *old_ended,
                oldest_ns: 0,
                at: Some(line("wait", 9)),
                waits_for: Some("a lock".into()),
                standing: *alive,
            };
            let t_ns = i * 10 * SECOND;
            let looks = i as u32 + 1;
            let groups = vec![group];
            let item = PyFlows { pid: 7, t_ns, kind, looks, groups, ..PyFlows::default() };
            engine.apply(Item::Flows(item));
            engine.apply(Item::Tick { t_ns });
        }
        engine.report().findings
    }

    fn series(n: u64, of: impl Fn(u64) -> [u64; 3]) -> Vec<[u64; 3]> {
        (0..n).map(of).collect()
    }

    #[test]
    fn what_stays_and_becomes_more_is_a_leak() {
        for (kind, expected) in [(FlowKind::Thread, Kind::Thread), (FlowKind::Task, Kind::Task)] {
            // Beside short ones, of which each look sees others.
            let looks = series(10, |i| [i * 3 + i % 2 * 20, (i * 3).saturating_sub(3), 0]);
            let found = judge(kind, &looks);
            assert_eq!(found.len(), 1, "{found:#?}");
            let f = &found[0];
            assert_eq!((f.kind, f.verdict, &*f.tenant), (expected, Verdict::Leak, "acme"));
            assert_eq!((&*f.site.function, f.site.line), ("work", Some(3)));
            assert!((f.growth.count_per_minute.unwrap() - 18.0).abs() < 1.0);
            let blocked = f.blocked_on.as_ref().unwrap();
            assert_eq!((&*blocked.reason, blocked.line), ("a lock", Some(9)));
            assert_eq!(f.severity, Severity::Medium);
        }
        // One in half a minute.
        let slow = judge(FlowKind::Thread, &series(40, |i| [i / 3, i / 3, 0]));
        assert!(slow.len() == 1 && slow[0].verdict == Verdict::Leak, "{slow:#?}");
    }

    #[test]
    fn healthy_ones_are_silent() {
        let fixed = series(60, |_| [50, 50, 0]);
        let short = series(60, |i| [i * 7 % 40, 0, 0]);
        let long = series(60, |i| [20 + i * 7 % 11, 10 + i * 5 % 7, 4]);
        let filling = series(60, |i| [i.min(16), i.min(16), 0]);
        let connections = series(60, |i| [20 + i, 10 + i, 8]);
        for looks in [fixed, short, long, filling, connections] {
            assert_eq!(judge(FlowKind::Thread, &looks), [], "{looks:?}");
        }
    }
}
