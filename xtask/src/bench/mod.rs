//! `cargo xtask bench`: the figures of `docs/benchmarks.md`, as ratios within
//! one run on this machine.

mod agent;
mod census;
mod exact;
mod goroutines;
mod heap;
mod meter;
mod page;
mod pairs;
mod python;
mod pywindow;
mod ready;
mod verdicts;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail};

use crate::{
    command::{apt_install, is_root, output, status},
    pyservices, toolchain,
};

const PARTS: [&str; 17] = [
    "http",
    "loop",
    "verdicts",
    "held",
    "ready",
    "agent",
    "heap",
    "goroutines",
    "exact-loop",
    "exact-http",
    "python-flask",
    "python-aiohttp",
    "python-worker",
    "python-window",
    "python-verdict",
    "python-twins",
    "census",
];

#[derive(clap::Args)]
pub struct Args {
    /// Only this part: http, loop, verdicts, held, ready, agent, heap, goroutines,
    /// exact-loop, exact-http, python (all of these), python-flask, python-aiohttp,
    /// python-worker, python-window, python-verdict, python-twins, census
    #[arg(value_parser = part)]
    only: Option<String>,

    /// Interleaved pairs
    #[arg(long, default_value_t = 10)]
    pairs: usize,
}

/// Whether a part is the one that was asked for, or one of its kind.
fn belongs(name: &str, only: &str) -> bool {
    name == only || name.strip_prefix(only).is_some_and(|rest| rest.starts_with('-'))
}

fn part(text: &str) -> Result<String, String> {
    if PARTS.iter().any(|name| belongs(name, text)) {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is none of {}", PARTS.join(", ")))
}

/// Programs that the parts run.
pub struct Programs {
    pub claw: PathBuf,
    pub shop: PathBuf,
    pub load: PathBuf,
    pub alloc_loop: PathBuf,
    pub crowd: PathBuf,
    pub go: PathBuf,
}

/// Rows of the table: what, figure, aim.
pub type Rows = Vec<[String; 3]>;

pub fn run(root: &Path, args: &Args) -> Result<()> {
    if !is_root() {
        bail!("the benchmarks attach BPF programs: run `sudo -E cargo xtask bench`");
    }
    let programs = build(root)?;
    pyservices::install(root)?;
    if output(Command::new("bpftrace").arg("--version")).is_err() {
        apt_install(&["bpftrace"], "the comparison with a probe on every mallocgc")?;
    }
    if output(Command::new("memleak-bpfcc").arg("--help")).is_err() {
        apt_install(&["bpfcc-tools"], "the comparison with bcc's memleak")?;
    }
    let pairs = args.pairs;
    let parts: [(&str, &dyn Fn() -> Result<Rows>); PARTS.len()] = [
        ("http", &|| pairs::http(&programs, pairs)),
        ("loop", &|| pairs::alloc_loop(&programs, pairs)),
        ("verdicts", &|| verdicts::time_to_verdict(&programs)),
        ("held", &|| verdicts::held_per_tenant(&programs)),
        ("ready", &|| ready::ready(&programs)),
        ("agent", &|| agent::cost(&programs)),
        ("heap", &|| heap::heap(&programs, pairs)),
        ("goroutines", &|| goroutines::goroutines(&programs, pairs)),
        ("exact-loop", &|| exact::alloc_loop(&programs, pairs)),
        ("exact-http", &|| exact::http(&programs, pairs)),
        ("python-flask", &|| python::throughput(root, &programs, python::FLASK, pairs)),
        ("python-aiohttp", &|| python::throughput(root, &programs, python::AIOHTTP, pairs)),
        ("python-worker", &|| python::throughput(root, &programs, python::WORKER, pairs)),
        ("python-window", &|| pywindow::window(root, &programs, pairs)),
        ("python-verdict", &|| python::verdict(root, &programs)),
        ("python-twins", &|| python::twins(root, &programs)),
        ("census", &|| census::census(root, &programs)),
    ];
    let names = parts.map(|(name, _)| name);
    for (name, measure) in parts {
        if args.only.as_ref().is_some_and(|only| !belongs(name, only)) {
            continue;
        }
        let rows = measure()?;
        println!("\n{}", page::render(&rows));
        page::write(&root.join("docs/benchmarks.md"), &names, name, &rows)?;
    }
    Ok(())
}

fn build(root: &Path) -> Result<Programs> {
    let go = toolchain::go(root)?;
    let out = root.join("target/bench");
    fs::create_dir_all(&out)?;
    status(
        Command::new("cargo").args(["build", "--release", "-p", "claw-ebpf"]).current_dir(root),
    )?;
    for name in ["shop", "load", "loop", "crowd"] {
        status(
            Command::new(&go)
                .args(["build", "-buildvcs=false", "-o"])
                .arg(out.join(name))
                .arg(".")
                .current_dir(root.join("tests/fixtures/go").join(name)),
        )?;
    }
    Ok(Programs {
        claw: root.join("target/release/claw-ebpf"),
        shop: out.join("shop"),
        load: out.join("load"),
        alloc_loop: out.join("loop"),
        crowd: out.join("crowd"),
        go,
    })
}

fn row(what: impl Into<String>, figure: impl Into<String>, aim: &str) -> [String; 3] {
    [what.into(), figure.into(), aim.into()]
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}
