//! What exact mode costs under a budget, and how far its estimates are from
//! what the programs count themselves.

use std::{
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Programs, Rows,
    meter::{Meter, Service, get},
    pairs::{figure, median},
    row, seconds,
};

const WINDOW: u64 = 8;
/// Before and after the measured part of a watch: attaching, detaching.
const MARGIN: u64 = 2;

/// A program to measure: its work, and its own account of allocations.
struct Subject<'a> {
    meter: &'a Meter,
    pid: u32,
    /// Allocations so far, of the type named or all.
    count: &'a dyn Fn() -> Result<f64>,
    type_name: Option<&'a str>,
}

struct Measured {
    /// Work with over work without, per second and per CPU second.
    wall: Vec<f64>,
    cpu: Vec<f64>,
    /// Estimate over truth, less one.
    errors: Vec<f64>,
    /// How often the truth lay in the 95 % interval, of those with one.
    inside: (usize, usize),
    estimated: Vec<f64>,
    coverage: Vec<f64>,
    unwatched: Vec<f64>,
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
}

fn rate(s: &Subject) -> Result<Rate> {
    let (began, before) = s.meter.latest()?;
    let cpu = cpu_s(s.pid)?;
    thread::sleep(seconds(WINDOW));
    let (ended, after) = s.meter.latest()?;
    let done = after - before;
    Ok(Rate { wall: done / (ended - began), cpu: done / (cpu_s(s.pid)? - cpu) })
}

fn watched(programs: &Programs, s: &Subject, budget: &str, m: &mut Measured) -> Result<Rate> {
    let mut c = Command::new(&programs.claw);
    c.args(["watch", "-q", "--format", "json", "--mode", "exact", "--max-overhead", budget]);
    let duration = format!("{}s", WINDOW + 2 * MARGIN);
    c.args(["--pid", &s.pid.to_string(), "--duration", &duration]);
    let (before, began) = ((s.count)()?, std::time::Instant::now());
    let agent = c.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    thread::sleep(seconds(MARGIN));
    let rate = rate(s)?;
    let out = agent.wait_with_output()?;
    let truth = ((s.count)()? - before) / began.elapsed().as_secs_f64();
    let report: Value = serde_json::from_slice(&out.stdout)?;
    let rows = report["allocations"].as_array().context("no allocations in the report")?;
    let ours =
        rows.iter().filter(|a| a["kind"] == "object" && s.type_name.is_none_or(|t| a["type"] == t));
    let mut estimate = 0.0;
    let mut interval = None;
    for a in ours {
        estimate += a["count_per_s"].as_f64().unwrap_or(0.0);
        interval = a["interval95"][0].as_f64().zip(a["interval95"][1].as_f64());
    }
    m.errors.push(estimate / truth - 1.0);
    if let Some((low, high)) = interval.filter(|_| s.type_name.is_some()) {
        m.inside.0 += usize::from(low <= truth && truth <= high);
        m.inside.1 += 1;
    }
    let exact = &report["targets"][0]["exact"];
    m.estimated.push(exact["estimated_ratio"].as_f64().context("no estimate of the cost")?);
    m.coverage.push(exact["coverage"].as_f64().context("no coverage")?);
    println!(
        "  {budget}: {:.0} per s, {:.0} per CPU s, truth {truth:.0}/s, estimate {estimate:.0}/s, {} windows of {:.2} ms, cost {:.2} %",
        rate.wall,
        rate.cpu,
        exact["windows"],
        exact["covered_s"].as_f64().unwrap_or(0.0) * 1e3 / exact["windows"].as_f64().unwrap_or(1.0),
        exact["estimated_ratio"].as_f64().unwrap_or(0.0) * 100.0,
    );
    Ok(rate)
}

