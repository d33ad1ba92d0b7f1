//! `claw-ebpf watch`

use std::time::Duration;

use claw_ebpf::pipeline::{self, Select};
use regex::Regex;

use super::{
    Exit,
    args::{ReportArgs, WatchArgs, duration},
};

#[derive(clap::Args)]
#[group(id = "which", required = true, multiple = false, args = ["pid", "name", "all"])]
pub struct Args {
    /// Watch process N. Repeatable
    #[arg(long, value_name = "N")]
    pid: Vec<u32>,

    /// Watch processes whose executable's name matches, also those that start
    /// later
    #[arg(long, value_name = "REGEX")]
    name: Option<Regex>,

    /// Watch every Go process
    #[arg(long)]
    all: bool,

    /// Stop after this long; otherwise Ctrl-C does
    #[arg(long, value_parser = duration, value_name = "TIME")]
    duration: Option<Duration>,

    #[command(flatten)]
    watch: WatchArgs,

    #[command(flatten)]
    report: ReportArgs,
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let select = match (args.name, args.all) {
        (Some(name), _) => Select::Name(name),
        (None, true) => Select::All,
        (None, false) => Select::Pids(args.pid),
    };
    let options = args.watch.options(args.duration)?;
    let finished = pipeline::watch(select, &options, args.report.view()?)?;
    args.report.exit(&finished)
}
