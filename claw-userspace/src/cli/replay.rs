//! `claw-ebpf replay FILE`

use std::path::PathBuf;

use claw_ebpf::{baseline::load_or_learn, pipeline};

use super::{Exit, args::ReportArgs};

#[derive(clap::Args)]
pub struct Args {
    /// A recording made with `watch --record`
    file: PathBuf,

    /// Hold what is seen against a named baseline, or a baseline's file
    #[arg(long, value_name = "NAME|FILE")]
    baseline: Option<String>,

    #[command(flatten)]
    report: ReportArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let baseline = args.baseline.as_deref().map(load_or_learn).transpose()?.unwrap_or_default();
    let mut view = args.report.view()?;
    view.progress = false;
    let finished = pipeline::replay(&args.file, view, baseline)?;
    args.report.exit(&finished)
}
