//! Do objects still die? From counts of allocations and frees, where a series
//! has them.
//!
//! A *stretch* lasts from one time that objects die to the next: a free, or a
//! sweep of the collector. What holds objects for a while allocates about as
//! many in each stretch, whatever the load. A site that has turned its objects
//! over and now allocates as many again as it held, and several times what it
//! ever did within a stretch, keeps them. No warm-up, daily course or rising
//! load does that. Whether objects die is judged by the rule of succession, as
//! Scalene does (Berger, Stern & Altmayer Pizzorno 2023, OSDI, section 3.4).

/// Share of what was allocated in a stretch that, once freed, ends it.
const DIES: f64 = 0.05;
/// Stretches that show that objects turn over.
const TURNS: u16 = 10;
/// How far a stretch has to exceed all before it.
const BEYOND: f64 = 3.0;

#[derive(Clone, Copy, Debug, Default)]
pub struct Turnover {
    allocs: f64,
    frees: f64,
    /// Objects allocated and freed in this stretch, and alive when it began.
    allocated: f32,
    freed: f32,
    held: f32,
    /// Most that were allocated in an earlier stretch, and how many there were.
    most: f32,
    turns: u16,
    /// The first objects of this life are dead; until then none can be.
    settled: bool,
    /// s without counts since the last ones.
    waited_s: f32,
}

impl Turnover {
    pub fn new(allocs: f64, frees: f64) -> Self {
        Self { allocs, frees, held: (allocs - frees) as f32, ..Self::default() }
    }

    /// The process began anew: what its objects do is still known.
    pub fn restart(&mut self, allocs: f64, frees: f64) {
        *self = Self { most: self.most, turns: self.turns, ..Self::new(allocs, frees) };
    }

    pub fn fell(&self, allocs: f64) -> bool {
        allocs < self.allocs
    }

    /// Counts since the process began, `passed_s` after the last value; gives
    /// allocations per second, NaN when unknown.
    pub fn put(&mut self, allocs: f64, frees: f64, passed_s: f64) -> f64 {
        let passed = f64::from(self.waited_s) + passed_s;
        if !allocs.is_finite() || !frees.is_finite() || passed <= 0.0 {
            self.waited_s = passed as f32;
            return f64::NAN;
        }
        let (born, died) = ((allocs - self.allocs).max(0.0), (frees - self.frees).max(0.0));
        (self.allocs, self.frees, self.waited_s) = (allocs, frees, 0.0);
        self.allocated += born as f32;
        self.freed += died as f32;
        if f64::from(self.freed) > DIES * f64::from(self.allocated) {
            if std::mem::replace(&mut self.settled, true) {
                self.most = self.most.max(self.allocated);
            }
            self.turns = self.turns.saturating_add(1);
            (self.allocated, self.freed) = (0.0, 0.0);
            self.held = (allocs - frees) as f32;
        }
        born / passed
    }

    /// Objects allocated and freed since they no longer die.
    pub fn keeps(&self) -> Option<[f32; 2]> {
        let (allocated, freed) = (f64::from(self.allocated), f64::from(self.freed));
        let stays = 1.0 - (freed + 1.0) / (allocated - freed + 2.0);
        let usual = (BEYOND * f64::from(self.most)).max(f64::from(self.held));
        (self.turns >= TURNS && allocated > usual && stays >= 1.0 - DIES)
            .then_some([self.allocated, self.freed])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Objects per 10 s, freed after as many steps; from step 60 on `share` of
    /// them is.
    fn after(steps: usize, lifetime: usize, share: f64, load: impl Fn(usize) -> f64) -> Turnover {
        let born: Vec<f64> = (0..steps).map(load).collect();
        let (mut allocs, mut frees) = (0.0, 0.0);
        let mut t = Turnover::new(0.0, 0.0);
        for i in 0..steps {
            allocs += born[i];
            if let Some(b) = i.checked_sub(lifetime) {
                frees += born[b] * if b < 60 { 1.0 } else { share };
            }
            t.put(allocs, frees, 10.0);
        }
        t
    }

    #[test]
    fn objects_that_no_longer_die_are_kept() {
        assert!(after(80, 3, 0.0, |_| 500.0).keeps().is_some());
        assert!(after(62, 3, 0.0, |_| 500.0).keeps().is_none(), "those before still die");
    }

    #[test]
    fn a_rising_load_and_a_cache_that_fills_keep_nothing() {
        let rising = |i: usize| 500.0 * (1.0 + i as f64 / 30.0);
        assert!((1..200).all(|n| after(n, 6, 1.0, rising).keeps().is_none()));
        assert!((1..50).all(|n| after(n, 50, 1.0, |_| 500.0).keeps().is_none()));
    }

    #[test]
    fn counts_that_are_missing_or_fall_are_bridged() {
        let mut t = after(80, 3, 1.0, |_| 500.0);
        assert!(t.put(f64::NAN, f64::NAN, 10.0).is_nan());
        assert!((t.put(t.allocs + 1000.0, t.frees, 10.0) - 50.0).abs() < 1e-9);
        assert!(t.fell(5.0));
        t.restart(5.0, 0.0);
        assert!(t.keeps().is_none() && t.turns >= TURNS);
    }
}
