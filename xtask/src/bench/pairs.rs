//! Throughput with a watcher attached, against without.

use std::{process::Command, thread};

use anyhow::Result;

use super::{
    Programs, Rows,
    meter::{FULL_LOAD, Meter, Service, Watcher, get},
    row, seconds,
};

/// Short: how fast a machine is drifts, and what a pair compares should be near in
/// time.
const WINDOW: u64 = 3;
/// From attaching to the steady state: by then the governor has decided.
const SETTLE: u64 = 3;
/// Pairs with the peers, whose cost is not a matter of a few per mille.
const PEER_PAIRS: usize = 3;

/// What is done to the service in a window.
#[derive(PartialEq)]
pub enum Mode {
    Claw,
    ReadHeap,
    ReadGoroutines,
    EveryMalloc,
    Memleak,
    Scrape,
}

impl Mode {
    /// Seconds until the window begins. What is done once is done in it.
    fn settle(&self) -> u64 {
        match self {
            Self::Claw => SETTLE,
            Self::EveryMalloc | Self::Memleak => 1,
            Self::ReadHeap | Self::ReadGoroutines | Self::Scrape => 0,
        }
    }

    /// What has to be kept during the window.
    fn begin(&self, programs: &Programs, pid: u32, addr: &str) -> Result<Option<Watcher>> {
        match self {
            Self::Claw => Watcher::start(&mut watch(programs, pid), "\"Attaching\"").map(Some),
            Self::ReadHeap | Self::ReadGoroutines => {
                let verb = if *self == Self::ReadHeap { "heap" } else { "goroutines" };
                let mut c = Command::new(&programs.claw);
                c.args([verb, "--pid", &pid.to_string()]);
                thread::spawn(move || c.output());
                Ok(None)
            }
            Self::EveryMalloc => {
                let program = format!(
                    "uprobe:/proc/{pid}/exe:\"runtime.mallocgc\" {{ @n = count(); }} \
                     interval:s:1 {{ printf(\"attached\\n\"); }}"
                );
                let mut c = Command::new("bpftrace");
                Watcher::start(c.args(["-p", &pid.to_string(), "-e", &program]), "attached")
                    .map(Some)
            }
            Self::Memleak => {
                let mut c = Command::new("memleak-bpfcc");
                Watcher::start(c.args(["-p", &pid.to_string(), "1"]), "outstanding").map(Some)
            }
            Self::Scrape => {
                let addr = addr.to_owned();
                thread::spawn(move || get(&addr, "/debug/pprof/heap"));
                Ok(None)
            }
        }
    }
}

pub fn watch(programs: &Programs, pid: u32) -> Command {
    let mut c = Command::new(&programs.claw);
    c.args(["watch", "-q", "--format", "jsonl", "--pid", &pid.to_string()]);
    c
}

/// Ratios of watched windows to the mean of the unwatched ones around them, and
/// the unwatched rate.
pub fn measure(
    programs: &Programs,
    meter: &Meter,
    (pid, addr): (u32, &str),
    modes: &[Mode],
    pairs: usize,
) -> Result<(Vec<Vec<f64>>, f64)> {
    let settle = |s| thread::sleep(seconds(s));
    thread::sleep(seconds(5));
    let mut ratios = vec![Vec::new(); modes.len()];
    let mut unwatched = Vec::new();
    let mut before = meter.rate(seconds(WINDOW))?;
    for round in 0..pairs {
        for (mode, ratios) in modes.iter().zip(&mut ratios) {
            let ours = matches!(mode, Mode::Claw | Mode::ReadHeap | Mode::ReadGoroutines);
            if !ours && round >= PEER_PAIRS {
                continue;
            }
            let watcher = mode.begin(programs, pid, addr)?;
            settle(mode.settle());
            let watched = meter.rate(seconds(WINDOW))?;
            drop(watcher);
            settle(1);
            let after = meter.rate(seconds(WINDOW))?;
            ratios.push(watched / f64::midpoint(before, after));
            unwatched.push(before);
            before = after;
        }
        println!("round {} of {pairs}: {ratios:.4?}", round + 1);
    }
    Ok((ratios, median(&mut unwatched)))
}

/// Both cores are busy with JSON work for several tenants.
pub fn http(programs: &Programs, pairs: usize) -> Result<Rows> {
    let s = Service::start(programs, &["-ballast", "50000000"], &FULL_LOAD)?;
    let modes = [Mode::Claw, Mode::EveryMalloc, Mode::Scrape];
    let (ratios, rate) = measure(programs, &s.load, (s.pid, &s.addr), &modes, pairs)?;
    let what = format!("HTTP service at full load, {rate:.0} requests/s");
    Ok(vec![
        row(format!("{what}: `claw-ebpf watch`"), figure(&ratios[0]), "≥ 0.995"),
        row(format!("{what}: a probe on every `mallocgc` (bpftrace)"), figure(&ratios[1]), "–"),
        row(
            format!("{what}: its own heap profile fetched every {WINDOW} s"),
            figure(&ratios[2]),
            "–",
        ),
    ])
}

