//! What the agent itself takes.

use std::{fs, process::Command, thread};

use anyhow::{Context, Result};

use super::{
    Programs, Rows,
    meter::{Service, Watcher},
    row, seconds,
};

const LENGTH: u64 = 60;

/// Resident memory, MiB, and CPU time, s, of a process.
fn usage(pid: u32) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok())
        .context("no VmRSS")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(") ").context("odd stat")?.1.split_ascii_whitespace().collect();
    // Fields 14 and 15 of proc(5), counted from after the name.
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    // SAFETY: sysconf has no preconditions.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok((rss / 1024.0, (ticks(11) + ticks(12)) / per_second))
}

pub fn cost(programs: &Programs) -> Result<Rows> {
    let mut rows = Rows::new();
    for (services, rate) in [(1, "3000"), (10, "300")] {
        let running: Vec<Service> = (0..services)
            .map(|_| Service::start(programs, &["-ballast", "20000000"], &["-rate", rate]))
            .collect::<Result<_>>()?;
        let mut c = Command::new(&programs.claw);
        c.args(["watch", "-q", "--format", "jsonl"]);
        for s in &running {
            c.args(["--pid", &s.pid.to_string()]);
        }
        let watcher = Watcher::start(&mut c, "\"Attaching\"")?;
        thread::sleep(seconds(5));
        let (_, before) = usage(watcher.pid())?;
        thread::sleep(seconds(LENGTH));
        let (rss, after) = usage(watcher.pid())?;
        let cpu = (after - before) / LENGTH as f64 * 100.0;
        let many = if services == 1 { "one service" } else { "ten services" };
        rows.push(row(
            format!("The agent watching {many}, {} requests/s in all", 3000),
            format!("{rss:.0} MiB resident, {cpu:.1} % of one CPU"),
            "–",
        ));
    }
    Ok(rows)
}
