//! What others do, on the same series in the same run.

use claw_ebpf::detect::{
    forest::{Outliers, Row, Seeded},
    series::Point,
    trend::normal_tail,
};

/// Alarms closer than this are one, s.
const EPISODE: f64 = 6.0 * 3600.0;

/// Means of one minute: time, bytes.
fn minutes(points: &[Point]) -> Vec<(f64, f64)> {
    let mut means: Vec<(f64, f64, f64)> = Vec::new();
    for p in points {
        let minute = (p.t / 60.0).floor() * 60.0;
        match means.last_mut().filter(|m| m.0 == minute) {
            Some(m) => (m.1, m.2) = (m.1 + p.live, m.2 + 1.0),
            None => means.push((minute, p.live, 1.0)),
        }
    }
    means.into_iter().map(|(t, sum, n)| (t, sum / n)).collect()
}

/// Bytes per minute, and the level at the start.
fn least_squares(w: &[(f64, f64)]) -> (f64, f64) {
    let n = w.len() as f64;
    let (mt, my) = (w.iter().map(|p| p.0).sum::<f64>() / n, w.iter().map(|p| p.1).sum::<f64>() / n);
    let (mut xy, mut xx) = (0.0, 1e-12);
    for (t, y) in w {
        xy += (t - mt) * (y - my);
        xx += (t - mt).powi(2);
    }
    let slope = xy / xx;
    (slope * 60.0, my - slope * (mt - w[0].0))
}

fn episodes(times: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let (mut starts, mut last) = (Vec::new(), f64::MIN);
    for t in times {
        if t - last > EPISODE {
            starts.push(t);
        }
        last = t;
    }
    starts
}

/// Times at which the last `n` minutes fulfil `rule`.
fn windows(points: &[Point], n: usize, rule: impl Fn(&[(f64, f64)]) -> bool) -> Vec<f64> {
    let means = minutes(points);
    let hits = means.windows(n).step_by(5).filter(|w| rule(w)).map(|w| w[n - 1].0);
    episodes(hits.collect::<Vec<_>>())
}

/// Slope over 10 min above 5.2 % a minute.
pub fn fixed_threshold(points: &[Point]) -> Vec<f64> {
    windows(points, 10, |w| {
        let (slope, start) = least_squares(w);
        slope > 0.052 * start.max(1.0)
    })
}

/// Slope over an hour above 10 MB an hour.
pub fn megabytes_per_hour(points: &[Point]) -> Vec<f64> {
    windows(points, 60, |w| least_squares(w).0 * 60.0 > 10e6)
}

/// Mann–Kendall over an hour, p < 0.001, and growth of 3 %.
pub fn mann_kendall(points: &[Point]) -> Vec<f64> {
    windows(points, 60, |w| {
        let (slope, start) = least_squares(w);
        if slope * 60.0 < 0.03 * start {
            return false;
        }
        let mut s = 0.0;
        for (i, a) in w.iter().enumerate() {
            s += w[i + 1..].iter().map(|b| (b.1 - a.1).signum()).sum::<f64>();
        }
        let n = w.len() as f64;
        normal_tail(s / (n * (n - 1.0) * (2.0 * n + 5.0) / 18.0).sqrt()) < 0.001
    })
}

/// An isolation forest over five rolling features, fitted on what is healthy.
pub fn forest_alone(points: &[Point], healthy: &[Point]) -> Vec<f64> {
    let train: Vec<Row> = features(healthy).into_iter().map(|(_, r)| r).collect();
    let Ok(forest) = Seeded::fit(&train, 1) else { return Vec::new() };
    let mut scores: Vec<f64> = train.iter().map(|r| forest.score(r)).collect();
    scores.sort_by(f64::total_cmp);
    let limit = scores[scores.len() * 999 / 1000].max(0.6);
    let (mut row, mut hits) = (0, Vec::new());
    for (t, r) in features(points) {
        row = if forest.score(&r) > limit && r[1] > 0.0 { row + 1 } else { 0 };
        if row >= 3 {
            hits.push(t);
        }
    }
    episodes(hits)
}

/// Level, slopes of 10 min and 1 h, spread, growth over the hour: every 5 min.
fn features(points: &[Point]) -> Vec<(f64, Row)> {
    let means = minutes(points);
    let mut rows = Vec::new();
    for w in means.windows(60).step_by(5) {
        let (hour, start) = least_squares(w);
        let (ten, _) = least_squares(&w[50..]);
        let mean = w.iter().map(|p| p.1).sum::<f64>() / 60.0;
        let sd = (w.iter().map(|p| (p.1 - mean).powi(2)).sum::<f64>() / 60.0).sqrt();
        let low = w[50..].iter().map(|p| p.1).fold(f64::MAX, f64::min);
        rows.push((w[59].0, [mean, hour / start, ten / start, sd / mean, low]));
    }
    rows
}
