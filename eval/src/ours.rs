//! Our detector on a series.

use std::sync::Arc;

use claw_ebpf::detect::trend::{Layers, Learner, State, Trend};

use crate::{generate::Series, score::Outcome};

pub fn outcome(s: &Series, baseline: bool, layers: Layers) -> Outcome {
    let profile = baseline.then(|| {
        let mut l = Learner::default();
        s.baseline.iter().for_each(|p| l.put(p));
        s.baseline.iter().for_each(|p| l.again(p));
        Arc::new(l.finish())
    });
    let mut trend = Trend::new(profile, layers);
    let mut o = Outcome::default();
    for p in &s.points {
        if let Some(c) = trend.put(p, 0.0)
            && c.state == State::Leak
        {
            o.alarms.push(p.t);
        }
    }
    o
}
