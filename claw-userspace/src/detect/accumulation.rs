//! Does a group of objects or goroutines accumulate?
//!
//! The evidence is age, not size: a *survivor* is alive after its peers would
//! be dead (and, for heap objects, after a whole GC cycle has looked at it). A
//! leak is a steady stream of survivors none of which dies later. A cache that
//! evicts lets proven survivors die; one that fills, or anything made at the
//! start, has its survivors at the beginning of the window; a burst has them
//! in one place. What died of the time before watching is set off against the
//! growth, which cancels a cache in its plateau.

/// One proven survivor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Survivor {
    /// Time of birth within the window, 0 to 1.
    pub at: f64,
    /// Bytes it stands for (heap), 1 (goroutines).
    pub amount: f64,
    /// Objects it stands for.
    pub objects: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// Length of the window in which whoever was born could prove to stay, s.
    pub window_s: f64,
    /// Time since watching began, s.
    pub watched_s: f64,
    /// Sorted by `at`.
    pub survivors: Vec<Survivor>,
    /// Survivors that died after all.
    pub proven_deaths: u64,
    /// Amount per second that died of what was there before watching began and
    /// had proven to stay, and its standard deviation.
    pub offset_per_s: f64,
    pub offset_sd_per_s: f64,
    /// Survivors that in truth died, their deaths being among the events that
    /// were lost: as many as are to be expected.
    pub missed: f64,
    /// It was found at the last look: chance alone must not withdraw it.
    pub standing: bool,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Fewest survivors for any finding, and for a leak.
    pub suspect: usize,
    pub leak: usize,
    /// Shortest time of watching for any finding, s.
    pub watched_s: f64,
    /// Least amount per minute, at the lower end of its interval.
    pub floor_per_minute: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Accumulation {
    /// Bytes (heap) or goroutines.
    pub per_minute: f64,
    pub interval95: [f64; 2],
    pub objects_per_minute: f64,
    /// 0 to 1.
    pub confidence: f64,
    pub survivors: usize,
    /// Share of survivors that died after all.
    pub died: f64,
    /// Parts of the window in which survivors were born, of how many.
    pub parts: (usize, usize),
    /// Strong enough to be called a leak.
    pub leak: bool,
}

/// Share of the survivors that may be missed deaths: for any finding, and for
/// one to be called a leak.
const MOST_MISSED: [f64; 2] = [0.5, 0.1];
/// Share of survivors that may die before it is a cache and no leak.
const MOST_DYING: f64 = 0.15;
/// 97.5 % point of the normal distribution.
const Z: f64 = 1.96;
/// How far, in standard deviations, a steady stream may look uneven before it
/// counts as one that began or stopped: at first, and for what was found.
const UNEVEN: [f64; 2] = [2.0, 4.0];
/// How far growth has to exceed what the deaths of the time before set off.
/// There are many sites and many looks, so 1.96 would often be chance.
const EXCESS: [f64; 2] = [4.0, 1.0];

/// `None`: nothing accumulates, or it cannot be told yet.
pub fn judge(e: &Evidence, limits: &Limits) -> Option<Accumulation> {
    let n = e.survivors.len();
    if n < limits.suspect || e.watched_s < limits.watched_s || e.window_s <= 0.0 {
        return None;
    }
    let died = e.proven_deaths as f64 / (e.proven_deaths as f64 + n as f64);
    let missed = e.missed / n as f64;
    if died >= MOST_DYING || missed >= MOST_MISSED[0] {
        return None;
    }
    let standing = usize::from(e.standing);
    let parts = spread(&e.survivors, e.standing)?;

    let sum: f64 = e.survivors.iter().map(|s| s.amount).sum();
    let squares: f64 = e.survivors.iter().map(|s| s.amount * s.amount).sum();
    let per_minute = |amount: f64| amount / e.window_s * 60.0;
    // Compound Poisson: as many equal events as carry the same variance.
    let events = sum * sum / squares.max(f64::MIN_POSITIVE);
    let growth = per_minute(sum) - e.offset_per_s * 60.0;
    // Limits of a difference from those of its parts (MOVER; Zou & Donner
    // 2008, Statistics in Medicine 27:1693).
    let limits_at = |z: f64| {
        let (low, high) = poisson_interval(events, z);
        let offset = z * e.offset_sd_per_s * 60.0;
        let below = per_minute(sum) * (1.0 - low / events);
        let above = per_minute(sum) * (high / events - 1.0);
        [growth - below.hypot(offset), growth + above.hypot(offset)]
    };
    let interval95 = limits_at(Z);
    let surely = if e.standing { growth } else { interval95[0] };
    let set_off = e.offset_per_s > 0.0 && limits_at(EXCESS[standing])[0] <= 0.0;
    if surely <= limits.floor_per_minute || set_off {
        return None;
    }
    let objects: f64 = e.survivors.iter().map(|s| s.objects).sum();
    // How far the survivors are beyond the least number, and how few died.
    let confidence =
        0.5 + 0.49 * (1.0 - (-(n as f64) / 8.0).exp()) * (1.0 - died / MOST_DYING).sqrt();
    Some(Accumulation {
        per_minute: growth,
        interval95,
        objects_per_minute: per_minute(objects) * (growth / per_minute(sum)),
        confidence,
        survivors: n,
        died,
        parts,
        leak: n >= limits.leak && confidence >= 0.8 && missed < MOST_MISSED[1],
    })
}

