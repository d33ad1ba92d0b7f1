//! Our detector on a series.

use std::{fs, sync::Arc};

use claw_ebpf::detect::{
    series::Point,
    trend::{Layers, Learner, Profile, State, Trend},
    verdict,
};

use crate::{generate::Series, random::Random, score::Outcome};

pub fn profile(healthy: &[Point]) -> Arc<Profile> {
    let mut l = Learner::default();
    healthy.iter().for_each(|p| l.put(p));
    healthy.iter().for_each(|p| l.again(p));
    Arc::new(l.finish())
}

pub fn outcome(s: &Series, profile: Option<Arc<Profile>>, layers: Layers) -> Outcome {
    let mut trend = Trend::new(profile, layers);
    let mut o = Outcome::default();
    for p in &s.points {
        if let Some(c) = trend.put(p, 0.0)
            && c.state == State::Leak
        {
            o.alarms.push(p.t);
            o.confidence = trend.standing().map(verdict::confidence);
        }
    }
    o
}

/// Time that this thread has been on a core: what else runs does not count.
pub fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// Points per second through `n` series in turn, and bytes that each takes.
pub fn speed(n: usize, points: usize) -> (f64, usize) {
    let mut all = vec![Trend::new(None, Layers::default()); n];
    let mut r = Random::new(5);
    let noise: Vec<f64> = (0..1024).map(|_| 1e8 * (1.0 + 0.3 * r.unit())).collect();
    let began = cpu_seconds();
    for i in 0..points / n {
        for (k, trend) in all.iter_mut().enumerate() {
            trend.put(&Point::new(i as f64 * 30.0, noise[(i * 7 + k) & 1023]), 0.0);
        }
    }
    let rate = points as f64 / (cpu_seconds() - began);
    (rate, all.iter().map(Trend::memory).max().unwrap_or(0))
}
