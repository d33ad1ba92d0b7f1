//! Does one series grow for good? A state machine: values go in one by one, a
//! change of the verdict comes out; memory is bounded by [`Ring`]s.
//!
//! Each time a bin closes, its window and the third of it that is newest are
//! tested: a slope that noise, be it a random walk, would show less than once
//! in a hundred days; no step; not slowing down; beyond what the series itself
//! has been seen to fall within such a window (rises of that size come and go
//! there), or beyond what the baseline did. Growth since the beginning without
//! a baseline may be a warm-up: it counts only if it makes the process much
//! larger than a warm-up does, outlives one, or an earlier life of the process
//! did not grow so at the same age. Windows of a few bins, whose noise was
//! learned before, find what grows fast ([`brief`]).

mod brief;
mod fit;
mod gate;
mod lives;
mod notes;
mod profile;
mod ring;
mod standing;
#[cfg(test)]
mod tests;
mod turnover;

use std::sync::Arc;

pub use brief::Noise;
pub use fit::{Fit, fit, normal_tail, student_quantile, student_tail};
pub use gate::Why;
pub use notes::Notes;
pub use profile::{Learner, Profile};
pub use ring::{Bin, RINGS, Ring};
pub use standing::{Change, Standing, State};

use brief::{BRIEF, Brief};
use gate::{Gate, Judged};
use lives::{Life, Lives};
use profile::Rises;
use ring::{MOST, grew_to_the_end, quick_growth};
use turnover::Turnover;

use super::series::Point;

/// Two windows to each ring.
pub const WINDOWS: usize = 2 * RINGS.len();
/// Bins of the shorter window.
const SHORT: usize = 12;
/// Hits in a row before a verdict, by ring: what grows fast may be found fast.
const HITS: [u8; RINGS.len()] = [2, 3, 4, 4];
/// … without a baseline: what wanders slowly comes back within hours, and only
/// time tells it from a leak.
const HITS_ALONE: [u8; RINGS.len()] = [2, 3, 5, 5];
/// A fall to less than this share of the last hour's lowest value is a restart
/// when the uptime is not known.
const RESTART: f32 = 0.5;
/// Two-minute bins of about a quarter of an hour, longer than garbage lies.
const QUARTER: usize = 8;
/// First ring whose windows are longer than bursts last. Within the hour every
/// fall shows what comes and goes; over hours a level that falls at once says
/// nothing of how far a slope may come back.
const LONG_RING: usize = 2;
/// Longest time between two values that is a sampling interval, s.
const MOST_STEP_S: f64 = 3600.0;
/// Time constant of the smoothed load, s.
const LOAD_S: f64 = 30.0;

/// What of the method is used; all of it, but for an ablation.
#[derive(Clone, Copy, Debug)]
pub struct Layers {
    pub envelope: bool,
    pub load: bool,
    pub bend: bool,
    pub step: bool,
    pub own_falls: bool,
    pub warm_up: bool,
    pub hits: bool,
}

