//! Windows of a few bins, judged by noise that was learned before.
//!
//! Six bins tell little of their own noise: by Student's t with four degrees of
//! freedom, chance that rare is beyond several times what noise known from
//! elsewhere would ask for. So the variance is moderated towards that of the
//! windows before and of the baseline (Smyth 2004, Statistical Applications in
//! Genetics and Molecular Biology 3:3). Of those before only the falls are
//! learned: noise falls as often as it rises, and no leak teaches that its own
//! growth is noise. What was learned is the change from end to end of whole
//! windows, so noise that is not independent from bin to bin counts in full.

use serde::{Deserialize, Serialize};

use super::{
    Change, Gate, Judged, Trend, fit, gate,
    ring::{Bin, MOST},
    standing::{self, Hit},
};

/// Ring of each such window, how many of its bins make one here (the lowest of
/// more bins is closer to what a collection leaves), and hits in a row before a
/// verdict. New ones at the end: baselines hold them in this order.
const SPECS: [(usize, usize, u8); BRIEF] =
    [(0, 1, 2), (0, 2, 3), (0, 5, 6), (1, 1, 2), (1, 2, 3), (1, 4, 5), (2, 2, 2)];
pub const BRIEF: usize = 7;
/// Bins of a window.
const FEW: usize = 6;
/// Least length, s: in less time a burst that rises within a minute looks like
/// a slope.
const LEAST_S: f64 = 200.0;
/// Most degrees of freedom that what was learned counts for, and as many that
/// the baseline does.
const LEARNED: f64 = 24.0;

/// How far a window fell, and, of a baseline, rose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Mean square of the falls of windows that do not overlap, bytes², and how
    /// many there were.
    pub square: f32,
    pub falls: u8,
    /// Largest fall that was a slope rather than a step, bytes.
    pub fell: f32,
}

impl Noise {
    fn dof(&self) -> f64 {
        f64::from(self.falls).min(LEARNED)
    }
}

/// What a series keeps of one such window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Brief {
    /// As in [`Noise`].
    square: f32,
    fell: f32,
    falls: u8,
    /// Bins until a window no longer overlaps the last that was learned.
    wait: u8,
    hits: u8,
}

impl Brief {
    pub fn noise(&self) -> Noise {
        Noise { square: self.square, falls: self.falls, fell: self.fell }
    }

    fn learn(&mut self, by: f64) {
        self.falls = self.falls.saturating_add(1);
        self.square += ((by * by) as f32 - self.square) / f32::from(self.falls);
    }

    pub fn restart(&mut self) {
        (self.wait, self.hits) = (0, 0);
    }
}

impl Trend {
    /// All such windows of a ring, of which a bin was closed.
    pub(super) fn evaluate_brief(&mut self, r: usize, now_s: u32, scale: f64) -> Option<Change> {
        let mut change = None;
        for (i, (ring, _, _)) in SPECS.into_iter().enumerate() {
            if ring == r {
                let c = self.evaluate_one(i, now_s, scale);
                change = change.or(c);
            }
        }
        change
    }

    fn evaluate_one(&mut self, i: usize, now_s: u32, scale: f64) -> Option<Change> {
        let (r, group, needed) = SPECS[i];
        if self.rings[r].count() < FEW * group {
            return None;
        }
        let mut fine = [Bin::default(); MOST];
        let n = self.rings[r].newest(FEW * group, &mut fine);
        let mut bins = [Bin::default(); FEW];
        for (bin, of) in bins.iter_mut().zip(fine[..n].chunks(group)) {
            *bin = of.iter().fold(of[0], |a, b| if b.low < a.low { *b } else { a });
        }
        if span(&bins) < LEAST_S {
            return None;
        }
        let warm = self.take_warm_up(&mut bins);
        let growth = line_growth(&bins)?;
        let brief = &mut self.brief[i];
        brief.wait = brief.wait.saturating_sub(1);
        let fell = f64::from(brief.fell);
        if growth < 0.0 {
            brief.hits = 0;
            if brief.wait == 0 {
                brief.wait = (FEW * group) as u8;
                brief.learn(growth);
            }
            if -growth > fell && gate::is_slope(&fit::line(&bins)?) {
                brief.fell = -growth as f32;
            }
            return None;
        }
        // Most windows grow by less: cheaper to see than to fit.
        if self.layers.own_falls && self.learning.is_none() && growth < gate::BEYOND * fell {
            brief.hits = 0;
            return None;
        }
        let f = fit::line(&bins)?;
        let own = brief.noise();
        let (before, rose) = self.profile.as_ref().map(|p| p.brief[i]).unwrap_or_default();
        let dof = f.dof + own.dof() + before.dof();
        let squares = f.dof * (f.se * f.span).powi(2)
            + own.dof() * f64::from(own.square)
            + before.dof() * f64::from(before.square);
        let chance = fit::student_tail(growth / (squares / dof).sqrt(), dof);
        if let Some(learning) = &mut self.learning {
            if chance < 0.01 && gate::is_slope(&f) {
                learning.brief[i] = learning.brief[i].max(growth as f32);
            }
            return None;
        }
        let gate = Gate {
            window: 2 * r,
            chance,
            fell: f64::from(own.fell),
            healthy: f64::from(before.fell).max(rose),
            ..self.gate(&bins, scale, warm)
        };
        let mut notes = self.notes;
        let judged = gate.judge(&f, &mut notes);
        self.notes = notes;
        match judged {
            Judged::Nothing => {
                self.brief[i].hits = 0;
                None
            }
            Judged::Grows { p, base, why } => {
                let hits = &mut self.brief[i].hits;
                *hits = (*hits + 1).min(needed);
                if self.layers.hits && *hits < needed {
                    return None;
                }
                let slope = standing::robust_slope(&bins, f.beta);
                let (window, from_s) = (2 * r as u8, bins[0].at_s);
                let hit = &Hit { window, from_s, now_s, base, p, why, slope };
                self.stand(&f, hit)
            }
        }
    }
}

/// Time from the first bin to the last, s.
fn span(bins: &[Bin; FEW]) -> f64 {
    f64::from(bins[FEW - 1].at_s) - f64::from(bins[0].at_s)
}

/// Change from end to end on the least-squares line, bytes.
fn line_growth(bins: &[Bin; FEW]) -> Option<f64> {
    let mean = |of: fn(&Bin) -> f64| bins.iter().map(of).sum::<f64>() / FEW as f64;
    let (t, y) = (mean(|b| f64::from(b.at_s)), mean(|b| f64::from(b.low)));
    let (mut ty, mut tt) = (0.0, 0.0);
    for b in bins {
        let passed = f64::from(b.at_s) - t;
        ty += passed * (f64::from(b.low) - y);
        tt += passed * passed;
    }
    (tt > 0.0).then(|| ty / tt * span(bins))
}
