//! Real Python services of several tenants under load: a leak of a different
//! kind in each, and healthy twins beside them.
//!
//! Here each runs on one interpreter; `cargo xtask pyservices` runs all of them
//! on every one (`CLAW_PYTHON_MINOR`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use claw_ebpf::{
    record::Reader,
    stream::{CensusItem, Item, PyWindow},
};
use serde_json::Value;

use crate::common::*;

const FIXTURES: &str = "tests/fixtures/python/services";
/// As in `truth.py`.
const TENANTS: [&str; 8] = ["acme", "bolt", "umbrella", "dune", "ecru", "fern", "gale", "hive"];
const LEAKING: [&str; 2] = ["acme", "umbrella"];
/// Share of the leaked instances that has to be given to the right tenant and
/// line.
const RIGHT: f64 = 0.95;

/// A service, and what is to be found in it when it leaks.
struct Kind {
    name: &'static str,
    script: &'static str,
    /// Requests or jobs a second.
    rate: u32,
    /// Interpreter on which it runs when it leaks, and when it does not.
    minors: [u32; 2],
    type_name: &'static str,
    marker: &'static str,
    /// Begins the holder's root.
    root: &'static str,
    /// What it needs to say at least of who holds it and what to do.
    remedy: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "Flask under gunicorn: a dict of dicts as a cache without eviction",
        script: "flask_app.py",
        rate: 250,
        minors: [11, 12],
        type_name: "dict",
        marker: "leak: quote",
        root: "global flask_app.QUOTES",
        remedy: "without eviction",
    },
    Kind {
        name: "aiohttp: registered handlers that are never removed",
        script: "aiohttp_app.py",
        rate: 250,
        minors: [12, 13],
        type_name: "__main__.Subscription",
        marker: "leak: subscribe",
        root: "global __main__.FEED",
        remedy: "registers callables",
    },
    Kind {
        name: "worker: exceptions kept with their tracebacks",
        script: "worker.py tracebacks",
        rate: 300,
        minors: [13, 10],
        type_name: "__main__.Rejected",
        marker: "leak: rejected",
        root: "global __main__.FAILED",
        remedy: "",
    },
    Kind {
        name: "worker: an `lru_cache` on a method",
        script: "worker.py lru",
        rate: 300,
        minors: [10, 11],
        type_name: "__main__.Report",
        marker: "leak: report",
        root: "functools cache of __main__.Report.render",
        remedy: "on a method",
    },
];

/// A service, and the load on it.
struct Service {
    kind: &'static Kind,
    minor: u32,
    process: Running,
    _load: Option<Running>,
    truth: PathBuf,
}

impl Drop for Service {
    fn drop(&mut self) {
        // gunicorn ends its workers when it is asked to.
        // SAFETY: the child is ours and not reaped yet.
        unsafe { libc::kill(self.process.pid().cast_signed(), libc::SIGTERM) };
        std::thread::sleep(Duration::from_millis(300));
    }
}

impl Service {
    fn start(kind: &'static Kind, leaks: bool, dir: &Path) -> Self {
        let minor = match std::env::var("CLAW_PYTHON_MINOR") {
            Ok(minor) => minor.parse().unwrap(),
            Err(_) => installed(kind.minors[usize::from(!leaks)]),
        };
        let (mut words, fixtures) = (kind.script.split(' '), root().join(FIXTURES));
        let script = words.next().unwrap();
        let truth = dir.join(format!("{}-{}", kind.type_name, u8::from(leaks)));
        let mut c = python(minor);
        match script {
            "flask_app.py" => c.args(["-m", "gunicorn", "-c", "gunicorn_conf.py", "flask_app:app"]),
            _ => c.arg(script).args(words),
        };
        c.current_dir(&fixtures).env("LEAK", if leaks { "1" } else { "0" }).env("TRUTH", &truth);
        let process = Running::start(c.env("RATE", kind.rate.to_string()));
        let load = process.json()["addr"].as_str().map(|addr| {
            let mut c = python(minor);
            c.arg("load.py").args([addr, "4", &kind.rate.to_string()]).env("BALLAST", "0");
            Running::start(c.current_dir(&fixtures))
        });
        Self { kind, minor, process, _load: load, truth }
    }

    /// Its own count: when it kept an object for ever, and whose, by process.
    fn truth(&self) -> BTreeMap<u32, Vec<(u64, &'static str)>> {
        let name = self.truth.file_name().unwrap().to_str().unwrap().to_owned() + ".";
        let files = fs::read_dir(self.truth.parent().unwrap()).unwrap();
        let of = |file: fs::DirEntry| {
            let pid = file.file_name().to_str()?.strip_prefix(&name)?.parse().ok()?;
            let bytes = fs::read(file.path()).unwrap();
            let (words, _) = bytes.as_chunks::<8>();
            let kept = words.chunks_exact(2).map(|w| {
                let tenant = u64::from_le_bytes(w[1]) as usize;
                (u64::from_le_bytes(w[0]), TENANTS[tenant])
            });
            Some((pid, kept.collect()))
        };
        files.filter_map(|f| of(f.unwrap())).collect()
    }

