//! `claw-ebpf replay FILE`

use std::path::PathBuf;

use claw_ebpf::pipeline;

use super::{Exit, args::ReportArgs};

#[derive(clap::Args)]
pub struct Args {
    /// A recording made with `watch --record`
    file: PathBuf,

    #[command(flatten)]
    report: ReportArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut view = args.report.view()?;
    view.progress = false;
    let finished = pipeline::replay(&args.file, view)?;
    args.report.exit(&finished)
}
