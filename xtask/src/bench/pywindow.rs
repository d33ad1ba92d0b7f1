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
    meter::{self, Around, latest_windows},
    pairs::median,
    python::{AIOHTTP, How, Kind, Service, WORKER},
    row, seconds,
};

/// Length of a session, s, long enough for the first window, and its pace.
const SESSION: u64 = 90;
const INTERVAL: &str = "5s";
const BUDGETS: [&str; 2] = ["1%", "5%"];
const KINDS: [Kind; 2] = [AIOHTTP, WORKER];
/// One request in this many of a leaking tenant leaks; and a heap that is small
/// enough for full collections not to be what is measured.
const ENV: [(&str, &str); 3] = [("LEAK", "1"), ("EVERY", "40"), ("BALLAST", "20000")];
/// The lines of a busy interpreter come late.
const AROUND: Around = Around { before: 0.1, after: 0.1, beside: [0.5, 4.0] };

/// What one session has cost, s of the service's work.
struct Session {
    windows: usize,
    /// By what was done in them and beside them.
    lost_s: f64,
    /// As the agent reckons.
    accounted_s: f64,
}

fn session(root: &Path, programs: &Programs, kind: Kind, budget: &str) -> Result<Session> {
    let s = Service::start(root, kind, How::Plain, &ENV)?;
    s.load.latest()?;
    thread::sleep(seconds(3));
    let mut c = super::python::watch(programs, &[s.pid]);
    c.args(["--max-overhead", budget, "--interval", INTERVAL]);
    c.args(["--duration", &format!("{SESSION}s")]);
    let out = c.stdout(Stdio::piped()).output()?;
    let target = &meter::report(&out.stdout)?["targets"][0];
    // The lines after the last window have to be there.
    thread::sleep(seconds(2));
    let windows = latest_windows(target);
    let near = |a: f64, b: f64| b - a < AROUND.before + AROUND.after + AROUND.beside[0];
    // Those that are too near to each other count as one.
    let mut all: Vec<(f64, f64)> = Vec::new();
    for (from, to) in windows.iter().copied() {
        match all.last_mut().filter(|w| near(w.1, from)) {
            Some(last) => last.1 = to,
            None => all.push((from, to)),
        }
    }
    let lost_work = |w: &Value| w["lost_work_s"].as_f64();
    let accounted: f64 =
        target["latest_windows"].as_array().into_iter().flatten().filter_map(lost_work).sum();
    let mut session = Session { windows: windows.len(), lost_s: 0.0, accounted_s: accounted };
    let last_line = s.load.unix_s(s.load.latest()?.0).context("no clock")?;
    for (i, at) in all.iter().enumerate() {
        let free_from = i.checked_sub(1).map_or(f64::MIN, |i| all[i].1 + AROUND.after);
        let free_to = all.get(i + 1).map_or(last_line, |w| w.0 - AROUND.before);
        let lost = s.load.lost_s(*at, (free_from, free_to), AROUND);
        session.lost_s += lost.context("the service said nothing around a window")?;
    }
    println!(
        "{} {budget}: {} windows, {:.2} s, lost {:.3} s, accounted {accounted:.3} s",
        kind.name,
        session.windows,
        all.iter().map(|w| w.1 - w.0).sum::<f64>(),
        session.lost_s
    );
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
        let mut shares: Vec<f64> = sessions.iter().map(|s| f(s) * 100.0 / SESSION as f64).collect();
        let middle = median(&mut shares);
        let ends = shares.first().zip(shares.last());
        ends.map_or("not measured".to_owned(), |(low, high)| {
            format!("{middle:.2} % of its work, {low:.2} to {high:.2} in single sessions")
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
