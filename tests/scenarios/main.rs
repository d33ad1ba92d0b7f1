//! Leaks and their healthy twins, from a simulated Go sampler: no root, no
//! processes, the same result every time.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../simulate/mod.rs"]
mod simulate;

use claw_ebpf::{
    decode::What,
    engine::Engine,
    ledger::Bounds,
    report::{
        model::{Finding, Kind, Verdict},
        text,
    },
    stream::{Blocked, Item, Part, Still},
};
use simulate::*;

struct Run {
    engine: Engine,
    /// Findings as they came up or changed, with the time in seconds.
    seen: Vec<(f64, Finding)>,
}

impl Run {
    fn first_leak(&self) -> Option<f64> {
        self.seen.iter().find(|(_, f)| f.verdict == Verdict::Leak).map(|(t, _)| *t)
    }
}

fn run(items: Vec<Item>) -> Run {
    let mut run = Run { engine: Engine::new(session(), Bounds::default()), seen: Vec::new() };
    for item in items {
        let now = match &item {
            Item::Tick { t_ns } | Item::Judge { t_ns } => *t_ns as f64 / 1e9,
            _ => 0.0,
        };
        let outcome = run.engine.apply(item);
        run.seen.extend(outcome.changed.into_iter().map(|f| (now, f)));
    }
    run
}

/// When the probes on the heap are given up, what was there from before
/// watching began is lost with them, and how much that was is said.
#[test]
fn what_is_lost_with_the_probes_is_said() {
    let blind = |part| Item::Blind { pid: PID, t_ns: SECOND, part, why: "too many".into() };
    let before = Item::Before { pid: PID, bucket: 1, size: 1 << 20, samples: 3, rate: 1 };
    let report = |part| run(vec![target(), before.clone(), blind(part)]).engine.report();
    let goroutines = report(Part::Goroutines);
    assert_eq!(goroutines.targets[0].blocked[0].why, "too many");
    assert!(goroutines.targets[0].before_attach.is_some());
    let heap = report(Part::Heap);
    let why = &heap.targets[0].blocked[0].why;
    assert!(why.starts_with("too many; 3.0 MiB in use from before"), "{why}");
    assert!(heap.targets[0].before_attach.is_none());
}

/// Where the heap is not seen, collections are not what silence waits for.
#[test]
fn what_silence_waits_for_is_said() {
    let why = |heap_rate, young, seconds: u64| {
        let Item::Target(mut info) = target() else { unreachable!() };
        info.sample_rate = heap_rate;
        info.uptime_ns = if young { SECOND } else { info.uptime_ns };
        let what = What::GoroutineNew { id: 1, gopc: 30, startpc: 0, label: None, stack: vec![] };
        let items = [Item::Target(info), event(1.0, what), Item::Tick { t_ns: seconds * SECOND }];
        run(items.into()).engine.report().summary.why_not_enough
    };
    let unseen = why(None, true, 40).unwrap();
    assert!(unseen.contains("goroutines") && unseen.contains("after 50 s"), "{unseen}");
    assert_eq!(why(None, false, 40), None);
    let seen = why(Some(RATE), true, 40).unwrap();
    assert!(seen.contains("GC cycles"), "{seen}");
}

/// Where nothing is seen, nothing is judged, however many collections there are,
/// and no figure is zero for it.
#[test]
fn what_was_blocked_from_the_start_is_unknown() {
    let report = |blocked: &[Part]| {
        let mut items = stream(&[garbage()], 60.0, 5.0, 1);
        let Item::Target(info) = &mut items[0] else { unreachable!() };
        for part in blocked {
            let (what, why) = (part.name().into(), "no such function".into());
            info.blocked.push(Blocked { what, why });
        }
        run(items).engine.report()
    };
    let seen = |blocked: &[Part]| {
        let report = report(blocked);
        let t = &report.tenants[0];
        (report.summary.enough_evidence, t.live_bytes.is_some(), t.goroutines.is_some())
    };
    assert_eq!(seen(&[]), (true, true, true));
    assert_eq!(seen(&[Part::Goroutines]), (true, true, false));
    let heap = report(&[Part::Heap]);
    assert!(heap.summary.enough_evidence && heap.tenants.iter().all(|t| t.live_bytes.is_none()));
    let neither = report(&[Part::Heap, Part::Goroutines]).summary.why_not_enough.unwrap();
    assert!(neither.contains("neither its heap nor its goroutines"), "{neither}");
}

