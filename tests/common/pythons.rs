//! The Pythons on this machine.

use std::path::PathBuf;

/// Interpreters of pyenv and of the system, by minor version, and the newest.
pub fn all() -> Vec<PathBuf> {
    let mut found = installed(8..=13);
    assert!(!found.is_empty(), "no Python 3.8 to 3.13 is installed");
    found.extend(newest());
    found
}

/// Interpreters of 3.14 and later. Those that do not lie in the usual places are
/// named by `CLAW_PYTHONS`, separated by `:`.
fn newest() -> Vec<PathBuf> {
    let named = std::env::var_os("CLAW_PYTHONS").unwrap_or_default();
    // Nothing is split into one empty path.
    let given = |p: &PathBuf| !p.as_os_str().is_empty();
    let mut found: Vec<PathBuf> = std::env::split_paths(&named).filter(given).collect();
    found.extend(installed(14..=15));
    if found.is_empty() {
        eprintln!("skipped: neither Python 3.14 nor 3.15 is installed or named by CLAW_PYTHONS");
    }
    found
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
