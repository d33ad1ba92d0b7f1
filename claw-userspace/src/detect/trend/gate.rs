//! What a significant slope has to pass before it is growth for good.

use super::{BRIEF, Fit, LONG_RING, Layers, Life, Lives, Notes, Profile, RINGS, WINDOWS};

/// False alarms that chance may make of a series in a day, all windows
/// together, if its noise were as assumed.
const CHANCE_PER_DAY: f64 = 0.01;
/// Least growth of the envelope within a window, as a share of the level, by
/// ring: what a leak that is worth finding within so short a time has grown by.
const LEAST: [f64; RINGS.len()] = [0.12, 0.12, 0.05, 0.03];
/// … and least rate, share of the level per second: 0.01 % per minute.
const FLOOR: f64 = 0.0001 / 60.0;
/// How far growth has to exceed what came and went before.
pub const BEYOND: f64 = 1.5;
/// … and what a whole healthy run is known to do.
const BEYOND_BASELINE: f64 = 1.35;
/// Growth of the last third to the one before, below which it slows down. A
/// line has 1, an exponential approach over its time constant 0.72.
const BEND: f64 = 0.6;
/// Least evenness of the rise ([`Fit::even`]).
const EVEN: f64 = 0.4;
/// Most of the growth that a few jumps may make ([`Fit::jumps`]).
const JUMPS: f64 = 0.5;
/// A warm-up is taken to add at most this share of the level.
const WARM_UP: f64 = 1.5;
/// … and to be over, or to slow down, by this age, s.
const WARM_UP_S: f64 = 43_200.0;
/// Least growth of the last third to the one before of what is no warm-up at
/// that age: an exponential approach over a third of its time constant has 0.9.
const STEADY: f64 = 0.9;
/// Most of the growth that an earlier life may have shown at the same age.
const ANEW: f64 = 0.5;
/// A daily cycle of a service whose load is not known, likewise.
const DAILY: f64 = 0.25;
const DAY_S: f64 = 86_400.0;

/// Rather than a step, a staircase or a spike.
pub fn is_slope(f: &Fit) -> bool {
    f.even >= EVEN && f.jumps <= JUMPS
}

/// Why growth may still be something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It began with the process.
    WarmUp,
    /// A day has not passed yet, and the load is not known.
    Daily,
    /// The load rose by as large a share.
    Load,
}

pub enum Judged {
    Nothing,
    Grows { p: f64, base: f64, why: Option<Why> },
}

pub struct Gate<'a> {
    pub window: usize,
    /// Start of the window.
    pub from_s: u32,
    pub life: &'a Life,
    pub lives: &'a Lives,
    /// What it allocates no longer dies, as it once did.
    pub keeps: bool,
    pub loaded: bool,
    pub scale: f64,
    /// What the baseline's warm-up added within the window, bytes.
    pub warm: f64,
    /// Probability of such a slope without growth.
    pub chance: f64,
    /// How far such a window fell before, and how far it rose or fell in the
    /// baseline, bytes.
    pub fell: f64,
    pub healthy: f64,
    pub profile: Option<&'a Profile>,
    pub layers: Layers,
}

impl Gate<'_> {
    pub fn judge(&self, f: &Fit, notes: &mut Notes) -> Judged {
        let growth = f.growth();
        let level = self.profile.map_or(f.start, |p| p.level);
        let base = level.max(self.scale * 0.01).max(1.0);
        let share = (growth / base) as f32;
        notes.by_load = notes.by_load.max((f.by_load.abs() / base) as f32);
        notes.warm_up = notes.warm_up.max((self.warm / base) as f32);
        let least = LEAST[self.window / 2];
        if growth < least * base || f.slope < FLOOR * base {
            return Judged::Nothing;
        }
        let p = self.chance * (WINDOWS + BRIEF) as f64 * DAY_S / f.span;
        if p > CHANCE_PER_DAY {
            return Judged::Nothing;
        }
        if self.layers.step && !is_slope(f) {
            notes.steps = notes.steps.saturating_add(1);
            notes.step = notes.step.max(share);
            return Judged::Nothing;
        }
        let (early, late) = (f.thirds[1] - f.thirds[0], f.thirds[2] - f.thirds[1]);
        if self.layers.bend && late < BEND * early {
            notes.filling = notes.filling.max(share);
            return Judged::Nothing;
        }
        let own = if self.layers.own_falls { self.fell } else { 0.0 };
        if growth < (BEYOND * own).max(BEYOND_BASELINE * self.healthy) {
            notes.ordinary = notes.ordinary.max(share);
            return Judged::Nothing;
        }
        Judged::Grows { p, base, why: self.doubt(f, base, early, late) }
    }

    fn doubt(&self, f: &Fit, base: f64, early: f64, late: f64) -> Option<Why> {
        if self.profile.is_some() || self.keeps || !self.layers.warm_up {
            return None;
        }
        let seen = f64::from(self.from_s.saturating_sub(self.life.began_s));
        let growth = f.growth();
        // It was flat for as long before, or is old against what was seen.
        let first = if self.life.level.is_nan() { f.start } else { f64::from(self.life.level) };
        let before = f64::from(self.from_s.saturating_sub(self.life.level_s));
        // By the lower end of the slope: of many short windows some look steep.
        let slope = f.slope - 2.0 * f.se;
        let flat = before >= f.span && (f.start - first) < 0.5 * slope * before;
        let old = f64::from(self.life.uptime) >= seen + f.span;
        let outlived = seen + f.span >= WARM_UP_S && late >= STEADY * early;
        let anew = self.window >= 2 * LONG_RING && {
            let age = self.life.age(self.from_s);
            self.lives.grew(age, age + f.span).is_some_and(|g| g < ANEW * growth)
        };
        if !flat && !old && !outlived && !anew && f.start + growth - first < WARM_UP * base {
            return Some(Why::WarmUp);
        }
        // Memory is at most proportional to the load. How much of it is, a
        // window of a few hours cannot tell from growth where both rise.
        if self.layers.load && growth < f.load_rise * f.start {
            return Some(Why::Load);
        }
        let long = f.span > DAY_S / 12.0;
        let day = seen + f.span >= DAY_S;
        if long && !day && !self.loaded && growth < DAILY * base {
            return Some(Why::Daily);
        }
        None
    }
}
