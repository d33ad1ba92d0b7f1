//! `cargo xtask test`: everything, with what it needs installed first.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    command::{apt_install, is_root, output},
    leaksuite, newest, pyservices, services, toolchain,
};

#[derive(clap::Args)]
pub struct Args {
    /// Leave out the tests that need root and BPF, and say so
    #[arg(long)]
    no_root: bool,
}

pub fn run(root: &Path, args: &Args) -> Result<()> {
    let with_root = !args.no_root;
    if with_root && !is_root() {
        bail!(
            "the end-to-end tests need root: run `sudo -E cargo xtask test`, or leave them out \
             with --no-root"
        );
    }
    let go = toolchain::all(root)?;
    if output(Command::new("python3").arg("--version")).is_err() {
        apt_install(&["python3", "python3-dev"], "the tests on CPython")?;
    }
    newest::fetch(root);
    if with_root {
        services::install(root, &go)?;
        pyservices::install(root)?;
        if output(Command::new("runc").arg("--version")).is_err() {
            apt_install(&["runc"], "the test in a container")?;
        }
    }
    let mut total = Counts::default();
    let cargo = |extra: &[&str]| {
        let mut c = Command::new("cargo");
        c.arg("test").args(extra).current_dir(root).env("CLAW_GO", &go);
        c.env("CLAW_REQUIRE_TOOLCHAINS", "1");
        c
    };
    total.add(&mut cargo(&["--workspace", "--no-fail-fast"]))?;
    if with_root {
        // The release build is what users run, and what the tests start.
        total.add(&mut cargo(&[
            "--release",
            "-p",
            "claw-ebpf",
            "--test",
            "e2e",
            "--no-fail-fast",
            "--",
            "--ignored",
            "--test-threads=1",
        ]))?;
        match leaksuite::check(root, &go, &root.join("target/release/claw-ebpf")) {
            Ok(()) => total.passed += 1,
            Err(e) => {
                println!("{e:#}");
                total.failed += 1;
            }
        }
    } else {
        println!("not run: the end-to-end tests (--no-root)");
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 || total.broken {
        bail!("tests failed");
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    passed: u64,
    failed: u64,
    /// A test program did not finish: its tests are not counted.
    broken: bool,
}

impl Counts {
    /// Run one `cargo test`, show its output, add up its result lines.
    fn add(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let out = child.stdout.take().context("no output")?;
        let failed_before = self.failed;
        for line in BufReader::new(out).lines() {
            let line = line?;
            println!("{line}");
            let Some(result) = line.strip_prefix("test result: ") else { continue };
            let count = |word: &str| {
                result
                    .split(['.', ';'])
                    .find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok())
                    .unwrap_or(0)
            };
            self.passed += count("passed");
            self.failed += count("failed");
        }
        let status = child.wait()?;
        if !status.success() && self.failed == failed_before {
            self.broken = true;
        }
        Ok(())
    }
}