/// Silence about a heap that is not seen is no good news.
#[test]
fn what_is_not_seen_is_not_called_healthy() {
    let said = |blocked: &[Item]| {
        let mut items = stream(&[garbage()], 60.0, 5.0, 1);
        items.splice(1..1, blocked.to_vec());
        let report = run(items).engine.report();
        assert!(report.findings.is_empty() && report.summary.enough_evidence, "{report:#?}");
        text::findings(&report, text::Style::Plain).replace("\n  ", " ")
    };
    assert!(said(&[]).contains("No leak found: nothing"), "{}", said(&[]));
    let why = "MemProfileRate is 0".into();
    let blind = Item::Blind { pid: PID, t_ns: 1, part: Part::Heap, why };
    let said = said(&[blind]);
    assert!(said.contains("to which the heap does not belong (process 7)"), "{said}");
}

/// Found in 19 of 20 runs within the time, with the right name on it.
fn leaking(workload: Workload, share: f64, gc: f64, seconds: f64, within: f64) {
    leaking_beside(&[garbage()], workload, share, gc, seconds, within);
}

fn leaking_beside(
    beside: &[Workload],
    workload: Workload,
    share: f64,
    gc: f64,
    seconds: f64,
    within: f64,
) {
    let workloads: Vec<Workload> = beside.iter().copied().chain([workload]).collect();
    let mut times = Vec::new();
    for seed in 1..=20 {
        let run = run(stream(&workloads, seconds, gc, seed));
        for (_, f) in &run.seen {
            assert_eq!(f.tenant, workload.tenant);
            assert_eq!(f.site.line, Some(100 + workload.pc as u32));
        }
        times.push(run.first_leak().unwrap_or(f64::MAX));
        let report = run.engine.report();
        let [low, high] = report.findings[0].growth.interval95.unwrap();
        let truth = workload.bytes_per_s * share * 60.0;
        // A 95 % interval misses now and then, but not by half.
        assert!(low < truth * 1.5 && high > truth / 1.5, "{low} to {high}, not {truth}");
    }
    times.sort_by(f64::total_cmp);
    assert!(times[18] <= within, "found after {times:?}");
}

fn leak(bytes_per_s: f64, size: u64, life: Life) -> Workload {
    Workload { tenant: "acme", pc: 20, bytes_per_s, size, life, active: ALWAYS }
}

#[test]
fn five_percent_a_minute_of_200_mb_is_found_within_a_minute() {
    // A service of 200 MB whose garbage of 30 MB/s fills its GC's headroom.
    leaking(leak(10.0 * MIB / 60.0, 512, Life::Stays), 1.0, 7.0, 120.0, 60.0);
}

#[test]
fn leak_is_found_beside_the_garbage_of_its_own_site() {
    // Most of what is made there is soon dead: so is what lies there at attach.
    let requests = Workload { life: Life::Short(0.05), ..leak(1_500_000.0, 2048, Life::Stays) };
    let stays = leak(10.0 * MIB / 60.0, 2048, Life::Stays);
    leaking_beside(&[garbage(), requests], stays, 1.0, 7.0, 120.0, 60.0);
}

#[test]
fn slow_leak_in_a_busy_service_is_found_within_five_minutes() {
    leaking(leak(65_536.0, 128, Life::Stays), 1.0, 2.0, 420.0, 300.0);
}

#[test]
fn leak_of_one_in_a_hundred_at_a_busy_site_is_found() {
    leaking(leak(40.0 * MIB, 256, Life::OneIn100Stays), 0.01, 2.0, 120.0, 60.0);
}

fn silent(name: &str, workloads: &[Workload], gc: f64) {
    for seed in 1..=20 {
        let run = run(stream(workloads, 600.0, gc, seed));
        if !run.seen.is_empty() {
            eprintln!("FALSE {name} seed {seed} at {} {:?}", run.seen[0].0, run.seen[0].1.verdict);
        }
        let report = run.engine.report();
        assert!(report.summary.enough_evidence, "{name}: {:?}", report.summary);
    }
}

fn twin(bytes_per_s: f64, life: Life, active: (f64, f64)) -> Workload {
    Workload { tenant: "fine", pc: 20, bytes_per_s, size: 2048, life, active }
}

#[test]
fn garbage_of_any_kind_is_silent() {
    silent("garbage", &[garbage(), twin(MIB, Life::Short(0.5), ALWAYS)], 2.0);
    silent("garbage, rare GC", &[twin(2.0 * MIB, Life::Short(0.5), ALWAYS)], 60.0);
}

#[test]
fn steady_cache_is_silent() {
    for (life, gc) in [(5.0, 2.0), (30.0, 2.0), (100.0, 2.0), (100.0, 7.0), (300.0, 20.0)] {
        let w = twin(MIB, Life::Fixed(life), ALWAYS);
        silent(&format!("sessions of {life} s"), &[garbage(), w], gc);
    }
}

#[test]
fn what_is_made_once_is_silent() {
    silent("at the start", &[garbage(), twin(20.0 * MIB, Life::Stays, (0.0, 3.0))], 2.0);
    silent("later", &[garbage(), twin(20.0 * MIB, Life::Stays, (200.0, 203.0))], 2.0);
}

