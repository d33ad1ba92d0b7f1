//! What is healthy for a series: the shape of a baseline, and how it is learned
//! from a run without a leak.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize};

use super::{BRIEF, Layers, Noise, Trend, WINDOWS};
use crate::detect::series::Point;

/// Cells of the warm-up curve: eight to each doubling of uptime from 1 minute
/// on, more than a month in all.
const CELLS: usize = 128;
/// Width of a class of levels, as a ratio.
const LEVEL_STEP: f64 = 1.02;

/// What a healthy run looked like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Median of the envelope, bytes: the fixed denominator of growth.
    pub level: f64,
    /// Bytes per unit of load; `None` where the load is not known.
    pub beta: Option<f64>,
    /// Mean load, units of work per second, where known.
    pub load: Option<f64>,
    /// Bytes that the envelope never left again once it had reached this
    /// uptime: what a warm-up adds. Uptime in s, rising.
    pub warm_up: Vec<(u32, f64)>,
    /// Largest rise and fall of the envelope within each window, bytes, beyond
    /// warm-up and load.
    pub rose: [f64; WINDOWS],
    pub fell: [f64; WINDOWS],
    /// Noise and largest rise, bytes, of each brief window; zero of those that
    /// are newer than the file.
    #[serde(default, deserialize_with = "of_brief_windows")]
    pub brief: [(Noise, f64); BRIEF],
    /// Length of what was seen, s.
    pub seconds: f64,
    pub points: u64,
    /// Of bytes older than their peers live rather than of all bytes in use.
    pub old: bool,
}

fn of_brief_windows<'de, D: Deserializer<'de>>(from: D) -> Result<[(Noise, f64); BRIEF], D::Error> {
    let known = Vec::<(Noise, f64)>::deserialize(from)?;
    let mut all: [(Noise, f64); BRIEF] = Default::default();
    all.iter_mut().zip(known).for_each(|(slot, k)| *slot = k);
    Ok(all)
}

impl Profile {
    /// The memory coefficient: bytes in use per unit of work where the work is
    /// known, else bytes in use.
    pub fn coefficient(&self) -> f64 {
        self.level / self.load.filter(|l| *l > 0.0).unwrap_or(1.0)
    }

