//! When the garbage collector of a CPython process last went over everything,
//! told by its counters at each census.

/// The oldest of the collector's generations: a collection of it is a full one.
const OLDEST: usize = 2;

#[derive(Clone, Copy, Debug, Default)]
pub struct Collector {
    /// Full collections so far; `None` while it runs by itself no more, and where
    /// they are not known.
    full: Option<u64>,
    /// When the latest census was taken, ns, and `full` then.
    census: Option<(u64, Option<u64>)>,
    between: Option<(u64, u64)>,
}

impl Collector {
    /// `generations` as in [`Item::Collections`](crate::stream::Item::Collections).
    pub fn looked_at(&mut self, generations: [u64; 3], enabled: bool) {
        self.full = enabled.then_some(generations[OLDEST]);
    }

    /// One was taken right after the collector was looked at.
    pub fn census(&mut self, t_ns: u64) {
        if let Some((before_ns, Some(before))) = self.census
            && self.full.is_some_and(|full| full > before)
        {
            self.between = Some((before_ns, t_ns));
        }
        self.census = Some((t_ns, self.full));
    }

    /// Whether garbage may wait for it.
    pub fn is_awaited(&self) -> bool {
        self.full.is_some()
    }

    /// The censuses, by their time in ns, between which the latest full
    /// collection ran.
    pub fn latest(&self) -> Option<(u64, u64)> {
        self.between
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_collections_lie_between_censuses() {
        let mut c = Collector::default();
        c.census(1);
        assert!(!c.is_awaited(), "its counters are not known");
        for (t, full, expected) in
            [(10, 3, None), (20, 3, None), (30, 5, Some((20, 30))), (40, 5, Some((20, 30)))]
        {
            c.looked_at([90, 9, full], true);
            c.census(t);
            assert_eq!((c.is_awaited(), c.latest()), (true, expected));
        }
        c.looked_at([90, 9, 6], false);
        assert!(!c.is_awaited(), "it is switched off");
        c.census(50);
        c.looked_at([90, 9, 6], true);
        c.census(60);
        assert_eq!(c.latest(), Some((20, 30)));
    }
}
