//! Does a quantity that is counted now and then keep growing? For censuses,
//! which hold garbage that waits for the collector and the work at hand: what
//! matters is the floor that later counts never fall below.

/// What a series shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rise {
    /// Of the quantity, with its 95 % interval.
    pub per_minute: f64,
    pub interval95: [f64; 2],
    /// 0 to 1.
    pub confidence: f64,
    pub leak: bool,
    /// In how many of how many steps the floor rose.
    pub steps: (usize, usize),
    pub span_s: f64,
}

/// Counts below which nothing is said, and for a leak.
const FEWEST: [usize; 2] = [5, 6];
/// Time they have to span, s, for the same.
const SPAN_S: [f64; 2] = [20.0, 25.0];
/// Share of steps in which the floor has to rise, for the same. A stationary
/// series of n values has about ln n such steps.
const RISING: [f64; 2] = [0.7, 0.8];
/// Growth of the second half over that of the first: what fills up slows down.
const STEADY: f64 = 0.5;

/// `series` holds `(seconds, quantity)`, oldest first. Growth has to exceed
/// `floor_per_minute`.
pub fn rise(series: &[(f64, f64)], floor_per_minute: f64) -> Option<Rise> {
    let n = series.len();
    let (first, last) = (series.first()?, series.last()?);
    let span_s = last.0 - first.0;
    if n < FEWEST[0] || span_s < SPAN_S[0] {
        return None;
    }
    let floor = floor(series);
    let rising = floor.windows(2).filter(|w| w[1].1 > w[0].1).count();
    let share = rising as f64 / (n - 1) as f64;
    let (slope, error) = regression(&floor)?;
    // It still goes on: of the two newest steps one rose.
    if floor.get(n - 3).is_some_and(|p| p.1 >= last.1) {
        return None;
    }
    let middle = n / 2;
    let (early, _) = regression(floor.get(..=middle)?)?;
    let (late, _) = regression(floor.get(middle..)?)?;
    let per_minute = slope * 60.0;
    let low = (slope - 2.0 * error) * 60.0;
    if share < RISING[0] || late < STEADY * early || low <= floor_per_minute.max(0.0) {
        return None;
    }
    let confidence = 0.5 + 0.49 * share * (1.0 - (-(n as f64) / 3.0).exp());
    Some(Rise {
        per_minute,
        interval95: [low, (slope + 2.0 * error) * 60.0],
        confidence,
        leak: n >= FEWEST[1] && span_s >= SPAN_S[1] && share >= RISING[1],
        steps: (rising, n - 1),
        span_s,
    })
}

/// What a full garbage collection says of growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlived {
    /// It outlived the collection: what grows is no garbage.
    Yes,
    /// The collection took it away.
    No,
    /// Too little of it was before the collection.
    Unclear,
}

/// Share of the growth up to a full collection that has to be there after it.
const LIVED: f64 = 0.5;

/// Whether a `rise` of `per_minute` that `series` shows has outlived a full
/// collection, which ran between the counts at `from` and at `to`, seconds. What
/// was there at the first count is at most what that says, and what came since
/// the collection is no more than comes in that time: the rest has lived through
/// it.
pub fn outlived(series: &[(f64, f64)], (from, to): (f64, f64), per_minute: f64) -> Outlived {
    let floor = floor(series);
    // Where the past is thinned out, the next that is known.
    let after = floor.iter().position(|(t, _)| *t >= to);
    let (Some(after), Some(first)) = (after.filter(|i| *i > 0), floor.first()) else {
        return Outlived::Unclear;
    };
    let (Some(at), Some(counts)) = (floor.get(after), series.get(after - 1..=after)) else {
        return Outlived::Unclear;
    };
    let comes = |s: f64| per_minute / 60.0 * s;
    let expected = comes(from - first.0);
    let lived = at.1 - first.1 - comes(at.0 - from);
    if expected > 0.0 && lived >= LIVED * expected {
        Outlived::Yes
    } else if counts[1].1 < counts[0].1 {
        Outlived::No
    } else {
        Outlived::Unclear
    }
}

/// At each count the least of it and all later ones.
fn floor(series: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut floor = series.to_vec();
    let mut least = f64::INFINITY;
    for point in floor.iter_mut().rev() {
        least = least.min(point.1);
        point.1 = least;
    }
    floor
}