fn measure(
    programs: &Programs,
    s: &Subject,
    budgets: &[&str],
    pairs: usize,
) -> Result<Vec<Measured>> {
    let empty = || Measured {
        wall: Vec::new(),
        cpu: Vec::new(),
        errors: Vec::new(),
        inside: (0, 0),
        estimated: Vec::new(),
        coverage: Vec::new(),
        unwatched: Vec::new(),
    };
    let mut all: Vec<Measured> = budgets.iter().map(|_| empty()).collect();
    thread::sleep(seconds(3));
    let mut before = rate(s)?;
    for round in 0..pairs {
        for (budget, m) in budgets.iter().zip(&mut all) {
            let rate = watched(programs, s, budget, m)?;
            let after = self::rate(s)?;
            m.wall.push(rate.wall / f64::midpoint(before.wall, after.wall));
            m.cpu.push(rate.cpu / f64::midpoint(before.cpu, after.cpu));
            m.unwatched.push(before.wall);
            before = after;
        }
        let ratios: Vec<_> = all.iter().map(|m| (&m.wall, &m.cpu)).collect();
        println!("round {} of {pairs}: {ratios:.4?}", round + 1);
    }
    Ok(all)
}

fn rows(what: &str, budgets: &[&str], all: &mut [Measured]) -> Rows {
    let mut rows = Rows::new();
    for (budget, m) in budgets.iter().zip(all) {
        let points: f64 = budget.trim_end_matches('%').parse().unwrap_or(f64::NAN);
        let aim = format!("{:.3} ± 0.01", 1.0 - points / 100.0);
        let name = format!(
            "{what}, {:.0} per second: `--max-overhead {budget}`",
            median(&mut m.unwatched)
        );
        let estimated = median(&mut m.estimated) * 100.0;
        rows.push(row(
            format!("{name}, throughput"),
            format!(
                "{}; per CPU second {}; its own estimate {estimated:.2} % lost",
                figure(&m.wall),
                figure(&m.cpu)
            ),
            &aim,
        ));
        let mut errors: Vec<f64> = m.errors.iter().map(|e| e.abs()).collect();
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let inside = match m.inside {
            (_, 0) => String::new(),
            (in_it, of) => format!("; truth in the 95 % interval {in_it} of {of} times"),
        };
        rows.push(row(
            format!("{name}, allocations counted against the program's own count"),
            format!(
                "median error {:.1} %, worst {:.1} %, from {:.2} % of the time{inside}",
                median(&mut errors) * 100.0,
                worst * 100.0,
                median(&mut m.coverage) * 100.0
            ),
            "–",
        ));
    }
    rows
}

/// `runtime.MemStats.Mallocs`, as the heap profile prints it.
fn mallocs(addr: &str) -> Result<f64> {
    let text = String::from_utf8_lossy(&get(addr, "/debug/pprof/heap?debug=1")?).into_owned();
    let line = text.lines().find_map(|l| l.strip_prefix("# Mallocs = "));
    Ok(line.context("no Mallocs in the heap profile")?.trim().parse()?)
}

const BUDGETS: [&str; 2] = ["5%", "1%"];

/// With as much work per object as small programs do: 10 million a second.
pub fn alloc_loop(programs: &Programs, pairs: usize) -> Result<Rows> {
    let mut c = Command::new(&programs.alloc_loop);
    c.args(["-workers", "1", "-ballast", "100000000", "-work", "6"]);
    let (meter, pid) = Meter::start(&mut c)?;
    let count = || meter.latest().map(|(_, n)| n);
    let subject = Subject { meter: &meter, pid, count: &count, type_name: Some("main.item") };
    let mut measured = measure(programs, &subject, &BUDGETS, pairs)?;
    Ok(rows("Allocation loop", &BUDGETS, &mut measured))
}

pub fn http(programs: &Programs, pairs: usize) -> Result<Rows> {
    let s = Service::start(programs, &["-ballast", "50000000"], &["-conns", "8"])?;
    ensure!(mallocs(&s.addr)? > 0.0, "the service has allocated nothing");
    let count = || mallocs(&s.addr);
    let subject = Subject { meter: &s.load, pid: s.pid, count: &count, type_name: None };
    let mut measured = measure(programs, &subject, &BUDGETS, pairs)?;
    Ok(rows("HTTP service at full load", &BUDGETS, &mut measured))
}
