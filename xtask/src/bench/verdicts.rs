//! How soon a leak is named, and how near the bytes are.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Programs, Rows,
    meter::{self, Meter, Service},
    pairs::watch,
    row, seconds,
};
use crate::command::Running;

/// Seconds from the agent's start to its first leak, which has to be of this
/// tenant and line.
fn first_leak(programs: &Programs, pid: u32, function: &str, most: u64) -> Result<Option<f64>> {
    let began = Instant::now();
    let mut c = watch(programs, pid);
    let mut child = c.args(["--duration", &format!("{most}s")]).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().context("no output")?;
    let _agent = Running(child);
    for line in BufReader::new(out).lines() {
        let event: Value = serde_json::from_str(&line?)?;
        if event["event"] == "finding" && event["verdict"] == "leak" {
            let (tenant, site) = (&event["tenant"], &event["site"]["function"]);
            ensure!(tenant == "acme-corp", "wrong tenant {tenant}");
            ensure!(site.as_str().is_some_and(|s| s.contains(function)), "wrong site {site}");
            return Ok(Some(began.elapsed().as_secs_f64()));
        }
    }
    Ok(None)
}

fn figure(times: &[Option<f64>]) -> String {
    let each: Vec<String> = times
        .iter()
        .map(|t| t.map_or_else(|| "not found".to_owned(), |t| format!("{t:.0} s")))
        .collect();
    each.join(", ")
}

pub fn time_to_verdict(programs: &Programs) -> Result<Rows> {
    let mut fast = Vec::new();
    for _ in 0..3 {
        // 5 % of 200 MB a minute.
        let leak = ["-leak", "session", "-leak-rate", "166667", "-ballast", "200000000"];
        let s = Service::start(programs, &leak, &["-rate", "1500"])?;
        thread::sleep(seconds(65));
        fast.push(first_leak(programs, s.pid, "Auth", 120)?);
        println!("leak of 5 %/min: {fast:?}");
    }
    let (_loop, pid) = Meter::start(
        Command::new(&programs.alloc_loop)
            .args(["-size", "1024", "-rate", "524288000", "-leak", "65536"])
            .args(["-ballast", "50000000"]),
    )?;
    let slow = first_leak(programs, pid, "leaking", 400)?;
    println!("leak of 64 KiB/s: {slow:?}");
    Ok(vec![
        row("Start to first correct verdict, 5 %/min of a 200 MB heap", figure(&fast), "< 60 s"),
        row(
            "Start to first correct verdict, 64 KiB/s beside 500 MiB/s of garbage",
            figure(&[slow]),
            "< 300 s",
        ),
    ])
}

/// Four tenants take 100 MB each while watched.
pub fn held_per_tenant(programs: &Programs) -> Result<Rows> {
    let mut worst: f64 = 0.0;
    let mut errors = Vec::new();
    for _ in 0..3 {
        let mut child = Command::new(&programs.alloc_loop)
            .args(["-hold", "100000000", "-workers", "1", "-rate", "10000000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut out = BufReader::new(child.stdout.take().context("no output")?);
        let mut stdin = child.stdin.take().context("no input")?;
        let holder = Running(child);
        let mut line = String::new();
        out.read_line(&mut line)?;
        let mut c = watch(programs, holder.0.id());
        let agent = c.args(["--duration", "15s"]).stdout(Stdio::piped()).spawn()?;
        thread::sleep(seconds(3));
        writeln!(stdin, "hold")?;
        line.clear();
        out.read_line(&mut line)?;
        let truth: Value = serde_json::from_str(&line)?;
        // The rest of its output has to go somewhere while it is watched.
        thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        let report = agent.wait_with_output()?;
        let report = meter::report(&report.stdout)?;
        for tenant in report["tenants"].as_array().context("no tenants")? {
            let Some(true_bytes) = truth[tenant["tenant"].as_str().unwrap_or_default()].as_f64()
            else {
                continue;
            };
            let error = tenant["live_bytes"].as_f64().unwrap_or(0.0) / true_bytes - 1.0;
            errors.push(format!("{:+.1} %", error * 100.0));
            worst = worst.max(error.abs());
        }
    }
    let what = "In-use bytes per tenant against its own count, 4 tenants of 100 MB, 3 runs";
    let figure = format!("worst {:.1} % of {}", worst * 100.0, errors.join(", "));
    Ok(vec![row(what, figure, "≤ 10 %")])
}