    /// What the warm-up has added at this uptime, s.
    pub fn warmed(&self, uptime: f64) -> f64 {
        let after = self.warm_up.partition_point(|(at, _)| f64::from(*at) <= uptime);
        match (after.checked_sub(1).map(|i| self.warm_up[i]), self.warm_up.get(after)) {
            (None, Some((_, first))) => *first,
            (Some((_, last)), None) => last,
            (Some((a, from)), Some((b, to))) => {
                let share = (uptime - f64::from(a)) / (f64::from(*b) - f64::from(a));
                from + (to - from) * share
            }
            (None, None) => 0.0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    low: f32,
    load: f32,
}

/// Learns a profile. Two passes over the same points: level, load and warm-up
/// first, then what remains.
#[derive(Debug)]
pub struct Learner {
    cells: Vec<Option<Cell>>,
    levels: Vec<(i32, u32)>,
    load: LoadSums,
    first_t: Option<f64>,
    last_t: f64,
    points: u64,
    old: bool,
    trend: Option<Trend>,
}

/// Bins of ten minutes between two that are compared: 3 h, long enough for the
/// load to have changed by more than it wobbles.
const LAG: usize = 18;

/// How the envelope follows the load: covariances of differences.
#[derive(Debug, Default)]
struct LoadSums {
    n: f64,
    y: f64,
    l: f64,
    /// Pairs; sums of differences in value and load, and of their products.
    pairs: [f64; 5],
    bin: Option<(i64, f64, f64, f64)>,
    before: VecDeque<(f64, f64)>,
    unknown: bool,
}

impl LoadSums {
    fn put(&mut self, t: f64, y: f64, l: f64) {
        self.unknown |= !l.is_finite();
        let number = (t / 600.0).floor() as i64;
        match &mut self.bin {
            Some((n, low, load, count)) if *n == number => {
                *low = low.min(y);
                *count += 1.0;
                *load += (l - *load) / *count;
            }
            Some(bin) => {
                let (_, low, load, _) = std::mem::replace(bin, (number, y, l, 1.0));
                if self.before.len() == LAG
                    && let Some((y0, l0)) = self.before.pop_front()
                {
                    let (dy, dl) = (low - y0, load - l0);
                    let add = [1.0, dy, dl, dy * dl, dl * dl];
                    self.pairs.iter_mut().zip(add).for_each(|(sum, v)| *sum += v);
                }
                self.before.push_back((low, load));
                self.n += 1.0;
                self.y += low;
                self.l += load;
            }
            None => self.bin = Some((number, y, l, 1.0)),
        }
    }

    fn beta(&self) -> Option<f64> {
        let [n, dy, dl, cross, square] = self.pairs;
        let varies = square - dl * dl / n;
        if self.unknown || n < 12.0 || varies <= 0.0 || self.l <= 0.0 {
            return None;
        }
        Some(((cross - dy * dl / n) / varies).clamp(0.0, self.y / self.l))
    }
}

impl Default for Learner {
    fn default() -> Self {
        Self {
            cells: vec![None; CELLS],
            levels: Vec::new(),
            load: LoadSums::default(),
            first_t: None,
            last_t: 0.0,
            points: 0,
            old: false,
            trend: None,
        }
    }
}

impl Learner {
    /// First pass.
    pub fn put(&mut self, p: &Point) {
        let first = *self.first_t.get_or_insert(p.t);
        self.old |= p.old.is_finite();
        let y = if p.old.is_finite() { p.old } else { p.live };
        self.last_t = p.t;
        self.points += 1;
        let uptime = if p.uptime.is_finite() { p.uptime } else { p.t - first };
        let cell = ((uptime / 60.0).max(1.0).log2() * 8.0) as usize;
        let now = Cell { low: y as f32, load: p.load as f32 };
        match &mut self.cells[cell.min(CELLS - 1)] {
            Some(c) if now.low < c.low => *c = now,
            Some(_) => {}
            empty => *empty = Some(now),
        }
        self.load.put(p.t, y, p.load);
        let class = (y.max(1.0).ln() / LEVEL_STEP.ln()).round() as i32;
        match self.levels.binary_search_by_key(&class, |(c, _)| *c) {
            Ok(i) => self.levels[i].1 = self.levels[i].1.saturating_add(1),
            Err(i) => self.levels.insert(i, (class, 1)),
        }
    }

    /// Second pass, over the same points.
    pub fn again(&mut self, p: &Point) {
        if self.trend.is_none() {
            self.trend = Some(Trend::learning(self.first_profile()));
        }
        if let Some(trend) = &mut self.trend {
            trend.put(p, 0.0);
        }
    }

    pub fn finish(self) -> Profile {
        let mut profile = self.first_profile();
        if let Some(trend) = self.trend {
            trend.learned(&mut profile);
        }
        profile
    }

    fn first_profile(&self) -> Profile {
        let half = self.levels.iter().map(|(_, n)| u64::from(*n)).sum::<u64>() / 2;
        let mut seen = 0;
        let class = self.levels.iter().find(|(_, n)| {
            seen += u64::from(*n);
            seen > half
        });
        let beta = self.load.beta();
        let mean_load = self.load.l / self.load.n.max(1.0);
        let mut never_below = f64::MAX;
        let mut warm_up: Vec<(u32, f64)> = Vec::new();
        for (i, cell) in self.cells.iter().enumerate().rev() {
            let Some(c) = cell else { continue };
            let by_load = beta.map_or(0.0, |b| b * (f64::from(c.load) - mean_load));
            never_below = never_below.min(f64::from(c.low) - by_load);
            // The middle of the cell.
            warm_up.push(((((i as f64 + 0.5) / 8.0).exp2() * 60.0) as u32, never_below));
        }
        warm_up.reverse();
        Profile {
            level: class.map_or(0.0, |(c, _)| LEVEL_STEP.powi(*c)),
            beta,
            load: (!self.load.unknown && self.load.n > 0.0).then_some(mean_load),
            warm_up,
            rose: [0.0; WINDOWS],
            fell: [0.0; WINDOWS],
            brief: Default::default(),
            seconds: self.last_t - self.first_t.unwrap_or(self.last_t),
            points: self.points,
            old: self.old,
        }
    }
}

/// Largest rise of each window of a healthy series, bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rises {
    pub windows: [f32; WINDOWS],
    pub brief: [f32; BRIEF],
}

impl Trend {
    /// Learns how much a healthy series rises and falls.
    fn learning(profile: Profile) -> Self {
        let mut trend = Self::new(Some(Arc::new(profile)), Layers::default());
        trend.learning = Some(Box::default());
        trend
    }

    /// Put down how far each window rose and fell.
    fn learned(&self, profile: &mut Profile) {
        let rose = self.learning.as_deref().copied().unwrap_or_default();
        profile.rose = rose.windows.map(f64::from);
        profile.fell = self.fell.map(f64::from);
        profile.brief = std::array::from_fn(|i| (self.brief[i].noise(), f64::from(rose.brief[i])));
    }
}
