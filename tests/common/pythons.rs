//! The Pythons on this machine.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Interpreters of pyenv and of the system, by minor version, and the newest.
pub fn all() -> Vec<PathBuf> {
    let mut found = installed(8..=13);
    assert!(!found.is_empty(), "no Python 3.8 to 3.13 is installed");
    found.extend(newest());
    found
}

/// Interpreters of 3.14 and later: those that `cargo xtask test` fetches, installed
/// ones, and those that `CLAW_PYTHONS` names, separated by `:`.
fn newest() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = named().filter(|p| !is_free_threaded(p)).collect();
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/pythons");
    found.extend((14..=15).map(|minor| fetched.join(format!("3.{minor}/python"))));
    // Fetched ones run where they were fetched to alone.
    found.retain(|p| p.is_file() && Command::new(p).arg("-V").output().is_ok_and(is_success));
    found.extend(installed(14..=15));
    if found.is_empty() {
        eprintln!(
            "skipped: neither Python 3.14 nor 3.15 is installed, was fetched by `cargo xtask \
             test`, or is named by CLAW_PYTHONS"
        );
    }
    found
}

/// Free-threaded builds among those that `CLAW_PYTHONS` names.
pub fn free_threaded() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = named().filter(|p| is_free_threaded(p)).collect();
    if found.is_empty() {
        eprintln!("skipped: CLAW_PYTHONS names no free-threaded Python");
    }
    found
}

fn named() -> impl Iterator<Item = PathBuf> {
    let named = std::env::var_os("CLAW_PYTHONS").unwrap_or_default();
    // Nothing is split into one empty path.
    let paths: Vec<PathBuf> = std::env::split_paths(&named).collect();
    paths.into_iter().filter(|p| !p.as_os_str().is_empty())
}

fn is_free_threaded(python: &Path) -> bool {
    let code = "import sys; print('t' in sys.abiflags)";
    let out = Command::new(python).args(["-c", code]).output();
    out.is_ok_and(|o| o.stdout.starts_with(b"True"))
}

fn is_success(out: Output) -> bool {
    out.status.success()
}

/// 3.x of pyenv and of the system.
pub fn installed(minors: std::ops::RangeInclusive<u8>) -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let installed = std::fs::read_dir(home.join(".pyenv/versions")).into_iter().flatten();
    let mut found: Vec<PathBuf> = minors
        .clone()
        .flat_map(|minor| {
            let name = format!("python3.{minor}");
            [PathBuf::from("/usr/bin").join(&name), PathBuf::from("/usr/local/bin").join(&name)]
        })
        .collect();
    for version in installed.flatten() {
        let bin = version.path().join("bin");
        found.extend(minors.clone().map(|minor| bin.join(format!("python3.{minor}"))));
    }
    found.retain(|p| p.is_file());
    found.sort();
    found
}
