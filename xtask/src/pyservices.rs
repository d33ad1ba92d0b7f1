//! Python services of several tenants, on the interpreters of this machine:
//! their packages at pinned versions, and the run over all of them.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{apt_install, is_root, output, status};

/// Minor versions of CPython 3 that they run on; Debian's own comes first where
/// there are two.
const MINORS: std::ops::RangeInclusive<u32> = 10..=13;
const REQUIREMENTS: &str = "tests/fixtures/python/services/requirements.txt";
const PAGE: &str = "docs/python-services.md";

const HEAD: &str = "# Python services\n\n\
    Written by `cargo xtask pyservices`: real services of eight tenants under load (Flask under \
    gunicorn, aiohttp, a worker on threads), each with a leak of another kind in two tenants' \
    requests, beside healthy twins, all watched at once with the defaults and `--children \
    --max-pause 2s`. What is found is compared with what the services write down themselves for \
    each object that they leak. *Right* is the share of the objects leaked while a window was open \
    that were given to the right tenant and the right line; what has no known writer counts as \
    wrong.\n";

/// Interpreters by minor version, in order.
fn interpreters() -> Vec<(u32, PathBuf)> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let pyenv: Vec<PathBuf> = fs::read_dir(home.join(".pyenv/versions"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("bin"))
        .collect();
    let find = |minor: u32| {
        let name = format!("python3.{minor}");
        let usual = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
        let mut all = usual.iter().chain(&pyenv).map(|dir| dir.join(&name));
        all.find(|p| p.is_file()).map(|p| (minor, p))
    };
    MINORS.filter_map(find).collect()
}

/// Install `packages` for an interpreter into `into`, unless they are there.
pub fn install_for(minor: u32, packages: &str, into: &Path) -> Result<()> {
    let stamp = into.join("installed.txt");
    fs::create_dir_all(into)?;
    if fs::read_to_string(&stamp).is_ok_and(|was| was == packages) {
        return Ok(());
    }
    if output(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        apt_install(&["python3-pip"], "the Python services")?;
    }
    // Any pip can do it for any version, and needs nothing of the interpreter.
    status(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--upgrade", "--only-binary=:all:"])
            .args(["--root-user-action=ignore", "--disable-pip-version-check"])
            .args(["--implementation", "cp", "--python-version", &format!("3.{minor}")])
            .arg("--target")
            .arg(into)
            .args(packages.split_whitespace()),
    )?;
    fs::write(&stamp, packages)?;
    Ok(())
}

/// Install what the services need, for each interpreter that is here, into
/// target/pyservices/3.MINOR; its file `python` says where the interpreter is.
pub fn install(root: &Path) -> Result<Vec<u32>> {
    let requirements = fs::read_to_string(root.join(REQUIREMENTS))?;
    let found = interpreters();
    ensure!(!found.is_empty(), "no Python 3.10 to 3.13 is installed");
    for (minor, python) in &found {
        let into = packages(root, *minor);
        install_for(*minor, &requirements, &into)?;
        fs::write(into.join("python"), python.display().to_string())?;
    }
    Ok(found.into_iter().map(|(minor, _)| minor).collect())
}

/// Where the packages for an interpreter are.
pub fn packages(root: &Path, minor: u32) -> PathBuf {
    root.join(format!("target/pyservices/3.{minor}"))
}

/// An interpreter with its packages, among the services.
pub fn python(root: &Path, minor: u32) -> Result<Command> {
    let dir = packages(root, minor);
    let python = fs::read_to_string(dir.join("python"))
        .with_context(|| format!("Python 3.{minor} is not installed"))?;
    let mut c = Command::new(python);
    c.env("PYTHONPATH", dir).current_dir(root.join("tests/fixtures/python/services"));
    Ok(c)
}

/// `cargo xtask pyservices`: all services on each interpreter, one after the
/// other.
pub fn run(root: &Path) -> Result<()> {
    if !is_root() {
        bail!("this attaches BPF programs: run `sudo -E cargo xtask pyservices`");
    }
    let mut text = HEAD.to_owned();
    let mut failed = Vec::new();
    for minor in install(root)? {
        println!("Python 3.{minor}");
        let out = Command::new("cargo")
            .args(["test", "--release", "-p", "claw-ebpf", "--test", "e2e", "--"])
            .args(["--ignored", "--exact", "--nocapture"])
            .arg("pyservices::leaks_of_each_kind_and_healthy_twins")
            .current_dir(root)
            .env("CLAW_PYTHON_MINOR", minor.to_string())
            .output()
            .context("cannot run cargo")?;
        let said = String::from_utf8_lossy(&out.stdout);
        print!("{said}");
        if !out.status.success() {
            println!("{}", String::from_utf8_lossy(&out.stderr));
            failed.push(minor);
        }
        let rows: Vec<&str> = said.lines().filter(|l| l.starts_with('|')).collect();
        let _ = writeln!(text, "\n## 3.{minor}\n\n{}", rows.join("\n"));
    }
    fs::write(root.join(PAGE), text)?;
    ensure!(failed.is_empty(), "failed on 3.{failed:?}: see above");
    Ok(())
}
