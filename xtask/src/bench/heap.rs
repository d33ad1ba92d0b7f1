//! Go's heap profile read from outside, beside the service writing it itself.

use std::{process::Command, time::Instant};

use anyhow::{Result, ensure};

use super::{
    Programs, Rows,
    meter::{FULL_LOAD, Service, get},
    pairs::{Mode, figure, measure, median},
    row,
};

const RUNS: usize = 20;

fn milliseconds(mut one: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        one()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&mut times))
}

pub fn heap(programs: &Programs, pairs: usize) -> Result<Rows> {
    let shop = ["-ballast", "50000000", "-leak", "session"];
    let s = Service::start(programs, &shop, &FULL_LOAD)?;
    let (ratios, rate) =
        measure(programs, &s.load, (s.pid, &s.addr), &[Mode::ReadHeap, Mode::Scrape], pairs)?;
    let outside = milliseconds(|| {
        let pid = s.pid.to_string();
        let out = Command::new(&programs.claw).args(["heap", "--pid", &pid]).output()?;
        ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    })?;
    let itself = milliseconds(|| get(&s.addr, "/debug/pprof/heap").map(drop))?;
    let what = format!("HTTP service at full load, {rate:.0} requests/s");
    Ok(vec![
        row(format!("{what}: `claw-ebpf heap` every 10 s"), figure(&ratios[0]), "≥ 0.995"),
        row(format!("{what}: its own heap profile every 10 s"), figure(&ratios[1]), "–"),
        row("One `claw-ebpf heap` of it, program start included", format!("{outside:.0} ms"), "–"),
        row("… and the service writing its own", format!("{itself:.0} ms"), "–"),
    ])
}
