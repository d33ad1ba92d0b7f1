//! Growth that was found: what is said of it, and when it is over.

use super::{Fit, RINGS, Why, ring::Bin};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Grows, but may be something else.
    Suspect,
    Leak,
}

/// A verdict that is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// s since the series began.
    pub at_s: u32,
    pub state: State,
}

/// One window that passed every gate.
pub struct Hit {
    pub window: u8,
    pub from_s: u32,
    pub now_s: u32,
    pub base: f64,
    pub p: f64,
    pub why: Option<Why>,
    /// Bytes per second, with its 95 % interval.
    pub slope: [f64; 3],
}

fn ends([_, low, high]: [f64; 3]) -> [f32; 2] {
    [low as f32, high as f32]
}

/// Times at which the probability of chance became ten times smaller.
const RECORDS: usize = 4;

#[derive(Clone, Debug)]
pub struct Standing {
    pub state: State,
    pub why: Option<Why>,
    /// When it began and when it was found, s since the series began.
    pub since_s: u32,
    pub at_s: u32,
    base: f32,
    pub start: f32,
    pub now: f32,
    /// Bytes per second, and its 95 % interval.
    pub slope: f64,
    pub interval: [f32; 2],
    /// Of such growth within a day without a leak; the least that was seen.
    pub p: f32,
    pub window: u8,
    pub with_baseline: bool,
    /// Restarts since it was found.
    pub restarts: u16,
    records: [(u32, f32); RECORDS],
    recorded: u8,
}

impl Standing {
    pub fn new(f: &Fit, hit: &Hit, with_baseline: bool) -> Self {
        let mut s = Self {
            state: if hit.why.is_some() { State::Suspect } else { State::Leak },
            why: hit.why,
            since_s: hit.from_s,
            at_s: hit.now_s,
            base: hit.base as f32,
            start: f.start as f32,
            now: (f.start + f.growth()) as f32,
            slope: hit.slope[0],
            interval: ends(hit.slope),
            p: hit.p as f32,
            window: hit.window,
            with_baseline,
            restarts: 0,
            records: [(0, 1.0); RECORDS],
            recorded: 0,
        };
        if hit.why.is_none() {
            s.record(hit);
        }
        s
    }

    pub fn again(&mut self, f: &Fit, hit: &Hit) -> Option<Change> {
        self.now = self.now.max((f.start + f.growth()) as f32);
        if hit.window >= self.window || hit.p < f64::from(self.p) {
            (self.slope, self.interval) = (hit.slope[0], ends(hit.slope));
            self.window = hit.window;
            if self.restarts == 0 {
                self.since_s = self.since_s.min(hit.from_s);
            }
        }
        self.p = self.p.min(hit.p as f32);
        if hit.why.is_some() {
            return None;
        }
        self.record(hit);
        let news = self.state == State::Suspect;
        (self.state, self.why) = (State::Leak, None);
        news.then_some(Change { at_s: hit.now_s, state: State::Leak })
    }

    fn record(&mut self, hit: &Hit) {
        let n = usize::from(self.recorded);
        let last = n.checked_sub(1).map_or(f32::MAX, |i| self.records[i].1);
        if n < RECORDS && (hit.p as f32) < last / 10.0 {
            self.records[n] = (hit.now_s, hit.p as f32);
            self.recorded += 1;
        }
    }

    /// When the probability of chance first was this small.
    pub fn since_p(&self, p: f64) -> Option<u32> {
        let records = &self.records[..usize::from(self.recorded)];
        records.iter().find(|(_, q)| f64::from(*q) <= p).map(|(at, _)| *at)
    }

    pub fn restarted(&mut self) {
        self.restarts = self.restarts.saturating_add(1);
    }

    /// Level that percentages refer to, bytes; fixed when it was found.
    pub fn base(&self) -> f64 {
        f64::from(self.base)
    }

    /// Bytes since it began.
    pub fn grew(&self) -> f64 {
        f64::from(self.now - self.start).max(0.0)
    }

    /// It stopped: this window is as long as the one it was found in, and at
    /// least half an hour, and does not grow any more.
    pub fn over(&self, w: usize, growth: f64, now_s: u32, n: usize) -> bool {
        let (width, _) = RINGS[w / 2];
        let span = f64::from(width) * n as f64;
        self.restarts == 0
            && w % 2 == 1
            && w >= usize::from(self.window.max(3))
            && f64::from(now_s - self.at_s) > span
            && growth < 0.25 * self.slope * span
    }

    pub fn fell_back(&self, low: f32) -> bool {
        self.restarts == 0 && f64::from(low) < f64::from(self.start) + 0.3 * self.grew()
    }
}

/// Median of the slopes between all pairs, and the interval of Sen (1968,
/// JASA 63:1379): slope, lower and upper end of 95 %, bytes per second.
pub fn robust_slope(bins: &[Bin], beta: f64) -> [f64; 3] {
    let level = |b: &Bin| {
        let by_load = if b.load.is_finite() { beta * f64::from(b.load) } else { 0.0 };
        f64::from(b.low) - by_load
    };
    let mut slopes = Vec::with_capacity(bins.len() * bins.len() / 2);
    for (i, a) in bins.iter().enumerate() {
        for b in &bins[i + 1..] {
            let passed = f64::from(b.at_s) - f64::from(a.at_s);
            if passed > 0.0 {
                slopes.push((level(b) - level(a)) / passed);
            }
        }
    }
    if slopes.is_empty() {
        return [0.0; 3];
    }
    slopes.sort_unstable_by(f64::total_cmp);
    let n = bins.len() as f64;
    let spread = 1.96 * (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt() / 2.0;
    let middle = (slopes.len() - 1) as f64 / 2.0;
    let at = |x: f64| slopes[(x.round().max(0.0) as usize).min(slopes.len() - 1)];
    [at(middle), at(middle - spread), at(middle + spread)]
}
