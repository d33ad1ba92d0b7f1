//! `cargo xtask bench`: the figures of `docs/benchmarks.md`, as ratios within
//! one run on this machine.

mod agent;
mod exact;
mod heap;
mod meter;
mod pairs;
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
    toolchain,
};

#[derive(clap::Args)]
pub struct Args {
    /// Only the parts whose name contains this: http, loop, verdicts, held, ready, heap, agent, exact
    only: Option<String>,

    /// Interleaved pairs
    #[arg(long, default_value_t = 10)]
    pairs: usize,
}

/// Programs that the parts run.
pub struct Programs {
    pub claw: PathBuf,
    pub shop: PathBuf,
    pub load: PathBuf,
    pub alloc_loop: PathBuf,
    pub go: PathBuf,
}

/// Rows of the table: what, figure, aim.
pub type Rows = Vec<[String; 3]>;

pub fn run(root: &Path, args: &Args) -> Result<()> {
    if !is_root() {
        bail!("the benchmarks attach BPF programs: run `sudo -E cargo xtask bench`");
    }
    let programs = build(root)?;
    if output(Command::new("bpftrace").arg("--version")).is_err() {
        apt_install(&["bpftrace"], "the comparison with a probe on every mallocgc")?;
    }
    if output(Command::new("memleak-bpfcc").arg("--help")).is_err() {
        apt_install(&["bpfcc-tools"], "the comparison with bcc's memleak")?;
    }
    let wanted = |name: &str| args.only.as_ref().is_none_or(|o| name.contains(o.as_str()));
    let mut rows = Rows::new();
    if wanted("http") {
        rows.extend(pairs::http(&programs, args.pairs)?);
    }
    if wanted("loop") {
        rows.extend(pairs::alloc_loop(&programs, args.pairs)?);
    }
    if wanted("verdicts") {
        rows.extend(verdicts::time_to_verdict(&programs)?);
    }
    if wanted("held") {
        rows.extend(verdicts::held_per_tenant(&programs)?);
    }
    if wanted("ready") {
        rows.extend(ready::ready(&programs)?);
    }
    if wanted("heap") {
        rows.extend(heap::heap(&programs, args.pairs)?);
    }
    if wanted("agent") {
        rows.extend(agent::cost(&programs)?);
    }
    if wanted("exact") {
        rows.extend(exact::cost(&programs, args.pairs)?);
    }
    let table = render(&rows);
    println!("\n{table}");
    if args.only.is_none() {
        let text = format!("{}\n{table}", head()?);
        fs::write(root.join("docs/benchmarks.md"), text)?;
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
    for name in ["shop", "load", "loop"] {
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
        go,
    })
}

fn head() -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let kernel = output(Command::new("uname").arg("-r"))?;
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(format!(
        "# Benchmarks\n\n\
         Written by `cargo xtask bench` on {}: {cpus} CPUs, Linux {}. Ratios are throughput with\n\
         over throughput without, each watched window against the unwatched ones on both sides of\n\
         it; median, and in brackets the 95 % interval of the median.\n",
        date.trim(),
        kernel.trim().split('-').next().unwrap_or_default()
    ))
}

fn render(rows: &Rows) -> String {
    let mut text = "| What | Measured | Aim |\n|---|---|---|\n".to_owned();
    for [what, figure, aim] in rows {
        text += &format!("| {what} | {figure} | {aim} |\n");
    }
    text
}

fn row(what: impl Into<String>, figure: impl Into<String>, aim: &str) -> [String; 3] {
    [what.into(), figure.into(), aim.into()]
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}