    fn line(&self) -> u64 {
        let script = self.kind.script.split(' ').next().unwrap();
        marked_line_of(Path::new(FIXTURES).join(script), self.kind.marker)
    }
}

fn packages(minor: u32) -> PathBuf {
    root().join(format!("target/pyservices/3.{minor}"))
}

/// That version, or another where it is not here.
fn installed(minor: u32) -> u32 {
    let there = |minor: &u32| packages(*minor).join("python").is_file();
    if there(&minor) {
        return minor;
    }
    let other = (10..=13).find(there).expect("`cargo xtask test` installs the services");
    println!("no Python 3.{minor} here: 3.{other} in its place");
    other
}

fn python(minor: u32) -> Command {
    let dir = packages(minor);
    let python = fs::read_to_string(dir.join("python"))
        .unwrap_or_else(|e| panic!("{}: {e}: run `cargo xtask test`", dir.display()));
    let mut c = Command::new(python);
    c.env("PYTHONPATH", dir).env_remove("PYENV_VERSION");
    c
}

/// Of the objects that were leaked in windows: how many, and how many of them
/// were given to the right tenant at the right line.
fn score(service: &Service, windows: &[PyWindow]) -> (u64, u64) {
    let truth = service.truth();
    let line = service.line();
    let (mut leaked, mut right) = (0, 0);
    for w in windows {
        let Some(kept) = truth.get(&w.pid) else { continue };
        let Some(gain) = w.gains.iter().find(|g| g.type_name == service.kind.type_name) else {
            continue;
        };
        for tenant in LEAKING {
            let inside =
                |(t, who): &&(u64, &str)| *who == tenant && (w.from_ns..w.to_ns).contains(t);
            let all = kept.iter().filter(inside).count() as u64;
            let here = |stack: u32| {
                let frames = w.stacks.get(stack as usize);
                let own = frames.and_then(|f| f.iter().find(|f| f.file.contains(FIXTURES)));
                own.is_some_and(|f| u64::from(f.line) == line)
            };
            let named = gain
                .by
                .iter()
                .filter(|by| by.tenant.as_deref() == Some(tenant) && here(by.stack))
                .map(|by| by.stayed)
                .sum::<u64>();
            (leaked, right) = (leaked + all, right + named.min(all));
        }
    }
    (leaked, right)
}

/// Whether a target or a finding is of one of a service's processes.
fn owns(service: &Service, v: &Value) -> bool {
    let (pid, parent) = (v["pid"].as_u64().unwrap(), u64::from(service.process.pid()));
    let child = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default().to_owned();
        after.split_whitespace().nth(1).and_then(|p| p.parse().ok()) == Some(parent)
    };
    pid == parent || child()
}