/// Slope of the least-squares line, and its standard error.
fn regression(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let n = points.len() as f64;
    if points.len() < 2 {
        return None;
    }
    let mean_t = points.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_v = points.iter().map(|p| p.1).sum::<f64>() / n;
    let tt: f64 = points.iter().map(|p| (p.0 - mean_t).powi(2)).sum();
    let tv: f64 = points.iter().map(|p| (p.0 - mean_t) * (p.1 - mean_v)).sum();
    if tt <= 0.0 {
        return None;
    }
    let slope = tv / tt;
    let left: f64 = points.iter().map(|p| (p.1 - mean_v - slope * (p.0 - mean_t)).powi(2)).sum();
    Some((slope, (left / (n - 2.0).max(1.0) / tt).sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(n: usize, value: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        (0..n).map(|i| (i as f64 * 10.0, value(i as f64))).collect()
    }

    /// Deterministic noise, 0 to 1.
    fn noise(i: f64) -> f64 {
        (i * 12.9898).sin().abs() * 43.758 % 1.0
    }

    #[test]
    fn steady_growth_is_a_leak() {
        let r = rise(&series(8, |i| 1000.0 + i * 10.0), 1.0).unwrap();
        assert!(r.leak && r.confidence > 0.9);
        assert!((r.per_minute - 60.0).abs() < 1e-6 && r.steps == (7, 7));
        assert!(rise(&series(8, |i| 1000.0 + i * 10.0), 100.0).is_none(), "below the floor");
    }

    #[test]
    fn garbage_on_top_hides_no_growth() {
        let r = rise(&series(20, |i| 1000.0 + i * 100.0 + 90.0 * noise(i)), 1.0).unwrap();
        assert!(r.leak && (500.0..700.0).contains(&r.per_minute));
    }

    #[test]
    fn what_is_healthy_is_none() {
        let flat = series(40, |_| 5.0);
        let bursts = series(40, |i| 1000.0 + 500.0 * noise(i));
        let plateau = series(40, |i| (i * 100.0).min(1500.0));
        let slowing = series(40, |i| 1000.0 * (1.0 - (-i / 8.0).exp()));
        let step = series(40, |i| if i < 20.0 { 100.0 } else { 900.0 });
        let falling = series(40, |i| 1000.0 - i);
        for s in [flat, bursts, plateau, slowing, step, falling] {
            for n in 1..=s.len() {
                let found = rise(&s[..n], 1.0).filter(|r| r.leak);
                let filling = n <= 17 && s[1].1 > s[0].1;
                assert!(found.is_none() || filling, "{n} {found:?}");
            }
            assert_eq!(rise(&s, 1.0), None);
        }
    }

    /// Censuses every 10 s, the last at `end`, of something that grows by 1 a
    /// second, and how the latest full collection of those every `tooth` seconds,
    /// the first at `phase`, judges it.
    fn collected(
        tooth: usize,
        phase: usize,
        end: usize,
        count: impl Fn(usize, usize) -> f64,
    ) -> Option<Outlived> {
        let last = |t: usize| (t >= phase).then(|| t - (t - phase) % tooth);
        let points: Vec<(f64, f64)> = (0..=end / 10)
            .map(|i| 10 * i)
            .map(|t| (t as f64, 1000.0 + count(t, last(t).unwrap_or(0))))
            .collect();
        let found = rise(&points, 1.0).filter(|r| r.leak)?;
        let at = last(end / 10 * 10).filter(|at| *at > 0).map(|at| (at - 1) / 10 * 10);
        Some(at.map_or(Outlived::Unclear, |from| {
            outlived(&points, (from as f64, (from + 10) as f64), found.per_minute)
        }))
    }

    #[test]
    fn garbage_that_waits_is_no_growth_that_outlives_a_collection() {
        let (mut waiting, mut proven) = (0, 0);
        // Collections that come faster than counts beat with them.
        for tooth in 10..400 {
            for phase in (0..tooth).step_by(7) {
                for end in [60, 120, 250, 600] {
                    // Since the latest collection.
                    let garbage = collected(tooth, phase, end, |t, at| (t - at) as f64);
                    assert_ne!(garbage, Some(Outlived::Yes), "{tooth} {phase} {end}");
                    waiting += usize::from(garbage.is_some());
                    // A leak as well, and as much garbage as it leaks.
                    let kept = collected(tooth, phase, end, |t, _| t as f64);
                    assert_ne!(kept, Some(Outlived::No), "{tooth} {phase} {end}");
                    proven += usize::from(kept == Some(Outlived::Yes));
                }
            }
        }
        assert!(waiting > 1000 && proven > 1000, "{waiting} {proven}");
    }

    #[test]
    fn growth_that_began_after_a_collection_is_not_its_to_judge() {
        let late = series(20, |i| 1000.0 + 10.0 * (i - 3.0).max(0.0));
        assert_eq!(outlived(&late, (10.0, 20.0), 60.0), Outlived::Unclear);
        assert_eq!(outlived(&late, (0.0, 10.0), 60.0), Outlived::Unclear);
        assert_eq!(outlived(&late, (900.0, 910.0), 60.0), Outlived::Unclear);
        assert_eq!(outlived(&[], (0.0, 10.0), 60.0), Outlived::Unclear);
    }

    #[test]
    fn too_little_is_not_judged() {
        assert_eq!(rise(&[], 0.0), None);
        assert_eq!(rise(&series(4, |i| i), 0.0), None);
        assert_eq!(rise(&[(1.0, 1.0); 9], 0.0), None);
        assert!(!rise(&series(5, |i| i), 0.0).unwrap().leak);
    }
}
