//! Developer tasks: `cargo xtask --help`.

mod bpf;

use std::path::PathBuf;

use clap::Parser;

#[derive(Parser)]
enum Cli {
    #[command(subcommand)]
    Bpf(bpf::Bpf),
}

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match Cli::parse() {
        Cli::Bpf(verb) => bpf::run(&root, verb),
    }
}
