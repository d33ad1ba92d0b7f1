//! Durations in a histogram of about 1 KiB.

use hdrhistogram::Histogram;

/// Longest duration told apart, ms: 30 days.
const LONGEST_MS: u64 = 30 * 86_400_000;

/// Lifetimes or ages with one significant digit; empty ones cost nothing.
#[derive(Clone, Debug, Default)]
pub struct Lifetimes(Option<Box<Histogram<u32>>>);

impl Lifetimes {
    pub fn record(&mut self, ns: u64) {
        if self.0.is_none() {
            self.0 = Histogram::new_with_bounds(1, LONGEST_MS, 1).ok().map(Box::new);
        }
        if let Some(h) = &mut self.0 {
            h.saturating_record((ns / 1_000_000).clamp(1, LONGEST_MS));
        }
    }

    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, |h| h.len())
    }

    /// ns; `None` when nothing was recorded.
    pub fn quantile_ns(&self, q: f64) -> Option<u64> {
        let h = self.0.as_ref().filter(|h| !h.is_empty())?;
        Some(h.value_at_quantile(q) * 1_000_000)
    }

    /// 5th, 50th and 95th percentile, seconds.
    pub fn summary_s(&self) -> Option<[f64; 3]> {
        let s = |q| Some(self.quantile_ns(q)? as f64 / 1e9);
        Some([s(0.05)?, s(0.5)?, s(0.95)?])
    }
}
