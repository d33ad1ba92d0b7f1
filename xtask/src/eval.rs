//! `cargo xtask eval`: builds and runs `eval/` with optimisation. It is a crate
//! of its own so that the other tasks need not build the program.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::command::status;

#[derive(clap::Args)]
pub struct Args {
    /// Passed on; `cargo xtask eval -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(root: &Path, args: &Args) -> Result<()> {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--release", "--quiet", "-p", "claw-eval", "--"]).args(&args.args);
    status(cargo.current_dir(root))
}
