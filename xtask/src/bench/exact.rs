//! What exact mode costs under a budget, and how far its estimates are from
//! what the programs count themselves.

use std::{
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Programs, Rows,
    meter::{Around, FULL_LOAD, Meter, Service, latest_windows},
    pairs::{centre, median},
    row, seconds,
};

/// What is allowed, and the length of one slice, watched or not, s. Short: what a
/// program does drifts by several percent from one minute to the next. But at 1 %
/// windows are further apart.
const BUDGETS: [(&str, u64); 2] = [("5%", 4), ("1%", 16)];
/// Before a watched slice, attaching included, s.
const MARGIN: u64 = 2;

const AROUND: Around = Around { before: 0.04, after: 0.06, beside: [0.04, 0.1] };

/// A program to measure: its work, and its own account of allocations.
struct Subject<'a> {
    work: &'a Meter,
    allocations: &'a Meter,
    pid: u32,
}

#[derive(Default)]
struct Measured {
    /// Work with over work without, per second and per CPU second.
    wall: Vec<f64>,
    cpu: Vec<f64>,
    /// Work outside windows over work with nothing there at all, per second.
    outside: Vec<f64>,
    /// See [`Meter::kept_around`].
    around: Vec<f64>,
    /// Estimate over truth, less one.
    errors: Vec<f64>,
    /// How often the truth lay in the 95 % interval, of those with one, and the
    /// half-widths of these.
    inside: (usize, usize),
    widths: Vec<f64>,
    /// Share of the target's work that the agent says was lost.
    estimated: Vec<f64>,
    coverage: Vec<f64>,
    unwatched: Vec<f64>,
    /// CPUs that the agent itself used.
    agent: Vec<f64>,
}

/// Seconds that all threads of a process have run.
fn cpu_s(pid: u32) -> Result<f64> {
    let mut ns = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        ns += text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(ns / 1e9)
}

/// Work of a program: per second, and per second of its own CPU time. What else
/// runs on the machine changes how much of that it gets, but hardly what it does
/// with it.
#[derive(Clone, Copy)]
struct Rate {
    wall: f64,
    cpu: f64,
    /// In the program's own time, s.
    began: f64,
    ended: f64,
}

/// What a watched slice did, and without its windows.
struct Watched {
    rate: Rate,
    outside: Option<f64>,
}

fn rate(s: &Subject, slice: u64) -> Result<Rate> {
    let (began, before) = s.work.latest()?;
    let cpu = cpu_s(s.pid)?;
    thread::sleep(seconds(slice));
    let (ended, after) = s.work.latest()?;
    let done = after - before;
    Ok(Rate { wall: done / (ended - began), cpu: done / (cpu_s(s.pid)? - cpu), began, ended })
}

fn watched(
    programs: &Programs,
    s: &Subject,
    (budget, slice): (&str, u64),
    m: &mut Measured,
) -> Result<Watched> {
    let mut c = Command::new(&programs.claw);
    c.args(["watch", "-q", "--format", "json", "--mode", "exact", "--max-overhead", budget]);
    let duration = format!("{}s", slice + MARGIN);
    c.args(["--pid", &s.pid.to_string(), "--duration", &duration, "--state", "none"]);
    let agent = c.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    thread::sleep(seconds(MARGIN));
    let agent_cpu = cpu_s(agent.id())?;
    let rate = rate(s, slice)?;
    m.agent.push((cpu_s(agent.id())? - agent_cpu) / slice as f64);
    let out = agent.wait_with_output()?;
    let report: Value = serde_json::from_slice(&out.stdout)?;
    let target = &report["targets"][0];
    let exact = &target["exact"];
    let number = |v: &Value| v.as_f64().context("exact mode reports nothing");
    // The lines after the last window have to be there.
    thread::sleep(Duration::from_millis(100));
    let (from, to) = (number(&exact["from_unix_s"])?, number(&exact["to_unix_s"])?);
    let at = |t| s.allocations.count_at(t);
    let truth = (at(to)? - at(from)?) / (to - from);
    let estimate = number(&exact["objects_per_s"])?;
    m.errors.push(estimate / truth - 1.0);
    let interval = exact["interval95"][0].as_f64().zip(exact["interval95"][1].as_f64());
    if let Some((low, high)) = interval {
        m.inside.0 += usize::from(low <= truth && truth <= high);
        m.inside.1 += 1;
        m.widths.push((high - low) / 2.0 / truth);
    }
    let windows = latest_windows(target);
    let slice = s.work.unix_s(rate.began).zip(s.work.unix_s(rate.ended));
    let outside = slice.and_then(|slice| s.work.rate_outside(&windows, slice, AROUND));
    let kept = s.work.kept_around(&windows, AROUND);
    m.around.extend(kept);
    let cost = number(&target["overhead"]["estimated_ratio"])?;
    m.estimated.push(cost);
    m.coverage.push(number(&exact["coverage"])?);
    println!(
        "  {budget}: {:.0} per s, {:.0} per CPU s, truth {truth:.0}/s, estimate {estimate:.0}/s \
         ({:+.1} %), {} windows of {:.2} ms, kept {:.4}, cost {:.2} %, agent {:.3} CPUs",
        rate.wall,
        rate.cpu,
        (estimate / truth - 1.0) * 100.0,
        exact["windows"],
        number(&exact["covered_s"])? * 1e3 / number(&exact["windows"])?,
        kept.unwrap_or(f64::NAN),
        cost * 100.0,
        m.agent.last().copied().unwrap_or(0.0),
    );
    Ok(Watched { rate, outside })
}