#[test]
fn bursts_are_silent() {
    let mut workloads = vec![garbage()];
    workloads.extend((0..12).map(|i| {
        let at = f64::from(i) * 47.0 + 3.0;
        twin(40.0 * MIB, Life::Fixed(15.0), (at, at + 2.0))
    }));
    silent("bursts", &workloads, 2.0);
}

#[test]
fn the_same_stream_gives_the_same_report() {
    let w = twin(MIB, Life::Stays, ALWAYS);
    let items = stream(&[garbage(), w], 120.0, 2.0, 3);
    let (a, b) = (run(items.clone()), run(items));
    let json = |r: &Run| serde_json::to_string(&r.engine.report()).unwrap();
    assert_eq!(json(&a), json(&b));
    assert!(a.first_leak().is_some());
}

#[test]
fn goroutines_that_pile_up_and_those_that_do_not() {
    let begin = |t: f64, id: u64, pc: u64| {
        let what = What::GoroutineNew { id, gopc: pc, startpc: 0, label: None, stack: vec![] };
        (t, event(t, what))
    };
    let end = |t: f64, id: u64, pc: u64| (t, event(t, What::GoroutineExit { id, gopc: pc }));
    let mut timed = Vec::new();
    let mut id = 0;
    let mut next = || {
        id += 1;
        id
    };
    for i in 0..1800u32 {
        let t = f64::from(i) / 10.0;
        // Site 30: requests of 2 s.
        let request = next();
        timed.extend([begin(t, request, 30), end(t + 2.0, request, 30)]);
        // 31: connections of 50 s, those of before go as well.
        if i % 20 == 0 {
            let connection = next();
            timed.extend([begin(t, connection, 31), end(t + 50.0, connection, 31)]);
            if t < 50.0 {
                timed.push(end(t, 1_000_000 + connection, 31));
            }
        }
        // 32: a pool. 33: leaks one every two seconds.
        if i < 64 {
            timed.push(begin(t, next(), 32));
        }
        if i % 20 == 7 {
            timed.push(begin(t, next(), 33));
        }
    }
    timed.extend((1..=18).map(|i| {
        let t = f64::from(i) * 10.0;
        (t, Item::Tick { t_ns: (t * 1e9) as u64 })
    }));
    timed.retain(|(t, _)| *t <= 180.0);
    timed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut items = vec![target()];
    items.extend((30..34).map(|pc| Item::Frames { pid: PID, pc, frames: vec![frame(pc)] }));
    items.extend(timed.into_iter().map(|(_, i)| i));
    let run = run(items);
    for (t, f) in &run.seen {
        assert_eq!(f.site.line, Some(133), "at {t} s: {f:#?}");
    }
    let report = run.engine.report();
    assert_eq!(report.findings[0].verdict, Verdict::Leak);
    let [low, high] = report.findings[0].growth.interval95.unwrap();
    assert!(low < 30.0 && 30.0 < high, "{low} to {high} a minute");
}

/// What was there before: counted by site, nobody's, and freed by the frees of
/// unknown birth.
#[test]
fn heap_from_before_is_in_the_picture_from_the_first_second() {
    let leak = leak(MIB, 512, Life::Stays);
    let mut items = stream(&[garbage(), leak], 60.0, 2.0, 1);
    let first = items.iter().position(|i| matches!(i, Item::Event(_))).unwrap();
    // 100 samples of 512 bytes stand for 51 MB; 10 of them are freed.
    let before =
        |bucket, samples| Item::Before { pid: PID, bucket, size: 512, samples, rate: RATE };
    items.insert(first, before(leak.pc, 100));
    items.insert(first, before(99, 1));
    for addr in 0..10 {
        items.push(event(60.0, What::Free { addr, size: 512, bucket: leak.pc }));
    }
    let mut early = items.clone();
    early.truncate(first + 2);
    let report = run(early).engine.report();
    let held = report.targets[0].before_attach.clone().unwrap();
    assert!((held.bytes / (101.0 * RATE as f64) - 1.0).abs() < 1e-3, "{held:?}");
    let sites: Vec<_> = held.sites.iter().map(|s| s.function.as_str()).collect();
    assert_eq!(sites, ["main.f20", "(unknown)"], "a bucket without a stack is kept");
    let nobody = &report.tenants[0];
    assert_eq!((nobody.tenant.as_str(), nobody.live_bytes), ("-", Some(0.0)));
    assert_eq!(nobody.before_attach_bytes, Some(held.bytes));

    items.push(Item::Tick { t_ns: 61 * SECOND });
    let report = run(items.clone()).engine.report();
    let f = &report.findings[0];
    let still = f.live.before_attach_bytes.unwrap();
    assert!((still / (90.0 * RATE as f64) - 1.0).abs() < 1e-3, "{still}");
    let says = f.evidence.iter().find(|e| e.detail.contains("before watching began")).unwrap();
    assert!(says.detail.starts_with("45.0 MiB in 92"), "{}", says.detail);
    assert!(f.live.bytes.unwrap() < 1.3 * 60.0 * MIB, "what was there before is not the tenant's");
    let text = claw_ebpf::report::text::render(&report, claw_ebpf::report::text::Style::Plain);
    assert!(text.contains("in use since before: 45.5 MiB; most of it"), "{text}");

    // The whole process is one tenant's: so was what it held.
    let Item::Target(info) = &mut items[0] else { panic!("{:?}", items[0]) };
    info.default_tenant = Some("acme".into());
    let report = run(items).engine.report();
    assert!(report.tenants.iter().all(|t| t.tenant == "acme"));
    assert!(report.tenants[0].before_attach_bytes.unwrap() > 40.0 * MIB);
}

