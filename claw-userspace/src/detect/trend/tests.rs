//! Leaks and their healthy twins, as series.

use std::sync::Arc;

use super::{Layers, Learner, Profile, State, Trend};
use crate::detect::series::Point;

const MIB: f64 = 1_048_576.0;

/// Not random, but without pattern: 0 to 1.
fn noise(i: u64) -> f64 {
    let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z ^ (z >> 27)) >> 11) as f64 / (1u64 << 53) as f64
}

/// `hours` of a service of 200 MiB, 10 s each: `level` in shares of that at a
/// time in minutes, the sawtooth of a collector on top.
fn series(hours: u64, level: impl Fn(f64) -> f64) -> Vec<Point> {
    let at = |i: u64| {
        let t = i as f64 * 10.0;
        Point::new(t, 200.0 * MIB * level(t / 60.0) * (1.0 + 0.5 * noise(i)))
    };
    (0..hours * 360).map(at).collect()
}

/// Minutes at which it was called a leak.
fn leaks(points: &[Point], trend: &mut Trend) -> Vec<f64> {
    let hit = |p: &Point| {
        let change = trend.put(p, 0.0)?;
        (change.state == State::Leak).then_some(p.t / 60.0)
    };
    points.iter().filter_map(hit).collect()
}

fn plain() -> Trend {
    Trend::new(None, Layers::default())
}

#[test]
fn leaks_after_a_quiet_time_are_found_in_time() {
    for (rate, within) in [(5.2, 25.0), (2.0, 45.0), (0.5, 150.0), (0.1, 400.0)] {
        let points = series(12, |m| 1.0 + rate / 100.0 * (m - 90.0).max(0.0));
        let at = leaks(&points, &mut plain());
        assert!(at.len() == 1 && (90.0..90.0 + within).contains(&at[0]), "{rate} %/min: {at:?}");
    }
}

#[test]
fn fast_leaks_are_found_within_ten_minutes_of_few_values() {
    // A value every one or two minutes, with the noise of a heap after collections.
    for step in [6, 12] {
        let noisy = |leak: f64| {
            let level = |m: f64| 1.0 + leak * (m - 300.0).max(0.0);
            let of = |i: u64| {
                let t = i as f64 * 10.0;
                Point::new(t, 200.0 * MIB * level(t / 60.0) * (1.0 + 0.03 * noise(i)))
            };
            let points: Vec<Point> = (0..3600).step_by(step).map(of).collect();
            leaks(&points, &mut plain())
        };
        let at = noisy(0.052);
        assert!(at.len() == 1 && (300.0..=310.0).contains(&at[0]), "{at:?}");
        assert_eq!(noisy(0.0), [] as [f64; 0]);
    }
}

#[test]
fn a_burst_or_a_step_of_few_values_is_no_leak() {
    for (rise, fall) in [(300.0, 330.0), (300.0, f64::MAX)] {
        for step in [1, 3, 6, 12] {
            let level = |m: f64| if m < fall { 1.0 + (m - rise).clamp(0.0, 1.0) } else { 1.0 };
            let of = |i: u64| {
                let t = i as f64 * 10.0;
                Point::new(t, 200.0 * MIB * level(t / 60.0) * (1.0 + 0.03 * noise(i)))
            };
            let points: Vec<Point> = (0..3600).step_by(step).map(of).collect();
            assert_eq!(leaks(&points, &mut plain()), [] as [f64; 0], "{fall} {step}");
        }
    }
}

#[test]
fn healthy_twins_are_silent() {
    let wave = |m: f64| (m / 1440.0 * std::f64::consts::TAU).sin();
    let twins: [(&str, &dyn Fn(f64) -> f64); 6] = [
        ("flat", &|_| 1.0),
        ("step", &|m| if m > 200.0 { 1.3 } else { 1.0 }),
        ("burst", &|m| if (200.0..230.0).contains(&m) { 1.6 } else { 1.0 }),
        ("cache", &|m| 1.6 - 0.6 * (-m / 120.0).exp()),
        ("lru", &|m| 1.0 + 0.4 * (m / 180.0).min(1.0)),
        ("daily", &|m| 1.0 + 0.08 * wave(m)),
    ];
    for (name, level) in twins {
        assert_eq!(leaks(&series(36, level), &mut plain()), [] as [f64; 0], "{name}");
    }
}

