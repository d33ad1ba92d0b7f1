//! What a series did that is no leak, for whoever asks.

/// Counts and sizes of what was seen; sizes as a share of the level then.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Notes {
    pub restarts: u16,
    pub steps: u16,
    pub step: f32,
    pub bursts: u16,
    pub burst: f32,
    /// Growth that was slowing down.
    pub filling: f32,
    /// Growth that stopped.
    pub levelled: u16,
    pub by_load: f32,
    /// Ups and downs within a day that came back to where they were.
    pub daily: f32,
    /// Growth no larger than falls (or, with a baseline, healthy rises) seen
    /// before.
    pub ordinary: f32,
    /// Growth within the warm-up of the baseline.
    pub warm_up: f32,
}

impl Notes {
    /// In words, with numbers; what it most looks like first.
    pub fn words(&self) -> Vec<String> {
        let mut all = Vec::new();
        let percent = |share: f32| f64::from(share) * 100.0;
        let times = |n: u16| if n == 1 { "once".to_owned() } else { format!("{n} times") };
        if self.restarts > 0 {
            all.push(format!("restart: the process began anew {}", times(self.restarts)));
        }
        if self.steps > 0 {
            let n = times(self.steps);
            all.push(format!(
                "step: the level changed at once, {n}, by up to {:.0} %",
                percent(self.step)
            ));
        }
        if self.warm_up > 0.03 {
            all.push(format!(
                "warm-up: it grew by {:.0} % as the baseline did at the same uptime",
                percent(self.warm_up)
            ));
        }
        if self.filling > 0.03 {
            let end = if self.levelled > 0 { ", and levelled off" } else { "" };
            all.push(format!(
                "filling cache or LRU: it grew by {:.0} %, ever more slowly{end}",
                percent(self.filling)
            ));
        } else if self.levelled > 0 {
            all.push(format!("filled up: growth stopped {}", times(self.levelled)));
        }
        if self.by_load > 0.03 {
            all.push(format!(
                "load: {:.0} % of its size come and go with the load",
                percent(self.by_load)
            ));
        }
        if self.daily > 0.05 {
            all.push(format!(
                "diurnal: it rises and falls by {:.0} % within a day",
                percent(self.daily)
            ));
        }
        if self.bursts > 0 {
            let n = times(self.bursts);
            all.push(format!(
                "burst: it rose by up to {:.0} % and came back, {n}",
                percent(self.burst)
            ));
        }
        if self.ordinary > 0.03 {
            all.push(format!(
                "ordinary: growth of {:.0} % is within what was seen to come and go",
                percent(self.ordinary)
            ));
        }
        if all.is_empty() {
            all.push("flat: nothing that grows".to_owned());
        }
        all
    }
}
