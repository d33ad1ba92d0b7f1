//! What watching real Python services costs, beside what others cost, and how
//! soon their leaks are named.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Programs, Rows,
    meter::{self, Meter, Watcher},
    pairs::{centre, figure, median},
    row, seconds,
};
use crate::{command::Running, pyservices};

/// Long enough for a census at the default interval to fall into each.
const WINDOW: u64 = 6;
const SETTLE: u64 = 5;
const PEER_PAIRS: usize = 3;
const PEER_WINDOW: u64 = 4;
const PEERS: &str = "memray==1.15.0 py-spy==0.4.0";

/// A service under full load: its script, and the interpreter.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    script: &'static str,
    pub minor: u32,
}

pub const FLASK: Kind = Kind { name: "Flask under gunicorn", script: "flask_app.py", minor: 11 };
pub const AIOHTTP: Kind = Kind { name: "aiohttp", script: "aiohttp_app.py", minor: 12 };
pub const WORKER: Kind =
    Kind { name: "Worker on threads", script: "worker.py tracebacks", minor: 13 };

/// How the interpreter is started.
#[derive(Clone, Copy, PartialEq)]
pub enum How {
    Plain,
    Tracemalloc,
    Memray,
}

fn peers(root: &Path, minor: u32) -> PathBuf {
    pyservices::packages(root, minor).join("peers")
}

pub struct Service {
    /// `None`: it is the one that the meter runs.
    server: Option<Running>,
    pub load: Meter,
    pub pid: u32,
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            // gunicorn ends its workers when it is asked to.
            // SAFETY: the child is ours and not reaped yet.
            unsafe { libc::kill(server.0.id().cast_signed(), libc::SIGTERM) };
            thread::sleep(seconds(1));
        }
    }
}

impl Service {
    pub fn start(root: &Path, kind: Kind, how: How, env: &[(&str, &str)]) -> Result<Self> {
        let mut c = pyservices::python(root, kind.minor)?;
        c.env("BALLAST", "100000").envs(env.iter().copied());
        let web = !kind.script.starts_with("worker");
        match how {
            How::Plain => {}
            How::Tracemalloc => {
                c.env("PYTHONTRACEMALLOC", "1");
            }
            How::Memray => {
                let out = root.join("target/bench/memray.bin");
                let own = pyservices::packages(root, kind.minor);
                c.env("PYTHONPATH", std::env::join_paths([own, peers(root, kind.minor)])?);
                c.args(["-m", "memray", "run", "-q", "-f", "--follow-fork", "-o"]).arg(out);
            }
        }
        if kind.script == "flask_app.py" {
            c.args(["-m", "gunicorn", "-c", "gunicorn_conf.py", "flask_app:app"]);
        } else {
            c.args(kind.script.split(' '));
        }
        if !web {
            let (load, pid) = Meter::start(c.env("PROGRESS", "1"))?;
            return Ok(Self { server: None, load, pid });
        }
        let (server, ready) = Running::start(&mut c)?;
        let ready: Value = serde_json::from_str(&ready).context("the service did not start")?;
        let addr = ready["addr"].as_str().context("the service gave no address")?;
        let pid = server.0.id();
        let mut load = pyservices::python(root, kind.minor)?;
        let rate = env.iter().find(|(name, _)| *name == "RATE").map_or("0", |(_, rate)| rate);
        load.args(["load.py", addr, "8", rate]).env("BALLAST", "0").env("PROGRESS", "1");
        let (load, _) = Meter::start(&mut load)?;
        Ok(Self { server: Some(server), load, pid })
    }
}

pub fn watch(programs: &Programs, pids: &[u32]) -> Command {
    let mut c = Command::new(&programs.claw);
    c.args(["watch", "-q", "--format", "jsonl", "--children"]).env("CLAW_EBPF_STATE", "none");
    pids.iter().for_each(|pid| {
        c.args(["--pid", &pid.to_string()]);
    });
    c
}

/// Ratios of watched windows to the mean of the unwatched ones around them.
fn interleaved(
    load: &Meter,
    pairs: usize,
    (settle, window): (u64, u64),
    mut begin: impl FnMut() -> Result<Watcher>,
) -> Result<(Vec<f64>, f64)> {
    let (mut ratios, mut unwatched) = (Vec::new(), Vec::new());
    let mut before = load.rate(seconds(window))?;
    for round in 0..pairs {
        let watcher = begin()?;
        thread::sleep(seconds(settle));
        let watched = load.rate(seconds(window))?;
        drop(watcher);
        thread::sleep(seconds(1));
        let after = load.rate(seconds(window))?;
        ratios.push(watched / f64::midpoint(before, after));
        unwatched.push(before);
        before = after;
        println!("round {} of {pairs}: {ratios:.4?}", round + 1);
    }
    Ok((ratios, median(&mut unwatched)))
}

/// A service that is started in another way against one that is not, in turns.
fn started_anew(root: &Path, kind: Kind, how: How) -> Result<Vec<f64>> {
    let rate = |how| {
        let s = Service::start(root, kind, how, &[])?;
        s.load.latest()?;
        thread::sleep(seconds(2));
        s.load.rate(seconds(PEER_WINDOW))
    };
    (0..PEER_PAIRS).map(|_| Ok(rate(how)? / rate(How::Plain)?)).collect()
}

