//! How often something is done that takes the agent's own time.

use std::time::Duration;

/// Time until the next time, from the beginning of one that took `took`: at
/// least `apart`, and as long as keeps it below this share of one CPU.
pub fn pause(apart: Duration, share: f64, took: Duration) -> Duration {
    apart.max(took.div_f64(share))
}

/// When it is due again, on the clock of `monotonic_ns`.
#[derive(Debug)]
pub struct Pace {
    apart: Duration,
    share: f64,
    next_ns: u64,
}

impl Pace {
    /// Due at once.
    pub fn new(apart: Duration, share: f64) -> Self {
        Self { apart, share, next_ns: 0 }
    }

    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns
    }

    /// Say how long what began at `began_ns` took.
    pub fn took(&mut self, began_ns: u64, ended_ns: u64) {
        let took = Duration::from_nanos(ended_ns.saturating_sub(began_ns));
        let pause = pause(self.apart, self.share, took).as_nanos();
        self.next_ns = began_ns.saturating_add(u64::try_from(pause).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_done_rarely() {
        let mut pace = Pace::new(Duration::from_secs(2), 0.005);
        assert!(pace.is_due(0));
        pace.took(1_000, 2_000);
        assert!(!pace.is_due(2_000_000_999) && pace.is_due(2_000_001_000));
        pace.took(0, 1_000_000_000);
        assert!(!pace.is_due(199_000_000_000) && pace.is_due(200_000_000_000));
        pace.took(u64::MAX - 1, u64::MAX);
        assert!(pace.is_due(u64::MAX));
    }
}
