//! Alarms against the truth.

use std::collections::BTreeMap;

use crate::generate::Series;

/// What one detector made of one series.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Times at which it said `leak`, s.
    pub alarms: Vec<f64>,
    /// Confidence of the latest.
    pub confidence: Option<f64>,
}

#[derive(Clone, Debug, Default)]
pub struct Score {
    pub found: u32,
    pub missed: u32,
    /// Series with a false alarm, and false alarms without a leak.
    pub false_series: u32,
    pub false_alarms: u32,
    pub days: f64,
    /// By rate: minutes to detect, and percent of the level lost until then.
    pub delays: BTreeMap<String, Vec<f64>>,
    pub lost: BTreeMap<String, Vec<f64>>,
    /// Found, missed, false alarms, percent of the level lost.
    pub by_scenario: BTreeMap<String, (u32, u32, u32, Vec<f64>)>,
    /// By twentieth of confidence: verdicts, those that are leaks, sum.
    pub calibration: [(u32, u32, f64); 20],
}

impl Score {
    pub fn add(&mut self, s: &Series, o: &Outcome) {
        let scenario = self.by_scenario.entry(format!("{:?}", s.scenario)).or_default();
        let mut right = false;
        match s.leak {
            None => {
                self.days += s.seconds / 86_400.0;
                self.false_alarms += o.alarms.len() as u32;
                scenario.2 += o.alarms.len() as u32;
                self.false_series += u32::from(!o.alarms.is_empty());
            }
            Some(leak) => {
                let early = o.alarms.iter().any(|t| *t < leak.onset);
                self.false_series += u32::from(early);
                match o.alarms.iter().find(|t| **t >= leak.onset) {
                    Some(t) => {
                        let minutes = (t - leak.onset) / 60.0;
                        let rate = format!("{}", leak.rate);
                        self.delays.entry(rate.clone()).or_default().push(minutes);
                        self.lost.entry(rate).or_default().push(minutes * leak.rate);
                        scenario.3.push(minutes * leak.rate);
                        scenario.0 += 1;
                        self.found += 1;
                        right = true;
                    }
                    None => {
                        scenario.1 += 1;
                        self.missed += 1;
                    }
                }
            }
        }
        if let Some(c) = o.confidence {
            let bin = &mut self.calibration[((c * 20.0) as usize).min(19)];
            bin.0 += 1;
            bin.1 += u32::from(right);
            bin.2 += c;
        }
    }

    pub fn is_wrong(&self, s: &Series, o: &Outcome) -> bool {
        match s.leak {
            None => !o.alarms.is_empty(),
            Some(l) => o.alarms.iter().any(|t| *t < l.onset) || o.alarms.is_empty(),
        }
    }

    pub fn precision(&self) -> f64 {
        f64::from(self.found) / f64::from((self.found + self.false_series).max(1))
    }

    pub fn recall(&self) -> f64 {
        f64::from(self.found) / f64::from((self.found + self.missed).max(1))
    }

    pub fn per_day(&self) -> f64 {
        f64::from(self.false_alarms) / self.days.max(1e-9)
    }
}

/// The q-quantile, NaN of nothing.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 - 1.0) * q).round().max(0.0) as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