/// Are the survivors spread over the window as a steady stream is, give or take
/// chance? Gives in how many of how many parts some were born.
fn spread(survivors: &[Survivor], standing: bool) -> Option<(usize, usize)> {
    let uneven = UNEVEN[usize::from(standing)];
    let n = survivors.len() as f64;
    // The mean of n uniform times has a standard deviation of 1/√(12n).
    let mean = survivors.iter().map(|s| s.at).sum::<f64>() / n;
    if mean < 0.5 - uneven / (12.0 * n).sqrt() {
        return None;
    }
    let parts = if n >= 24.0 { 6 } else { 4 };
    let mut counts = vec![0usize; parts];
    for s in survivors {
        counts[((s.at * parts as f64) as usize).min(parts - 1)] += 1;
    }
    let hit = counts.iter().filter(|c| **c > 0).count();
    let expected = n / parts as f64;
    let newest = counts.last().copied().unwrap_or(0);
    let too_few = (newest as f64) < expected - uneven * expected.sqrt();
    let goes_on = newest > 0 || standing;
    (hit + 1 >= parts && goes_on && !too_few).then_some((hit, parts))
}

/// Interval of a Poisson mean after `n` events, `z` standard deviations to each
/// side (Byar's approximation to the exact one; Breslow & Day 1987, eq. 2.13).
fn poisson_interval(n: f64, z: f64) -> (f64, f64) {
    let cube = |m: f64, z: f64| m * (1.0 - 1.0 / (9.0 * m) + z / (3.0 * m.sqrt())).powi(3);
    (cube(n.max(1.0), -z).max(0.0), cube(n + 1.0, z))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { suspect: 5, leak: 8, watched_s: 20.0, floor_per_minute: 0.0 };

    fn evidence(at: impl IntoIterator<Item = f64>) -> Evidence {
        let survivors =
            at.into_iter().map(|at| Survivor { at, amount: 100.0, objects: 1.0 }).collect();
        Evidence {
            window_s: 60.0,
            watched_s: 80.0,
            survivors,
            proven_deaths: 0,
            offset_per_s: 0.0,
            offset_sd_per_s: 0.0,
            missed: 0.0,
            standing: false,
        }
    }

    fn steady(n: usize) -> Vec<f64> {
        (0..n).map(|i| (i as f64 + 0.5) / n as f64).collect()
    }

    #[test]
    fn steady_stream_is_a_leak() {
        let a = judge(&evidence(steady(20)), &LIMITS).unwrap();
        assert!(a.leak && a.confidence > 0.9);
        assert!((a.per_minute - 2000.0).abs() < 1e-6);
        assert!(a.interval95[0] > 1100.0 && a.interval95[1] < 3200.0);
    }

    #[test]
    fn what_was_made_at_the_start_is_none() {
        assert_eq!(judge(&evidence(steady(20).iter().map(|t| t * 0.3)), &LIMITS), None);
        // Filling ever more slowly.
        assert_eq!(judge(&evidence(steady(40).iter().map(|t| t * t * t)), &LIMITS), None);
    }

    #[test]
    fn burst_is_none() {
        assert_eq!(judge(&evidence(steady(30).iter().map(|t| 0.8 + t * 0.1)), &LIMITS), None);
    }

    #[test]
    fn cache_that_evicts_is_none() {
        let mut e = evidence(steady(30));
        e.proven_deaths = 6;
        assert_eq!(judge(&e, &LIMITS), None);
        e.proven_deaths = 2;
        assert!(judge(&e, &LIMITS).is_some());
    }

    #[test]
    fn plateau_is_set_off() {
        let mut e = evidence(steady(30));
        e.offset_per_s = 50.0;
        assert_eq!(judge(&e, &LIMITS), None);
    }

    #[test]
    fn growth_that_may_be_chance_is_none_until_it_stood_once() {
        let mut e = evidence(steady(30));
        (e.offset_per_s, e.offset_sd_per_s) = (25.0, 5.0);
        assert_eq!(judge(&e, &LIMITS), None, "50 ± 10 against 25 ± 5");
        e.standing = true;
        let a = judge(&e, &LIMITS).unwrap();
        assert!((a.per_minute - 1500.0).abs() < 1e-6);
        assert!(a.interval95[0] < 500.0 && a.interval95[1] > 2500.0);
    }

    #[test]
    fn missed_deaths_make_a_leak_a_suspect_and_then_nothing() {
        let mut e = evidence(steady(30));
        e.missed = 1.0;
        assert!(judge(&e, &LIMITS).unwrap().leak);
        e.missed = 5.0;
        assert!(!judge(&e, &LIMITS).unwrap().leak);
        e.missed = 15.0;
        assert_eq!(judge(&e, &LIMITS), None);
    }

    #[test]
    fn unevenness_of_chance_does_not_withdraw_a_finding() {
        let mut e = evidence(steady(30).iter().map(|t| t.powf(1.8)));
        assert_eq!(judge(&e, &LIMITS), None);
        e.standing = true;
        assert!(judge(&e, &LIMITS).is_some());
        let mut stopped = evidence(steady(60).iter().map(|t| t * 0.5));
        stopped.standing = true;
        assert_eq!(judge(&stopped, &LIMITS), None);
    }

    #[test]
    fn too_little_is_not_judged() {
        assert_eq!(judge(&evidence(steady(4)), &LIMITS), None);
        let few = judge(&evidence(steady(6)), &LIMITS).unwrap();
        assert!(!few.leak);
        let mut early = evidence(steady(30));
        early.watched_s = 10.0;
        assert_eq!(judge(&early, &LIMITS), None);
    }

    #[test]
    fn poisson_interval_matches_the_tables() {
        // Exact: n=10 gives 4.80 to 18.39.
        let (low, high) = poisson_interval(10.0, Z);
        assert!((low - 4.80).abs() < 0.05 && (high - 18.39).abs() < 0.05);
    }
}
