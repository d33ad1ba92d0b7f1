//! Goroutines read from outside, beside a debugger and the service's own dump:
//! the time it takes, and for how long the service stood still.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::{
    Programs, Rows,
    meter::{Meter, get},
    pairs::{Mode, figure, measure, median},
    row, seconds,
};
use crate::command::status;

const SIZES: [u32; 3] = [10_000, 100_000, 1_000_000];
/// What throughput is measured with.
const MEASURED: u32 = 100_000;
/// A debugger takes minutes for more.
const MOST_FOR_DEBUGGER: u32 = 100_000;
const RUNS: usize = 5;
/// Reads Go 1.26.
const DELVE: &str = "github.com/go-delve/delve/cmd/dlv@v1.26.0";

struct Crowd {
    meter: Meter,
    pid: u32,
    addr: String,
}

impl Crowd {
    fn start(programs: &Programs, many: u32) -> Result<Self> {
        let mut c = Command::new(&programs.crowd);
        c.args(["-many", &many.to_string()]);
        let (meter, pid) = Meter::start(&mut c)?;
        let head: serde_json::Value = serde_json::from_str(&meter.head()?)?;
        let addr = head["addr"].as_str().context("the crowd gave no address")?.to_owned();
        thread::sleep(seconds(2));
        Ok(Self { meter, pid, addr })
    }

    /// Milliseconds that `one` takes (median), and the longest time that the
    /// program's ticker was overdue meanwhile.
    fn timed(&self, runs: usize, mut one: impl FnMut() -> Result<()>) -> Result<(f64, f64)> {
        let mut times = Vec::new();
        get(&self.addr, "/gap")?;
        for _ in 0..runs {
            let began = Instant::now();
            one()?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        let gap = String::from_utf8(get(&self.addr, "/gap")?)?;
        Ok((median(&mut times), gap.trim().parse::<f64>()? / 1e6))
    }
}

fn delve(programs: &Programs) -> Result<PathBuf> {
    let dir = programs.crowd.with_file_name("bin");
    let dlv = dir.join("dlv");
    if !dlv.exists() {
        status(Command::new(&programs.go).args(["install", DELVE]).env("GOBIN", &dir))?;
    }
    Ok(dlv)
}

pub fn goroutines(programs: &Programs, pairs: usize) -> Result<Rows> {
    let dlv = delve(programs)?;
    let script = programs.crowd.with_file_name("dlv-script");
    std::fs::write(&script, "goroutines -t 64\nexit\n")?;
    let mut rows = Rows::new();
    for many in SIZES {
        let crowd = Crowd::start(programs, many)?;
        let pid = crowd.pid.to_string();
        let mut add = |what: &str, (took, gap): (f64, f64), aim: &str| {
            let figure = format!("{took:.0} ms; ticker overdue by at most {gap:.0} ms");
            rows.push(row(format!("{many} goroutines: {what}"), figure, aim));
        };
        add(
            "nothing for 2 s, for comparison",
            crowd.timed(1, || {
                thread::sleep(seconds(2));
                Ok(())
            })?,
            "–",
        );
        let ours = crowd.timed(RUNS, || {
            let out = Command::new(&programs.claw).args(["goroutines", "--pid", &pid]).output()?;
            ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            Ok(())
        })?;
        add("`claw-ebpf goroutines`", ours, if many == MEASURED { "≤ 150 ms" } else { "–" });
        let own =
            crowd.timed(1, || get(&crowd.addr, "/debug/pprof/goroutine?debug=2").map(drop))?;
        add("its own `debug=2` profile (of at most 64 MiB)", own, "–");
        if many <= MOST_FOR_DEBUGGER {
            let debugger = crowd.timed(1, || {
                let mut c = Command::new(&dlv);
                c.args(["attach", &pid, "--allow-non-terminal-interactive=true", "--init"]);
                let out = c.arg(&script).stdin(Stdio::null()).output()?;
                let text = String::from_utf8_lossy(&out.stdout);
                ensure!(text.contains(" goroutines]"), "delve lists nothing: {text:.2000}");
                Ok(())
            })?;
            add("`dlv attach`, all with their stacks", debugger, "–");
        }
        if many == MEASURED {
            let target = (crowd.pid, crowd.addr.as_str());
            let (ratios, rate) =
                measure(programs, &crowd.meter, target, &[Mode::ReadGoroutines], pairs)?;
            let what = format!("A loop that counts to {:.0} million/s beside them", rate / 1e6);
            let what = format!("{what}: `claw-ebpf goroutines` every 10 s");
            rows.push(row(what, figure(&ratios[0]), "≥ 0.995"));
        }
    }
    Ok(rows)
}
