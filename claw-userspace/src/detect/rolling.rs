//! A tenant's own ordinary memory coefficient: what it had over the last day
//! and the last two, hour by hour, so that a run goes on where the last ended.
//!
//! An hour keeps a sum of logarithms: their mean is the geometric one, which an
//! idle minute (all memory, no work) does not run away with.

use std::collections::BTreeMap;

/// Hours of the shorter and of the longer view; older ones are forgotten.
pub const DAY_H: u64 = 24;
pub const KEPT_H: u64 = 48;
/// Time that has to be known before there is something to compare with, s.
pub const SETTLED_S: f64 = 120.0;

/// One hour of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hour {
    /// Sum of ln(coefficient) · seconds.
    pub log_sum: f64,
    /// Time that it was looked at, s.
    pub seconds: f64,
}

impl Hour {
    /// Whether it can have come from [`Rolling::learn`].
    pub fn is_sound(&self) -> bool {
        self.log_sum.is_finite() && self.seconds.is_finite() && self.seconds > 0.0
    }
}

/// Hours since the Unix epoch and what was seen in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rolling(BTreeMap<u64, Hour>);

impl Rolling {
    /// Add a time of `seconds` with this coefficient; others than positive
    /// ones are no coefficients.
    pub fn learn(&mut self, hour: u64, coefficient: f64, seconds: f64) {
        if !(coefficient.is_finite() && coefficient > 0.0 && seconds > 0.0) {
            return;
        }
        let h = self.0.entry(hour).or_default();
        h.log_sum += coefficient.ln() * seconds;
        h.seconds += seconds;
        self.0.retain(|h, _| hour.saturating_sub(*h) < KEPT_H);
    }

    /// An hour from a store.
    pub fn put(&mut self, hour: u64, seen: Hour) {
        self.0.insert(hour, seen);
    }

    pub fn at(&self, hour: u64) -> Option<Hour> {
        self.0.get(&hour).copied()
    }

    /// What is ordinary at `hour`: the mean of the last day or of the last two,
    /// whichever is lower, so that what grew since yesterday still shows.
    /// `None` until something is known.
    pub fn ordinary(&self, hour: u64) -> Option<f64> {
        let mean = |hours: u64| {
            let recent = self.0.iter().filter(|(h, _)| hour.saturating_sub(**h) < hours);
            let (sum, seconds) =
                recent.fold((0.0, 0.0), |(sum, s), (_, h)| (sum + h.log_sum, s + h.seconds));
            (seconds >= SETTLED_S).then(|| (sum / seconds).exp())
        };
        match (mean(DAY_H), mean(KEPT_H)) {
            (Some(day), Some(two)) => Some(day.min(two)),
            (day, two) => day.or(two),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_days_are_kept_and_the_lower_mean_counts() {
        let mut r = Rolling::default();
        assert_eq!(r.ordinary(100), None);
        (100..124).for_each(|h| r.learn(h, 10.0, 3600.0));
        (124..148).for_each(|h| r.learn(h, 40.0, 3600.0));
        // The day says 40, both days √(10·40) = 20.
        assert!((r.ordinary(147).unwrap() - 20.0).abs() < 1e-9);
        r.learn(171, 40.0, 3600.0);
        assert_eq!(r.at(123), None);
        assert!((r.ordinary(171).unwrap() - 40.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_coefficient_is_not_learned() {
        let mut r = Rolling::default();
        for c in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            r.learn(1, c, 600.0);
        }
        r.learn(1, 5.0, 60.0);
        assert_eq!(r.ordinary(1), None, "a minute is too little");
        r.learn(1, 5.0, 60.0);
        assert!((r.ordinary(1).unwrap() - 5.0).abs() < 1e-9);
    }
}
