//! `claw-ebpf discover`

use crate::cli::Exit;
use claw_ebpf::target::discover;

#[derive(clap::Args)]
pub struct Args {
    /// Write JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let found = discover::discover()?;
    let text = if args.json {
        serde_json::to_string_pretty(&found)? + "\n"
    } else {
        discover::render(&found)
    };
    super::print(&text)?;
    Ok(Exit::Clean)
}