#[test]
#[ignore = "needs root and BPF"]
fn leaks_of_each_kind_and_healthy_twins() {
    let dir = tempfile::tempdir().unwrap();
    let start = |leaks| KINDS.iter().map(move |k| (k, leaks));
    let all: Vec<Service> = start(true)
        .chain(start(false))
        .map(|(k, leaks)| Service::start(k, leaks, dir.path()))
        .collect();
    let (leaking, healthy) = all.split_at(KINDS.len());
    let recording = dir.path().join("run.claw").display().to_string();
    let mut args: Vec<String> = ["watch", "--children", "--interval", "5s", "--max-pause", "2s"]
        .map(str::to_owned)
        .to_vec();
    args.extend(["--record".to_owned(), recording.clone()]);
    args.extend(all.iter().flat_map(|s| ["--pid".to_owned(), s.process.pid().to_string()]));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (_, report) = watch_until(&args, Duration::from_secs(95), |found| {
        let leaks = |s: &Service| {
            let own = found.iter().filter(|f| f["verdict"] == "leak" && owns(s, f));
            let named = own.filter(|f| f["type"] == s.kind.type_name && !f["holder"].is_null());
            let tenants: BTreeSet<&str> = named.filter_map(|f| f["tenant"].as_str()).collect();
            LEAKING.iter().all(|t| tenants.contains(t))
        };
        leaking.iter().all(leaks)
    });
    let (mut windows, mut censuses) = (Vec::new(), Vec::new());
    for item in Reader::open(Path::new(&recording)).unwrap().1 {
        match item {
            Item::PyWindow(w) => windows.push(w),
            Item::Census(c) => censuses.push(c),
            _ => {}
        }
    }
    let found = report["findings"].as_array().unwrap();
    println!("| Service | Leak found after | Tenants and lines | Right |\n|---|---|---|---|");
    let mut wrong = Vec::new();
    for s in leaking {
        let of: Vec<&Value> = found.iter().filter(|f| owns(s, f)).collect();
        judge(s, &of, (&windows, &censuses), &mut wrong);
    }
    for s in healthy {
        let of: Vec<&Value> =
            found.iter().filter(|f| f["verdict"] == "leak" && owns(s, f)).collect();
        println!(
            "| healthy twin on 3.{}: {} | {} | | |",
            s.minor,
            s.kind.name,
            match of.len() {
                0 => "silent".to_owned(),
                n => format!("{n} false findings"),
            }
        );
        if !of.is_empty() {
            wrong.push(format!("healthy {}: {of:#?}", s.kind.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What each census and window of a service saw of the type that leaks.
fn described(s: &Service, windows: &[PyWindow], censuses: &[CensusItem]) -> Vec<String> {
    let name = &s.kind.type_name;
    let counted = |c: &CensusItem| {
        let t = c.types.iter().find(|t| t.name == *name)?;
        let (at, outside) = (c.t_ns / 1_000_000, c.outside_bytes);
        Some(format!("{} at {at} ms: {} objects, {outside} bytes outside", c.pid, t.objects))
    };
    let truth = s.truth();
    let of = |w: &PyWindow| {
        let kept = truth.get(&w.pid)?.iter().filter(|(t, _)| (w.from_ns..w.to_ns).contains(t));
        let gain = w.gains.iter().find(|g| g.type_name == s.kind.type_name)?;
        let by: Vec<_> = gain.by.iter().map(|b| (&b.tenant, b.stayed)).collect();
        Some(format!(
            "{} at {} ms for {} ms: {} leaked, {} stayed, {} known{}, by {by:?}; {:?}; {:?}",
            w.pid,
            w.from_ns / 1_000_000,
            (w.to_ns - w.from_ns) / 1_000_000,
            kept.count(),
            gain.stayed,
            gain.entered,
            if gain.held { ", held" } else { "" },
            w.functions,
            w.lost,
        ))
    };
    censuses.iter().filter_map(counted).chain(windows.iter().filter_map(of)).collect()
}

/// Compare what was found in a service that leaks with what is to be found.
fn judge(
    s: &Service,
    found: &[&Value],
    (windows, censuses): (&[PyWindow], &[CensusItem]),
    wrong: &mut Vec<String>,
) {
    let (kind, line) = (s.kind, s.line());
    let leaks: Vec<&Value> = found
        .iter()
        .filter(|f| f["verdict"] == "leak" && f["type"] == kind.type_name)
        .copied()
        .collect();
    let mut named = BTreeSet::new();
    for f in &leaks {
        let (tenant, at) = (f["tenant"].as_str().unwrap(), f["site"]["line"].as_u64());
        let stack = f["site"]["stack"].as_array().unwrap();
        let innocent = tenant != "-" && !LEAKING.contains(&tenant);
        let elsewhere = !stack.is_empty() && at != Some(line);
        if innocent || elsewhere {
            wrong.push(format!("{} on 3.{}: {f:#}", kind.name, s.minor));
        } else if !stack.is_empty() {
            named.insert(tenant);
        }
        let root = f["holder"]["root"].as_str().unwrap_or_default();
        let remedy = f["remedy"]["text"].as_str().unwrap_or_default();
        if !root.starts_with(kind.root) || !remedy.contains(kind.remedy) {
            let held = format!("{}: {remedy}", f["holder"]);
            wrong.push(format!("{} on 3.{}: {held}: {f:#}", kind.name, s.minor));
        }
    }
    let (leaked, right) = score(s, windows);
    let share = right as f64 / leaked.max(1) as f64;
    let after = leaks.iter().filter_map(|f| f["detected_after_s"].as_f64()).min_by(f64::total_cmp);
    println!(
        "| 3.{}: {} | {} | {} | {:.1} % of {leaked} |",
        s.minor,
        kind.name,
        after.map_or("not found".to_owned(), |s| format!("{s:.0} s")),
        if named.is_empty() {
            "unknown".to_owned()
        } else {
            named.iter().copied().collect::<Vec<_>>().join(", ")
        },
        share * 100.0,
    );
    let enough = named == BTreeSet::from(LEAKING) && share >= RIGHT && leaked > 0;
    if leaks.is_empty() || !enough {
        let windows = described(s, windows, censuses);
        let what = format!("{} on 3.{}: {share:.3} of {leaked}", kind.name, s.minor);
        wrong.push(format!("{what}: {windows:#?}: {found:#?}"));
    }
}