/// Goroutines of one `go` statement, one a second at each of `places`, that stay
/// where they wait.
fn standing(places: &[u64], seconds: u64) -> Vec<Item> {
    let mut items = vec![target()];
    for pc in places.iter().chain(&[50]) {
        items.push(Item::Frames { pid: PID, pc: *pc, frames: vec![frame(*pc)] });
    }
    let mut id = 0;
    for s in 1..=seconds {
        for pc in places {
            id += 1;
            items.push(Item::Still(Still {
                pid: PID,
                id,
                gopc: 50,
                since_ns: s * SECOND,
                before: false,
                reason: "chan send".into(),
                label: None,
                stack: vec![*pc, 50],
            }));
        }
        if s % 10 == 0 {
            items.push(Item::Tick { t_ns: s * SECOND });
        }
    }
    items
}

#[test]
fn two_lines_to_change_are_two_findings() {
    let report = run(standing(&[60, 61], 90)).engine.report();
    let mut found: Vec<_> = report
        .findings
        .iter()
        .map(|f| {
            assert_eq!((f.verdict, f.site.line), (Verdict::Leak, Some(150)), "{f:#?}");
            let per_minute = f.growth.count_per_minute.unwrap();
            assert!((45.0..75.0).contains(&per_minute), "each counts its own: {per_minute}");
            (f.blocked_on.as_ref().unwrap().line, f.id.clone())
        })
        .collect();
    found.sort();
    assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [Some(160), Some(161)]);
    assert_ne!(found[0].1, found[1].1, "each has an id of its own");
    let alone = run(standing(&[61], 90)).engine.report();
    assert_eq!(alone.findings[0].id, found[1].1, "which the other has no part in");
}

/// Hours of a process of which nothing is sampled, its resident memory in MiB
/// at a time in minutes.
fn resident(hours: u64, size: impl Fn(f64) -> f64) -> Run {
    let mut items = vec![target()];
    for i in 1..hours * 360 {
        let t_ns = i * 10 * SECOND;
        // Not random, but without pattern.
        let noise = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1u64 << 24) as f64;
        let rss_bytes = (size(i as f64 / 6.0) * MIB * (1.0 + 0.02 * noise)) as u64;
        items.push(Item::Memory { pid: PID, t_ns, rss_bytes, anon_bytes: 0, threads: 5 });
        items.push(Item::Tick { t_ns });
    }
    run(items)
}

#[test]
fn resident_memory_that_grows_is_a_leak_by_its_trend_alone() {
    let run = resident(6, |m| 300.0 + 1.5 * (m - 60.0).max(0.0));
    // It may come again with another severity.
    assert!(run.seen.iter().all(|(_, f)| f.kind == Kind::Rss && f.verdict == Verdict::Leak));
    let (t, f) = run.seen.first().unwrap();
    assert!((3600.0..5.0 * 3600.0).contains(t), "found at {t}");
    let percent = f.growth.percent_per_minute.unwrap();
    assert!((0.4..0.6).contains(&percent), "{percent}");
    assert!(f.evidence.iter().any(|e| e.detail.contains("resident memory grew")));
    assert_eq!(run.engine.report().findings.len(), 1);
}

#[test]
fn resident_memory_that_steps_or_fills_up_is_none() {
    let step = |m: f64| if m > 100.0 { 420.0 } else { 300.0 };
    let fills = |m: f64| 450.0 - 150.0 * (-m / 40.0).exp();
    let flat = |_: f64| 300.0;
    for (name, size) in [("step", &step as &dyn Fn(f64) -> f64), ("cache", &fills), ("flat", &flat)]
    {
        let run = resident(4, size);
        assert!(run.seen.is_empty(), "{name}: {:#?}", run.seen);
    }
}