impl Default for Layers {
    fn default() -> Self {
        Self {
            envelope: true,
            load: true,
            bend: true,
            step: true,
            own_falls: true,
            warm_up: true,
            hits: true,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Trend {
    rings: [Ring; RINGS.len()],
    /// Largest fall, and when learning largest rise, in each window, bytes.
    fell: [f32; WINDOWS],
    hits: [u8; WINDOWS],
    brief: [Brief; BRIEF],
    t0: f64,
    /// Time of the last value, s, NaN before the first, and its uptime.
    last_t: f64,
    last_uptime: f64,
    life: Life,
    lives: Lives,
    turnover: Option<Box<Turnover>>,
    load: f32,
    gc_seen: bool,
    is_old: bool,
    /// How far it is above the last hour's lowest value, as a ratio; 0 when it
    /// is not.
    high_since: f32,
    pub notes: Notes,
    standing: Option<Box<Standing>>,
    profile: Option<Arc<Profile>>,
    learning: Option<Box<Rises>>,
    layers: Layers,
}

impl Trend {
    pub fn new(profile: Option<Arc<Profile>>, layers: Layers) -> Self {
        Self {
            rings: Default::default(),
            fell: [0.0; WINDOWS],
            hits: [0; WINDOWS],
            brief: Default::default(),
            t0: 0.0,
            last_t: f64::NAN,
            last_uptime: f64::NAN,
            life: Life::new(0, f64::NAN),
            lives: Lives::default(),
            turnover: None,
            load: f32::NAN,
            gc_seen: false,
            is_old: false,
            high_since: 0.0,
            notes: Notes::default(),
            standing: None,
            profile,
            learning: None,
            layers,
        }
    }

    /// Take the next value; times must not go back. `scale` is the size of the
    /// process that the series is a part of, bytes, or 0.
    pub fn put(&mut self, p: &Point, scale: f64) -> Option<Change> {
        if self.last_t.is_nan() {
            self.t0 = p.t;
            self.is_old = p.old.is_finite();
            self.begin(p);
            return self.value(p, scale);
        }
        let younger = p.uptime + 1.0 < self.last_uptime;
        let again = younger || self.turnover.as_ref().is_some_and(|t| t.fell(p.allocs));
        if again || (!p.uptime.is_finite() && self.fell_away(p)) {
            self.restart(p);
        }
        self.value(p, scale)
    }

    fn begin(&mut self, p: &Point) {
        self.life = Life::new(self.since_t0(p.t), p.uptime);
    }

    fn restart(&mut self, p: &Point) {
        self.remember_life();
        self.begin(p);
        // Falls so far without uptime: this one is known to begin at nothing.
        self.life.uptime = self.life.uptime.max(0.0);
        for ring in &mut self.rings {
            ring.clear();
        }
        self.hits = [0; WINDOWS];
        self.brief.iter_mut().for_each(Brief::restart);
        self.notes.restarts = self.notes.restarts.saturating_add(1);
        self.high_since = 0.0;
        if let Some(t) = &mut self.turnover {
            t.restart(p.allocs, p.frees);
        }
        if let Some(s) = &mut self.standing {
            s.restarted();
        }
    }

    /// Its envelope by age, from the rings that hold hours of it.
    fn remember_life(&mut self) {
        if self.life.uptime.is_nan() {
            return;
        }
        for ring in &self.rings[LONG_RING..] {
            let mut bins = [Bin::default(); MOST];
            let n = ring.newest(MOST, &mut bins);
            self.lives.ended(bins[..n].iter().map(|b| (self.life.age(b.at_s), b.low)));
        }
    }

    /// Fell below half of what was the least for the last hour, or, after
    /// growth that went on to the end, for the last quarter of one: a leak so
    /// fast that the memory limit ends it within the hour.
    fn fell_away(&self, p: &Point) -> bool {
        let ring = &self.rings[1];
        if ring.count() < 5 || p.live > f64::from(self.life.level.max(0.0)) * 1.1 {
            return false;
        }
        let mut bins = [Bin::default(); MOST];
        let n = ring.newest(MOST, &mut bins);
        let bins = &bins[..n];
        let fell = |b: &[Bin]| {
            (p.live as f32) < b.iter().map(|b| b.low).fold(f32::MAX, f32::min) * RESTART
        };
        fell(bins) || (n >= SHORT && fell(&bins[n - QUARTER..]) && grew_to_the_end(bins))
    }

    fn since_t0(&self, t: f64) -> u32 {
        (t - self.t0).clamp(0.0, f64::from(u32::MAX)) as u32
    }

    fn value(&mut self, p: &Point, scale: f64) -> Option<Change> {
        let first = self.last_t.is_nan();
        let passed = if first { f64::MAX } else { p.t - self.last_t };
        (self.last_t, self.last_uptime) = (p.t, p.uptime);
        let rate = self.turn_over(p, passed);
        let load = if p.load.is_finite() { p.load } else { rate };
        if load.is_finite() {
            let share = 1.0 - (-passed / LOAD_S).exp();
            let old = if self.load.is_finite() { f64::from(self.load) } else { load };
            self.load = (old + (load - old) * share) as f32;
        }
        // Where collections are marked, what lies between them is garbage too.
        self.gc_seen |= p.gc;
        if self.gc_seen && !p.gc && self.layers.envelope {
            return None;
        }
        let at_s = self.since_t0(p.t);
        let step_s = if first { 0 } else { passed.clamp(0.0, MOST_STEP_S) as u32 };
        let value = if self.is_old && p.old.is_finite() { p.old } else { p.live };
        let load = if self.layers.load { self.load } else { f32::NAN };
        let bin = Bin { at_s, low: value as f32, load };
        let mut change = None;
        for (r, spec) in RINGS.into_iter().enumerate() {
            if self.rings[r].put(spec, bin, self.layers.envelope, step_s) {
                if r == 1 {
                    self.look_back();
                }
                change = change.or(self.evaluate_brief(r, at_s, scale));
                for newest in [SHORT, MOST] {
                    let c = self.evaluate(r, newest, at_s, scale);
                    change = change.or(c);
                }
            }
        }
        change
    }

    /// Allocations per second, the work of a series that tells of no other.
    fn turn_over(&mut self, p: &Point, passed_s: f64) -> f64 {
        if let Some(t) = &mut self.turnover {
            return t.put(p.allocs, p.frees, passed_s);
        }
        if p.allocs.is_finite() && p.frees.is_finite() {
            self.turnover = Some(Box::new(Turnover::new(p.allocs, p.frees)));
        }
        f64::NAN
    }

    /// Objects allocated and freed since they no longer die.
    pub fn keeps(&self) -> Option<[f32; 2]> {
        self.turnover.as_ref()?.keeps()
    }

    fn evaluate(&mut self, r: usize, newest: usize, now_s: u32, scale: f64) -> Option<Change> {
        let ring = &self.rings[r];
        if ring.count() < newest.min(SHORT + 1) {
            return None;
        }
        let mut bins = [Bin::default(); MOST];
        let n = ring.newest(newest, &mut bins);
        let bins = &mut bins[..n];
        let w = 2 * r + usize::from(newest != SHORT);
        // Most windows are flat or fall: cheaper to see than to fit.
        let quick = quick_growth(bins);
        let news = r >= LONG_RING && -quick > f64::from(self.fell[w]);
        if bins[0].load.is_nan() && quick < 0.01 * f64::from(bins[0].low) && !news {
            self.fall(w, -quick);
            self.miss(w, quick, now_s, n);
            return None;
        }
        let warm = self.take_warm_up(bins);
        // Within the hour the load wobbles, and memory follows as it will; over
        // the day it follows as it did in the baseline.
        let beta = self.profile.as_ref().and_then(|p| p.beta).filter(|_| r >= LONG_RING);
        let f = fit(bins, beta)?;
        if f.slope < 0.0 {
            if r < LONG_RING || gate::is_slope(&f) {
                self.fall(w, -f.growth());
            }
            self.miss(w, f.growth(), now_s, n);
            return None;
        }
        if let Some(rose) = &mut self.learning {
            if f.p() < 0.01 {
                rose.windows[w] = rose.windows[w].max(f.growth() as f32);
            }
            return None;
        }
        let healthy = self.profile.as_ref().map_or(0.0, |p| p.rose[w].max(p.fell[w]));
        let gate = Gate {
            window: w,
            // What the noise makes of the whole window is no growth.
            chance: if f.growth() < 2.0 * f.sigma { 1.0 } else { f.p() },
            fell: f64::from(self.fell[w]),
            healthy,
            ..self.gate(bins, scale, warm)
        };
        let mut notes = self.notes;
        let judged = gate.judge(&f, &mut notes);
        self.notes = notes;
        match judged {
            Judged::Nothing => {
                self.miss(w, f.growth(), now_s, n);
                None
            }
            Judged::Grows { p, base, why } => {
                let needed = if self.profile.is_some() { HITS[r] } else { HITS_ALONE[r] };
                self.hits[w] = (self.hits[w] + 1).min(needed);
                if self.layers.hits && self.hits[w] < needed {
                    return None;
                }
                let from_s = bins[0].at_s;
                let slope = standing::robust_slope(bins, f.beta);
                let window = w as u8;
                let hit = standing::Hit { window, from_s, now_s, base, p, why, slope };
                self.stand(&f, &hit)
            }
        }
    }

    /// Of these bins, all that the windows judge alike.
    fn gate(&self, bins: &[Bin], scale: f64, warm: f64) -> Gate<'_> {
        Gate {
            window: 0,
            from_s: bins[0].at_s,
            life: &self.life,
            lives: &self.lives,
            keeps: self.keeps().is_some(),
            loaded: !bins[0].load.is_nan(),
            scale,
            warm,
            chance: 1.0,
            fell: 0.0,
            healthy: 0.0,
            profile: self.profile.as_deref(),
            layers: self.layers,
        }
    }

    fn stand(&mut self, f: &Fit, hit: &standing::Hit) -> Option<Change> {
        match &mut self.standing {
            Some(s) => s.again(f, hit),
            None => {
                let s = Standing::new(f, hit, self.profile.is_some());
                let change = Change { at_s: s.at_s, state: s.state };
                self.standing = Some(Box::new(s));
                Some(change)
            }
        }
    }

    fn fall(&mut self, w: usize, by: f64) {
        self.fell[w] = self.fell[w].max(by as f32);
    }

    /// A window that does not (or no longer) grow.
    fn miss(&mut self, w: usize, growth: f64, now_s: u32, n: usize) {
        self.hits[w] = 0;
        let Some(s) = &self.standing else { return };
        if s.over(w, growth, now_s, n) {
            self.withdraw();
        }
    }

    /// It grew by as much and stopped or came back: no more than that is news.
    /// But a process warms up once in its life.
    fn withdraw(&mut self) {
        let Some(s) = self.standing.take() else { return };
        if s.why != Some(Why::WarmUp) {
            let grew = s.grew() as f32;
            for fell in &mut self.fell[usize::from(s.window)..] {
                *fell = fell.max(grew / gate::BEYOND as f32);
            }
        }
        self.notes.levelled = self.notes.levelled.saturating_add(1);
    }

    /// Take off what the warm-up of the baseline adds within the window; gives
    /// how much.
    fn take_warm_up(&self, bins: &mut [Bin]) -> f64 {
        let Some(p) = &self.profile else { return 0.0 };
        let (Some(first), Some(last)) = (bins.first(), bins.last()) else { return 0.0 };
        let at = |b: &Bin| p.warmed(self.life.age(b.at_s));
        let from = at(first);
        let added = at(last) - from;
        if added > 0.0 {
            for b in bins {
                b.low -= (at(b) - from) as f32;
            }
        }
        added
    }

    /// Once a two-minute bin: the level of this life, bursts, the daily cycle.
    fn look_back(&mut self) {
        let mut bins = [Bin::default(); MOST];
        let n = self.rings[1].newest(MOST, &mut bins);
        let Some(newest) = bins[..n].last().copied() else { return };
        let least = bins[..n].iter().map(|b| b.low).fold(f32::MAX, f32::min);
        // The level of this life: its lowest in the first minutes, then that
        // after ten, when the program itself has started.
        let age_s = newest.at_s.saturating_sub(self.life.began_s);
        let within = |r: std::ops::Range<u32>| r.contains(&age_s);
        if within(0..360) || within(720..1200) {
            self.life.level = self.life.level.min(newest.low);
            self.life.level_s = self.life.level_s.max(self.life.began_s);
        } else if within(600..720) {
            (self.life.level, self.life.level_s) = (newest.low, newest.at_s);
        }
        let above = newest.low / least.max(1.0);
        let high = self.high_since;
        if high == 0.0 {
            self.high_since = if above > 1.2 { above } else { 0.0 };
        } else if above < 1.0 + (high - 1.0) * 0.3 {
            self.notes.bursts = self.notes.bursts.saturating_add(1);
            self.notes.burst = self.notes.burst.max(high - 1.0);
            self.high_since = 0.0;
        } else {
            self.high_since = high.max(above);
        }
        if let Some(s) = &self.standing
            && s.fell_back(newest.low)
        {
            self.withdraw();
        }
        let n = self.rings[3].newest(MOST, &mut bins);
        if n == RINGS[3].1 {
            let (low, high) = bins[..n]
                .iter()
                .fold((f32::MAX, 0f32), |(low, high), b| (low.min(b.low), high.max(b.low)));
            let shift = (bins[n - 1].low - bins[0].low).abs();
            if shift < 0.3 * (high - low) {
                self.notes.daily = self.notes.daily.max((high - low) / low.max(1.0));
            }
        }
    }

    pub fn standing(&self) -> Option<&Standing> {
        self.standing.as_deref()
    }

    pub fn has_profile(&self) -> bool {
        self.profile.is_some()
    }

    /// Time of the first value, s.
    pub fn t0(&self) -> f64 {
        self.t0
    }

    /// Enough values were seen to say something.
    pub fn judged(&self) -> bool {
        self.rings.iter().any(|r| r.count() >= SHORT)
    }

    /// What this series takes, bytes.
    pub fn memory(&self) -> usize {
        let boxed = self.standing.as_ref().map_or(0, |s| size_of_val(&**s))
            + self.turnover.as_ref().map_or(0, |t| size_of_val(&**t));
        size_of::<Self>() + boxed + self.rings.iter().map(Ring::heap_bytes).sum::<usize>()
    }
}
