//! Parse, run, exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            eprintln!("claw-ebpf: {error:#}");
            ExitCode::from(cli::error_code(&error))
        }
    }
}
