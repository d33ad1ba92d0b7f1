//! `claw-ebpf run -- CMD ARGS`

use std::os::unix::process::ExitStatusExt;

use claw_ebpf::pipeline;

use super::{
    Exit,
    args::{ReportArgs, WatchArgs},
};

#[derive(clap::Args)]
pub struct Args {
    /// The program and its arguments
    #[arg(trailing_var_arg = true, required = true, value_name = "CMD")]
    command: Vec<String>,

    #[command(flatten)]
    watch: WatchArgs,

    #[command(flatten)]
    report: ReportArgs,
}

pub fn run(args: Args) -> anyhow::Result<Exit> {
    let options = args.watch.options(None)?;
    let (finished, status) = pipeline::run_command(&args.command, &options, args.report.view()?)?;
    let exit = args.report.exit(&finished)?;
    // A finding asks otherwise; else the program's own code counts.
    Ok(match exit {
        Exit::Found => exit,
        _ => {
            let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(2);
            Exit::Command(u8::try_from(code).unwrap_or(2))
        }
    })
}