#[test]
fn growth_from_the_start_is_a_leak_when_it_outlives_a_warm_up_or_outgrows_one() {
    // 36 h for each, of processes seen from their beginning.
    let young = |mut points: Vec<Point>| {
        points.iter_mut().for_each(|p| p.uptime = p.t);
        leaks(&points, &mut plain())
    };
    let slow = young(series(36, |m| 1.0 + 0.0005 * m));
    assert!(slow.len() == 1 && (720.0..800.0).contains(&slow[0]), "{slow:?}");
    let fast = young(series(12, |m| 1.0 + 0.01 * m));
    assert!(fast.len() == 1 && (100.0..300.0).contains(&fast[0]), "{fast:?}");
    assert_eq!(young(series(36, |m| 1.0 + 1.2 * (m / 600.0).min(1.0))), [] as [f64; 0], "lru");
    assert_eq!(young(series(36, |m| 2.2 - 1.2 * (-m / 400.0).exp())), [] as [f64; 0], "cache");
}

#[test]
fn growth_in_proportion_to_a_rising_load_is_no_leak_yet() {
    // By the tenth hour the load has doubled; its measurement is noisy, which
    // hides from a fit how much of the memory follows it.
    let ramp = |m: f64| 1.0 + (m / 600.0).min(1.0);
    let loaded = |level: &dyn Fn(f64) -> f64| {
        let mut points = series(10, level);
        for (i, p) in points.iter_mut().enumerate() {
            (p.load, p.uptime) =
                (100.0 * ramp(p.t / 60.0) * (0.85 + 0.3 * noise(i as u64 + 7)), 1e6 + p.t);
        }
        leaks(&points, &mut plain())
    };
    assert_eq!(loaded(&|m| 0.5 + 0.5 * ramp(m)), [] as [f64; 0]);
    assert_eq!(loaded(&|m| 0.5 + 0.5 * ramp(m) + 0.005 * m).len(), 1);
}

#[test]
fn restart_ends_a_series_and_not_a_finding() {
    let mut trend = plain();
    let points = series(6, |m| if m < 240.0 { 1.0 + 0.01 * (m - 60.0).max(0.0) } else { 1.0 });
    assert_eq!(leaks(&points, &mut trend).len(), 1);
    assert_eq!(trend.notes.restarts, 1);
    assert_eq!(trend.standing().map(|s| s.restarts), Some(1));
}

#[test]
fn a_leak_that_is_killed_within_the_hour_restarts_and_a_burst_does_not() {
    let mut trend = plain();
    let killed = |m: f64| 1.0 + 0.06 * ((m - 90.0) % 50.0).max(0.0);
    leaks(&series(6, killed), &mut trend);
    assert!((4..=6).contains(&trend.notes.restarts), "{}", trend.notes.restarts);
    let mut trend = plain();
    let burst = |m: f64| if m > 90.0 && m % 120.0 < 40.0 { 4.0 } else { 1.0 };
    assert_eq!(leaks(&series(12, burst), &mut trend), [] as [f64; 0]);
    assert_eq!(trend.notes.restarts, 0);
}

#[test]
fn baseline_knows_the_warm_up_and_a_leak_is_beyond_it() {
    let cache = |m: f64| 2.5 - 1.5 * (-m / 200.0).exp();
    let healthy = series(24, cache);
    let mut learner = Learner::default();
    healthy.iter().for_each(|p| learner.put(p));
    healthy.iter().for_each(|p| learner.again(p));
    let profile = Arc::new(learner.finish());
    let with = || Trend::new(Some(profile.clone()), Layers::default());
    assert_eq!(leaks(&series(24, |m| 1.02 * cache(m)), &mut with()), [] as [f64; 0]);
    let leaking = series(24, |m| cache(m) + 0.002 * (m - 60.0).max(0.0));
    let at = leaks(&leaking, &mut with());
    assert!(at.len() == 1 && at[0] < 600.0, "{at:?}");
}

#[test]
fn memory_is_bounded_and_the_same_input_gives_the_same() {
    let points = series(72, |m| 1.0 + 0.0005 * m);
    let run = || {
        let mut trend = plain();
        (leaks(&points, &mut trend), trend.memory(), format!("{:?}", trend.standing()))
    };
    assert_eq!(run(), run());
    assert!(run().1 <= 2048, "{} bytes", run().1);
}

#[test]
fn a_warm_up_that_ended_hides_no_leak() {
    let filled = |m: f64| 1.0 + 0.8 * (1.0 - (-m / 60.0).exp());
    let healthy = series(40, filled);
    assert_eq!(leaks(&healthy, &mut plain()), [] as [f64; 0]);
    let leaking = series(40, |m| filled(m) + 0.0008 * (m - 900.0).max(0.0));
    let at = leaks(&leaking, &mut plain());
    assert!(at.len() == 1 && (900.0..1700.0).contains(&at[0]), "{at:?}");
}

