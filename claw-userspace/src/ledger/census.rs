//! The censuses of one CPython process: a short history of each type, of what
//! lies outside the pools, and of the containers that grow.

use std::collections::BTreeMap;

use crate::stream::{CensusItem, Grown};

/// Censuses remembered; older ones are thinned out.
const MOST_POINTS: usize = 64;
/// Types and containers whose history is kept.
const MOST_SERIES: usize = 4096;

/// `(time, quantity)`, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<(u64, f64)>);

impl Series {
    pub(super) fn add(&mut self, t_ns: u64, value: f64) {
        if self.0.last().is_some_and(|(t, _)| *t >= t_ns) {
            return;
        }
        if self.0.len() >= MOST_POINTS {
            // The oldest half at half the density: the past needs less detail.
            let mut i = 0;
            self.0.retain(|_| {
                i += 1;
                i > MOST_POINTS / 2 || i % 2 == 1
            });
        }
        self.0.push((t_ns, value));
    }

    /// In seconds, for `detect`.
    pub fn points(&self) -> Vec<(f64, f64)> {
        self.0.iter().map(|(t, v)| (*t as f64 / 1e9, *v)).collect()
    }

    pub fn last(&self) -> Option<(u64, f64)> {
        self.0.last().copied()
    }

    pub fn first_ns(&self) -> Option<u64> {
        self.0.first().map(|(t, _)| *t)
    }
}

#[derive(Clone, Debug, Default)]
pub struct TypeHistory {
    pub objects: Series,
    pub bytes: Series,
}

/// A container that grew.
#[derive(Clone, Debug)]
pub struct Held {
    pub grown: Grown,
    pub elements: Series,
    /// Of the elements at the first time it was seen to grow.
    from: (u64, u64),
    last_ns: u64,
}

impl Held {
    /// Elements per minute since it began to be seen growing; `None` when it
    /// no longer grows.
    pub fn per_minute(&self, census_ns: u64) -> Option<f64> {
        let s = self.last_ns.checked_sub(self.from.0).filter(|s| *s > 0)? as f64 / 1e9;
        let by = self.grown.elements.checked_sub(self.from.1)?;
        (self.last_ns == census_ns).then_some(by as f64 / s * 60.0)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Censuses {
    pub taken: u64,
    pub last: Option<CensusItem>,
    pub types: BTreeMap<String, TypeHistory>,
    /// Bytes in use outside the pools.
    pub outside: Series,
    pub held: BTreeMap<String, Held>,
    /// Types and containers that found no room.
    pub forgotten: u64,
}

impl Censuses {
    pub fn add(&mut self, c: CensusItem) {
        let before = self.last.as_ref().map_or(c.t_ns, |l| l.t_ns);
        self.taken += 1;
        self.outside.add(c.t_ns, c.outside_bytes as f64);
        for t in &c.types {
            if self.types.len() >= MOST_SERIES && !self.types.contains_key(&t.name) {
                self.forgotten += 1;
                continue;
            }
            let h = self.types.entry(t.name.clone()).or_default();
            h.objects.add(c.t_ns, t.objects as f64);
            h.bytes.add(c.t_ns, t.bytes as f64);
        }
        for g in &c.grown {
            if self.held.len() >= MOST_SERIES && !self.held.contains_key(&g.place) {
                self.forgotten += 1;
                continue;
            }
            let from = (before, g.elements.saturating_sub(g.by));
            let h = self.held.entry(g.place.clone()).or_insert_with(|| Held {
                grown: g.clone(),
                elements: Series::default(),
                from,
                last_ns: c.t_ns,
            });
            h.elements.add(c.t_ns, g.elements as f64);
            h.grown = g.clone();
            h.last_ns = c.t_ns;
        }
        self.last = Some(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_in_order() {
        let mut s = Series::default();
        for t in 0..10_000u64 {
            s.add(t, t as f64);
            s.add(t, 0.0);
        }
        assert!(s.0.len() <= MOST_POINTS && s.0.is_sorted() && s.first_ns() == Some(0));
        assert_eq!(s.last(), Some((9_999, 9_999.0)));
    }
}
