//! Real series of machines: memory in percent, one file each, as it is for
//! false alarms and with a slope added for what is found.

use std::{fs, io::Read, path::Path};

use anyhow::{Context, Result};
use claw_ebpf::detect::{
    series::Point,
    trend::{State, Trend},
};

use crate::files_in;

/// Percent per minute of the level at the onset.
const RATES: [f64; 4] = [0.03, 0.1, 0.5, 2.0];
/// The leak begins after this share of the series.
const ONSET: f64 = 0.4;

fn load(path: &Path) -> Result<Vec<Point>> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(path)?).read_to_string(&mut text)?;
    let mut points = Vec::new();
    for line in text.lines().skip(1) {
        if let Some((t, percent)) = line.split_once(',')
            && let (Ok(t), Ok(percent)) = (t.parse(), percent.parse::<f64>())
        {
            points.push(Point::new(t, percent * 1e8));
        }
    }
    Ok(points)
}

fn alarms(points: &[Point]) -> Vec<f64> {
    let mut trend = Trend::new(None, Default::default());
    let mut at = Vec::new();
    for p in points {
        if trend.put(p, 0.0).is_some_and(|c| c.state == State::Leak) {
            at.push(p.t);
        }
    }
    at
}

/// A row of the table for each rate, and one for the series as they are.
pub fn run(dir: &Path) -> Result<String> {
    let files =
        files_in(dir, "gz").with_context(|| format!("--machine-memory {}", dir.display()))?;
    let (mut days, mut wrong) = (0.0, 0);
    let mut found: [(u32, Vec<f64>); RATES.len()] = Default::default();
    for file in &files {
        let points = load(file).with_context(|| file.display().to_string())?;
        let Some(last) = points.last() else { continue };
        days += last.t / 86_400.0;
        wrong += alarms(&points).len();
        let onset = last.t * ONSET;
        for (rate, (n, delays)) in RATES.iter().zip(&mut found) {
            let level = points.iter().find(|p| p.t >= onset).map_or(0.0, |p| p.live);
            let leak = |p: &Point| {
                let grown = ((p.t - onset).max(0.0) / 60.0 * rate / 100.0).min(2.0);
                Point { live: p.live + level * grown, ..*p }
            };
            let leaking: Vec<Point> = points.iter().map(leak).collect();
            *n += 1;
            delays
                .extend(alarms(&leaking).iter().find(|t| **t >= onset).map(|t| (t - onset) / 60.0));
        }
    }
    let mut out = format!(
        "{} machines, {days:.0} machine-days: {:.3} alarms per machine-day\n\n\
         | leak, %/min | found | median min | p95 min |\n|---|---|---|---|\n",
        files.len(),
        wrong as f64 / days
    );
    for (rate, (n, d)) in RATES.iter().zip(&found) {
        let q = |q| crate::score::quantile(d, q);
        out += &format!(
            "| {rate} | {:.3} | {:.0} | {:.0} |\n",
            d.len() as f64 / f64::from(*n),
            q(0.5),
            q(0.95)
        );
    }
    Ok(out)
}
