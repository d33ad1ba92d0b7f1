//! `cargo xtask leaksuite`: the programs with which Go tests its own
//! goroutine-leak profile, under `watch`.
//!
//! The programs and what is expected of them are read from the installed
//! toolchain. Each is held alive and run again and again within one process,
//! so that what it leaks becomes more; nothing inside the process helps.

mod judge;
mod page;
mod programs;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::Value;

use crate::{
    command::{Running, is_root, output, status},
    toolchain,
};
use judge::Outcome;
use programs::Program;

/// Where the programs come from, and what they are built with.
const SOURCE: &str = "go1.27.3";
const BUILDS: [&str; 3] = ["go1.22.10", "go1.26.6", "go1.27.3"];
/// How long they are watched; they run once a second.
const WATCHED: &str = "75s";
/// Programs for a quick check: what each expects is found with every version,
/// or the check fails.
const SAMPLE: [&str; 4] = ["ChanSend", "Mixed", "NoCloseRange", "Grpc862"];

#[derive(clap::Args)]
pub struct Args {
    /// Take this claw-ebpf instead of building it
    #[arg(long)]
    claw: Option<PathBuf>,

    /// Build with this version only; nothing is written
    #[arg(long, value_parser = BUILDS)]
    go: Option<String>,

    /// Only the programs whose name matches; nothing is written
    #[arg(long, value_name = "REGEX")]
    only: Option<Regex>,
}

pub fn run(root: &Path, args: &Args) -> Result<()> {
    if !is_root() {
        bail!("watching needs root: run `sudo -E cargo xtask leaksuite`");
    }
    let claw = match &args.claw {
        Some(path) => path.clone(),
        None => {
            let mut c = Command::new("cargo");
            status(c.args(["build", "--release", "-p", "claw-ebpf"]).current_dir(root))?;
            root.join("target/release/claw-ebpf")
        }
    };
    let go = toolchain::go(root)?;
    let runtime = runtime_source(&go)?;
    let mut programs = programs::expectations(&runtime)?;
    programs.retain(|p| args.only.as_ref().is_none_or(|only| only.is_match(&p.name)));
    ensure!(!programs.is_empty(), "no program has such a name");
    let wanted = |b: &&str| args.go.as_deref().is_none_or(|go| go == *b);
    let builds: Vec<&str> = BUILDS.into_iter().filter(wanted).collect();
    let mut outcomes = Vec::new();
    for version in &builds {
        let built = programs::build(root, &go, &runtime, version)?;
        outcomes.push(watch(&claw, &built, &programs)?);
        println!("{version}: done");
    }
    let text = page::render(&programs, &builds, &outcomes);
    println!("{text}");
    if args.go.is_none() && args.only.is_none() {
        fs::write(root.join("docs/leak-suite.md"), text)?;
    }
    Ok(())
}

/// A few of the programs, with the newest version, as a test.
///
/// # Errors
/// When one of their leaks was missed, or one was found that is none.
pub fn check(root: &Path, go: &Path, claw: &Path) -> Result<()> {
    let runtime = runtime_source(go)?;
    let mut programs = programs::expectations(&runtime)?;
    programs.retain(|p| SAMPLE.contains(&p.name.as_str()));
    ensure!(programs.len() == SAMPLE.len(), "the suite has not all of {SAMPLE:?}");
    let built = programs::build(root, go, &runtime, SOURCE)?;
    let outcomes = watch(claw, &built, &programs)?;
    let wrong: Vec<String> = programs
        .iter()
        .zip(&outcomes)
        .filter(|(p, o)| o.found < p.patterns.len() || !o.other.is_empty() || o.ended.is_some())
        .map(|(p, o)| format!("{}: {o:?}", p.name))
        .collect();
    ensure!(wrong.is_empty(), "Go's goroutine-leak programs: {}", wrong.join("; "));
    println!("Go's goroutine-leak programs {SAMPLE:?}: as Go expects");
    Ok(())
}

fn runtime_source(go: &Path) -> Result<PathBuf> {
    let mut env = Command::new(go);
    let goroot = output(env.args(["env", "GOROOT"]).env("GOTOOLCHAIN", SOURCE).current_dir("/"))?;
    Ok(Path::new(goroot.trim()).join("src/runtime"))
}

/// All programs at once under one agent.
fn watch(claw: &Path, built: &[PathBuf], programs: &[Program]) -> Result<Vec<Outcome>> {
    let mut running = Vec::new();
    for p in programs {
        let mut c = Command::new(built.get(p.folder).context("no such folder")?);
        // As Go's own test runs them.
        c.arg(&p.name).env("GODEBUG", "asyncpreemptoff=1");
        if !p.flaky {
            c.env("GOMAXPROCS", "1");
        }
        running.push(Running(c.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
    }
    let mut c = Command::new(claw);
    // By name, for one of them may end by itself before it is looked at.
    c.args(["watch", "--name", "^leaks-go1", "--duration", WATCHED, "--format", "json", "-q"]);
    let out = c.stderr(Stdio::piped()).output()?;
    let report: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("no report: {}", String::from_utf8_lossy(&out.stderr)))?;
    // What they leak after the watch is not what was looked at.
    for r in &running {
        let pid = i32::try_from(r.0.id())?;
        // SAFETY: the child is ours and not reaped yet.
        unsafe { libc::kill(pid, libc::SIGSTOP) };
    }
    // To look at when the table surprises.
    fs::write(built[0].with_extension("report.json"), &out.stdout)?;
    let findings = report["findings"].as_array().context("no findings")?;
    programs
        .iter()
        .zip(&mut running)
        .map(|(p, r)| {
            let pid = r.0.id();
            if let Some(status) = r.0.try_wait()? {
                return Ok(Outcome { ended: Some(status.to_string()), ..Outcome::default() });
            }
            let mut c = Command::new(claw);
            c.args(["goroutines", "--format", "json", "--pid", &pid.to_string()]);
            let dump: Value = serde_json::from_slice(&c.output()?.stdout)?;
            let own = findings.iter().filter(|f| f["pid"] == pid && f["verdict"] == "leak");
            Ok(judge::outcome(p, own, &dump))
        })
        .collect()
}