/// Once with as much work per object as small programs do, once with next to
/// none: all that the machine can allocate.
pub fn alloc_loop(programs: &Programs, pairs: usize) -> Result<Rows> {
    let run = |work: &str, modes: &[Mode]| {
        let mut c = Command::new(&programs.alloc_loop);
        c.args(["-workers", "1", "-ballast", "100000000", "-work", work]);
        let (meter, pid) = Meter::start(&mut c)?;
        let (ratios, rate) = measure(programs, &meter, (pid, ""), modes, pairs)?;
        anyhow::Ok((ratios, format!("Allocation loop, {:.0} million/s", rate / 1e6)))
    };
    let (ratios, what) = run("6", &[Mode::Claw, Mode::EveryMalloc])?;
    let memleak = match run("6", &[Mode::Memleak]) {
        Ok((ratios, _)) => figure(&ratios[0]),
        Err(e) => format!("does not run here: {}", last_line(&e.to_string())),
    };
    let (bare, bare_what) = run("1", &[Mode::Claw])?;
    Ok(vec![
        row(format!("{what}: bcc's memleak"), memleak, "–"),
        row(format!("{what}: `claw-ebpf watch`"), figure(&ratios[0]), "≥ 0.995"),
        row(format!("{what}: a probe on every `mallocgc` (bpftrace)"), figure(&ratios[1]), "–"),
        row(
            format!("{bare_what}, nearly nothing but allocating: `claw-ebpf watch`"),
            figure(&bare[0]),
            "–",
        ),
    ])
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n == 0 {
        return f64::NAN;
    }
    f64::midpoint(values[(n - 1) / 2], values[n / 2])
}

/// Of a traceback, the line that says what is wrong.
fn last_line(text: &str) -> &str {
    text.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("no reason given")
}

/// Median and the interval of order statistics that holds it with 95 %
/// (binomial, normal approximation: n/2 ± 0.98·√n).
pub fn figure(ratios: &[f64]) -> String {
    let mut sorted = ratios.to_vec();
    let middle = median(&mut sorted);
    let n = sorted.len();
    let reach = 0.98 * (n as f64).sqrt();
    let low = ((n as f64 / 2.0 - reach).floor().max(0.0)) as usize;
    let high = ((n as f64 / 2.0 + reach).ceil() as usize).min(n.saturating_sub(1));
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => format!("{middle:.4} [{low:.4}, {high:.4}], {n} pairs"),
        _ => "not measured".to_owned(),
    }
}

/// The Hodges-Lehmann estimate of the centre, the median of the means of all two,
/// and its 95 % interval by Wilcoxon's signed ranks (normal approximation): a fifth
/// narrower than that of the median where many values scatter evenly.
fn hodges_lehmann(values: &[f64]) -> Option<[f64; 3]> {
    let n = values.len();
    let mut means: Vec<f64> = (0..n)
        .flat_map(|i| values[i..].iter().map(move |b| f64::midpoint(values[i], *b)))
        .collect();
    let middle = median(&mut means);
    let (half, n) = (means.len() as f64 / 2.0, n as f64);
    let reach = 1.96 * (n * (n + 1.0) * (2.0 * n + 1.0) / 24.0).sqrt();
    let low = (half - reach).floor().max(0.0) as usize;
    let high = ((half + reach).ceil() as usize).min(means.len().saturating_sub(1));
    Some([middle, *means.get(low)?, *means.get(high)?])
}

/// It for ratios of pairs, in words.
pub fn centre(ratios: &[f64]) -> String {
    let n = ratios.len();
    hodges_lehmann(ratios).map_or("not measured".to_owned(), |[middle, low, high]| {
        format!("{middle:.4} [{low:.4}, {high:.4}], {n} pairs, Hodges-Lehmann")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centre_of_what_scatters_evenly() {
        assert_eq!(centre(&[]), "not measured");
        assert_eq!(centre(&[0.5]), "0.5000 [0.5000, 0.5000], 1 pairs, Hodges-Lehmann");
        // Of 20 ratios, the 53rd mean from either end: the critical value of
        // Wilcoxon's T is 52.
        let ratios: Vec<f64> = (1..=20).map(|i| 1.0 + f64::from(i) / 100.0).collect();
        assert!(centre(&ratios).starts_with("1.1050 [1.0750, 1.1350]"), "{}", centre(&ratios));
        let mut outlier = ratios;
        outlier[19] = 9.0;
        assert!(centre(&outlier).starts_with("1.10"), "{}", centre(&outlier));
    }
}
