//! What windows cost a CPython service that leaks, against what they may.
//!
//! A session opens one or two windows, each below a second of lost work: less
//! than throughput over minutes can show, on machines whose speed drifts by
//! several percent. So each window is held against the seconds beside it.

use std::{path::Path, process::Stdio, thread};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Programs, Rows,
    meter::Around,
    pairs::hodges_lehmann,
    python::{AIOHTTP, How, Kind, Service, WORKER},
    row, seconds,
};

/// Length of a session, s, long enough for the first window, and its pace.
const SESSION: u64 = 90;
const INTERVAL: &str = "5s";
const BUDGETS: [&str; 2] = ["1%", "5%"];
const KINDS: [Kind; 2] = [AIOHTTP, WORKER];
/// One request in this many of a leaking tenant leaks.
const EVERY: &str = "40";
/// Before it is said to begin a window warms up, after its end its probes are
/// taken out.
const AROUND: Around = Around { before: 0.6, after: 0.6, beside: [0.5, 3.0] };

/// What one session has cost, s of the service's work.
#[derive(Default)]
struct Session {
    windows: usize,
    /// By what was done in them and beside them.
    lost_s: f64,
    /// As the agent reckons.
    accounted_s: f64,
}

fn session(root: &Path, programs: &Programs, kind: Kind, budget: &str) -> Result<Session> {
    let s = Service::start(root, kind, How::Plain, &[("LEAK", "1"), ("EVERY", EVERY)])?;
    s.load.latest()?;
    thread::sleep(seconds(3));
    let mut c = super::python::watch(programs, &[s.pid]);
    c.args(["--max-overhead", budget, "--interval", INTERVAL]);
    c.args(["--duration", &format!("{SESSION}s")]);
    let out = c.stdout(Stdio::piped()).output()?;
    let last = out.stdout.split(|b| *b == b'\n').rfind(|l| !l.is_empty());
    let report: Value = serde_json::from_slice(last.context("no report")?)?;
    // The lines after the last window have to be there.
    thread::sleep(seconds(1));
    let mut session = Session::default();
    let windows = report["targets"][0]["latest_windows"].as_array().context("no windows")?;
    let ends = |w: &Value| w["from_unix_s"].as_f64().zip(w["to_unix_s"].as_f64());
    let all: Vec<(f64, f64)> = windows.iter().filter_map(ends).collect();
    for (i, (w, at)) in windows.iter().zip(&all).enumerate() {
        let free_from = i.checked_sub(1).map_or(f64::MIN, |i| all[i].1 + AROUND.after);
        let free_to = all.get(i + 1).map_or(f64::MAX, |w| w.0 - AROUND.before);
        let accounted = w["lost_work_s"].as_f64().context("no account")?;
        let lost = s
            .load
            .lost_s(*at, (free_from, free_to), AROUND)
            .context("windows too near to each other")?;
        println!(
            "{} {budget}: a window of {:.2} s lost {lost:.3} s, accounted {accounted:.3} s",
            kind.name,
            at.1 - at.0
        );
        session.windows += 1;
        session.lost_s += lost;
        session.accounted_s += accounted;
    }
    Ok(session)
}

fn rows_of(kind: Kind, budget: &str, sessions: &[Session]) -> [[String; 3]; 2] {
    let n: usize = sessions.iter().map(|s| s.windows).sum();
    let what = format!(
        "{} on 3.{} that leaks, `--max-overhead {budget}`, {n} windows in {} sessions of {SESSION} s",
        kind.name,
        kind.minor,
        sessions.len()
    );
    let share = |f: fn(&Session) -> f64| {
        let shares: Vec<f64> = sessions.iter().map(|s| f(s) * 100.0 / SESSION as f64).collect();
        hodges_lehmann(&shares).map_or("not measured".to_owned(), |[middle, low, high]| {
            format!("{middle:.2} % of its work [{low:.2}, {high:.2}]")
        })
    };
    [
        row(format!("{what}: lost"), share(|s| s.lost_s), &format!("≤ {budget}")),
        row(format!("{what}: lost as the agent reckons"), share(|s| s.accounted_s), "–"),
    ]
}

pub fn window(root: &Path, programs: &Programs, sessions: usize) -> Result<Rows> {
    let mut rows = Rows::new();
    for kind in KINDS {
        for budget in BUDGETS {
            let sessions: Vec<Session> = (0..sessions)
                .map(|_| session(root, programs, kind, budget))
                .collect::<Result<_>>()?;
            rows.extend(rows_of(kind, budget, &sessions));
        }
    }
    Ok(rows)
}