#[test]
fn a_level_that_fell_at_once_hides_no_leak() {
    let dropped = |m: f64| if m < 300.0 { 1.5 } else { 1.0 };
    assert_eq!(leaks(&series(40, dropped), &mut plain()), [] as [f64; 0]);
    let leaking = series(40, |m| dropped(m) + 0.0008 * (m - 420.0).max(0.0));
    let at = leaks(&leaking, &mut plain());
    assert!(at.len() == 1 && (420.0..1000.0).contains(&at[0]), "{at:?}");
}

#[test]
fn growth_that_an_earlier_life_did_not_show_is_no_warm_up() {
    // A life of ten hours, and another: the cache fills in both.
    let filled = |m: f64| 1.0 + 0.15 * (1.0 - (-m / 60.0).exp());
    let lives = |second: &dyn Fn(f64) -> f64| {
        let mut points = series(20, |m| if m < 600.0 { filled(m) } else { second(m - 600.0) });
        points.iter_mut().for_each(|p| p.uptime = p.t % 36_000.0);
        leaks(&points, &mut plain())
    };
    assert_eq!(lives(&filled), [] as [f64; 0]);
    let at = lives(&|m| filled(m) + 0.0008 * m);
    assert!(at.len() == 1 && (600.0..1100.0).contains(&at[0]), "{at:?}");
}

/// A service of objects of 1 KiB that live for a minute, a value every 10 s:
/// `load` in objects a second and `kept`, the share that stays, by minute.
fn churn(minutes: u64, load: impl Fn(f64) -> f64, kept: impl Fn(f64) -> f64) -> Vec<Point> {
    let (mut allocs, mut frees) = (0.0, 0.0);
    let of = |i: u64| {
        let m = i as f64 / 6.0;
        allocs += 10.0 * load(m);
        if m >= 1.0 {
            frees += 10.0 * load(m - 1.0) * (1.0 - kept(m - 1.0));
        }
        let live = 200.0 * MIB + (allocs - frees) * 1024.0;
        let mut p = Point::new(i as f64 * 10.0, live * (1.0 + 0.01 * noise(i)));
        (p.allocs, p.frees) = (allocs, frees);
        p
    };
    (0..minutes * 6).map(of).collect()
}

fn without_counts(points: &[Point]) -> Vec<Point> {
    points.iter().map(|p| Point { allocs: f64::NAN, frees: f64::NAN, ..*p }).collect()
}

#[test]
fn growth_of_objects_that_no_longer_die_is_no_warm_up() {
    // From minute 10 of its life on, 2 % of 200 MiB a minute; or a cache that
    // fills from its start as fast.
    let young = |mut points: Vec<Point>| {
        points.iter_mut().for_each(|p| p.uptime = p.t);
        points
    };
    let leaking = young(churn(300, |_| 68.0, |m| if m >= 10.0 { 1.0 } else { 0.0 }));
    let (at, late) =
        (leaks(&leaking, &mut plain()), leaks(&without_counts(&leaking), &mut plain()));
    assert!(at.len() == 1 && (10.0..45.0).contains(&at[0]), "{at:?}");
    assert!(late.len() == 1 && late[0] > at[0] + 20.0, "{late:?} after {at:?}");
    let filling = young(churn(90, |m| if m < 50.0 { 68.0 } else { 0.0 }, |_| 1.0));
    assert_eq!(leaks(&filling, &mut plain()), [] as [f64; 0]);
    assert_eq!(leaks(&young(churn(300, |_| 68.0, |_| 0.0)), &mut plain()), [] as [f64; 0]);
}

#[test]
fn churn_of_a_rising_load_is_no_leak_where_objects_are_counted() {
    // Over half an hour the load becomes twenty times as large.
    let rising = |m: f64| 340.0 * (1.0 + 19.0 * ((m - 90.0) / 30.0).clamp(0.0, 1.0));
    let points = churn(240, rising, |_| 0.0);
    assert_eq!(leaks(&points, &mut plain()), [] as [f64; 0]);
    assert_eq!(leaks(&without_counts(&points), &mut plain()).len(), 1, "what else it looks like");
}

#[test]
fn a_baseline_that_knows_fewer_windows_is_read() {
    let healthy = series(3, |_| 1.0);
    let mut learner = Learner::default();
    healthy.iter().for_each(|p| learner.put(p));
    healthy.iter().for_each(|p| learner.again(p));
    let profile = learner.finish();
    let mut file = serde_json::to_value(&profile).unwrap();
    assert_eq!(serde_json::from_value::<Profile>(file.clone()).unwrap(), profile);
    file["brief"].as_array_mut().unwrap().truncate(4);
    let old: Profile = serde_json::from_value(file.clone()).unwrap();
    assert_eq!(old.brief[..4], profile.brief[..4]);
    assert_eq!(old.brief[4..], [Default::default(); super::BRIEF - 4]);
    file.as_object_mut().unwrap().remove("brief");
    assert!(serde_json::from_value::<Profile>(file).is_ok());
}