/// Throughput of a healthy service with and without each.
pub fn throughput(root: &Path, programs: &Programs, kind: Kind, pairs: usize) -> Result<Rows> {
    let peers = peers(root, kind.minor);
    pyservices::install_for(kind.minor, PEERS, &peers)?;
    let s = Service::start(root, kind, How::Plain, &[])?;
    s.load.latest()?;
    thread::sleep(seconds(4));
    let (ratios, rate) = interleaved(&s.load, pairs, (SETTLE, WINDOW), || {
        Watcher::start(&mut watch(programs, &[s.pid]), "\"Watching CPython\"")
    })?;
    let what = format!("{} on 3.{}, {rate:.0} requests/s", kind.name, kind.minor);
    let mut rows =
        vec![row(format!("{what}: `claw-ebpf watch --children`"), centre(&ratios), "≥ 0.99")];
    let spied = interleaved(&s.load, PEER_PAIRS, (1, PEER_WINDOW), || {
        let mut c = Command::new(peers.join("bin/py-spy"));
        c.args(["record", "--subprocesses", "-d", "60", "-o"]);
        c.arg(root.join("target/bench/py-spy.svg")).args(["--pid", &s.pid.to_string()]);
        Watcher::start(&mut c, "")
    });
    drop(s);
    let mut add = |name: &str, ratios: Result<Vec<f64>>| {
        let text = ratios.map_or_else(|e| format!("does not run here: {e}"), |r| figure(&r));
        rows.push(row(format!("{what}: {name}"), text, "–"));
    };
    add("py-spy (stacks alone)", spied.map(|(ratios, _)| ratios));
    add("`PYTHONTRACEMALLOC=1`", started_anew(root, kind, How::Tracemalloc));
    add("memray from the start", started_anew(root, kind, How::Memray));
    Ok(rows)
}

/// Seconds until a leak of 5 % a minute of 200 MB is named, on several versions
/// at once: the type, and the tenant with the line.
pub fn verdict(root: &Path, programs: &Programs) -> Result<Rows> {
    let env = [("LEAK", "1"), ("BALLAST", "165000"), ("RATE", "1450"), ("PROGRESS", "1")];
    let services: Vec<(u32, Service)> = [11, 12, 13]
        .into_iter()
        .map(|minor| {
            let kind = Kind { name: "", script: "worker.py lru", minor };
            Ok((minor, Service::start(root, kind, How::Plain, &env)?))
        })
        .collect::<Result<_>>()?;
    thread::sleep(seconds(65));
    let pids: Vec<u32> = services.iter().map(|(_, s)| s.pid).collect();
    let began = Instant::now();
    let mut c = watch(programs, &pids);
    let mut child = c.args(["--duration", "180s"]).stdout(Stdio::piped()).spawn()?;
    let out = child.stdout.take().context("no output")?;
    let _agent = Running(child);
    let mut first: Vec<[Option<f64>; 2]> = vec![[None; 2]; pids.len()];
    let mut rates = vec![0.0; pids.len()];
    for line in BufReader::new(out).lines() {
        let f: Value = serde_json::from_str(&line?)?;
        let is_it =
            f["event"] == "finding" && f["verdict"] == "leak" && f["type"] == "__main__.Report";
        let place = pids.iter().position(|pid| f["pid"] == *pid);
        let Some(i) = place.filter(|_| is_it) else { continue };
        let now = began.elapsed().as_secs_f64();
        let known =
            f["site"]["line"].is_u64() && matches!(f["tenant"].as_str(), Some("acme" | "umbrella"));
        if first[i][0].is_none() {
            rates[i] = f["growth"]["percent_per_minute"].as_f64().unwrap_or(0.0);
        }
        first[i][0].get_or_insert(now);
        if known {
            first[i][1].get_or_insert(now);
        }
        if first.iter().all(|f| f[1].is_some()) {
            break;
        }
    }
    let each = |which: usize| {
        let text = |(i, f): (usize, &[Option<f64>; 2])| {
            let after = f[which].map_or("not found".to_owned(), |s| format!("{s:.0} s"));
            format!("3.{}: {after}", services[i].0)
        };
        first.iter().enumerate().map(text).collect::<Vec<_>>().join(", ")
    };
    let what = "Worker that leaks 5 %/min of a 200 MB heap (`lru_cache` on a method)";
    Ok(vec![
        row(format!("{what}: start to verdict"), each(0), "≤ 90 s"),
        row(format!("{what}: start to tenant and line"), each(1), "–"),
        row("The named type by itself, of the heap a minute", format!("{rates:.1?} %"), "–"),
    ])
}

/// Healthy services of all kinds for ten minutes.
pub fn twins(root: &Path, programs: &Programs) -> Result<Rows> {
    const LENGTH: u64 = 600;
    let kinds = [
        FLASK,
        AIOHTTP,
        WORKER,
        Kind { name: "Worker on threads", script: "worker.py lru", minor: 10 },
    ];
    let services: Vec<Service> = kinds
        .into_iter()
        .map(|kind| Service::start(root, kind, How::Plain, &[("RATE", "200")]))
        .collect::<Result<_>>()?;
    let pids: Vec<u32> = services.iter().map(|s| s.pid).collect();
    let mut c = watch(programs, &pids);
    c.args(["--interval", "5s", "--duration", &format!("{LENGTH}s")]);
    let out = c.stdout(Stdio::piped()).output()?;
    let report = meter::report(&out.stdout)?;
    println!("{:#}", report["findings"]);
    let targets = report["targets"].as_array().map_or(0, Vec::len);
    let ever = out
        .stdout
        .split(|b| *b == b'\n')
        .filter_map(|l| serde_json::from_slice::<Value>(l).ok())
        .filter(|e| e["event"] == "finding" && e["verdict"] == "leak")
        .count();
    Ok(vec![row(
        format!("Healthy twins, {targets} processes of four services on 3.10 to 3.13, ten minutes"),
        format!(
            "{ever} leaks said meanwhile, {} and {} suspects at the end",
            report["summary"]["leaks_detected"], report["summary"]["suspects"]
        ),
        "0",
    )])
}
