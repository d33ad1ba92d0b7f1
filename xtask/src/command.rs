//! Running other programs.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

pub fn status(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !out.status.success() {
        bail!("{command:?} failed: {}", out.status);
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Install Debian packages, as root on Debian; otherwise say what is missing.
pub fn apt_install(packages: &[&str], what_for: &str) -> Result<()> {
    if !is_root() || !Path::new("/usr/bin/apt-get").exists() {
        bail!("{what_for} needs {} (on Debian, as root: apt-get install)", packages.join(" "));
    }
    println!("installing {} for {what_for}", packages.join(" "));
    status(Command::new("apt-get").args(["update", "-qq"]))?;
    status(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// A child that is killed when it goes out of scope.
pub struct Running(pub Child);

impl Running {
    /// Start and give the first line it prints.
    pub fn start(command: &mut Command) -> Result<(Self, String)> {
        let child = command
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let mut running = Self(child);
        let mut line = String::new();
        if let Some(out) = running.0.stdout.take() {
            let mut out = BufReader::new(out);
            out.read_line(&mut line)?;
            // Kept open: a Go program that writes to a closed pipe ends.
            running.0.stdout = Some(out.into_inner());
        }
        Ok((running, line))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