fn measure(programs: &Programs, s: &Subject, pairs: usize) -> Result<Vec<Measured>> {
    let mut all: Vec<Measured> = BUDGETS.iter().map(|_| Measured::default()).collect();
    thread::sleep(seconds(3));
    for ((budget, slice), m) in BUDGETS.iter().zip(&mut all) {
        // As much time for each.
        let pairs = (pairs * BUDGETS[0].1 as usize / *slice as usize).max(1);
        let mut before = rate(s, *slice)?;
        for round in 0..pairs {
            let Watched { rate, outside } = watched(programs, s, (budget, *slice), m)?;
            let after = self::rate(s, *slice)?;
            let unwatched = f64::midpoint(before.wall, after.wall);
            m.wall.push(rate.wall / unwatched);
            m.outside.extend(outside.map(|rate| rate / unwatched));
            m.cpu.push(rate.cpu / f64::midpoint(before.cpu, after.cpu));
            m.unwatched.push(before.wall);
            before = after;
            println!(
                "round {} of {pairs}: {} outside windows {}",
                round + 1,
                centre(&m.wall),
                centre(&m.outside)
            );
        }
    }
    Ok(all)
}

fn rows(what: &str, all: &mut [Measured]) -> Rows {
    let mut rows = Rows::new();
    for ((budget, slice), m) in BUDGETS.iter().zip(all) {
        let points: f64 = budget.trim_end_matches('%').parse().unwrap_or(f64::NAN);
        let aim = format!("{:.3} ± 0.01", 1.0 - points / 100.0);
        let name = format!(
            "{what}, {:.0} per second: `--max-overhead {budget}`",
            median(&mut m.unwatched)
        );
        let of = format!("slices of {slice} s");
        rows.push(row(format!("{name}, throughput, {of}"), centre(&m.wall), &aim));
        rows.push(row(
            format!("{name}, work per second of its own CPU time, {of}"),
            centre(&m.cpu),
            &aim,
        ));
        rows.push(row(
            format!("{name}, throughput outside windows, {of}"),
            centre(&m.outside),
            "–",
        ));
        rows.push(row(
            format!("{name}, work in and around windows against that beside them, {of}"),
            centre(&m.around),
            &aim,
        ));
        rows.push(row(
            format!("{name}, what the agent says"),
            format!(
                "{:.2} % of its work lost, {:.2} % of the time covered; itself it used {:.3} CPUs",
                median(&mut m.estimated) * 100.0,
                median(&mut m.coverage) * 100.0,
                median(&mut m.agent),
            ),
            "–",
        ));
        let mut errors: Vec<f64> = m.errors.iter().map(|e| e.abs()).collect();
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let inside = match m.inside {
            (_, 0) => "; no 95 % interval was given".to_owned(),
            (in_it, of) => format!(
                "; in the 95 % interval (± {:.1} %) {in_it} of {of} times",
                median(&mut m.widths) * 100.0
            ),
        };
        rows.push(row(
            format!("{name}, allocations counted against the program's own count"),
            format!(
                "median error {:.1} %, worst {:.1} %{inside}",
                median(&mut errors) * 100.0,
                worst * 100.0
            ),
            "–",
        ));
    }
    rows
}

/// With as much work per object as small programs do: 10 million a second.
pub fn alloc_loop(programs: &Programs, pairs: usize) -> Result<Rows> {
    let mut c = Command::new(&programs.alloc_loop);
    c.args(["-workers", "1", "-ballast", "100000000", "-work", "6"]);
    let (meter, pid) = Meter::start(&mut c)?;
    let subject = Subject { work: &meter, allocations: &meter, pid };
    let mut measured = measure(programs, &subject, pairs)?;
    Ok(rows("Allocation loop", &mut measured))
}

pub fn http(programs: &Programs, pairs: usize) -> Result<Rows> {
    let s = Service::start_apart(programs, &["-ballast", "50000000", "-count"], &FULL_LOAD)?;
    let subject = Subject { work: &s.load, allocations: &s.shop, pid: s.pid };
    let mut measured = measure(programs, &subject, pairs)?;
    Ok(rows("HTTP service at full load on one CPU", &mut measured))
}
