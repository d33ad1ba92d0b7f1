//! Parse, run, exit code.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            eprintln!("claw-ebpf: {}", one_line(&error));
            ExitCode::from(cli::error_code(&error))
        }
    }
}

/// An error and its causes; those that it names itself are not said twice.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_said_once() {
        let io = anyhow::anyhow!("denied");
        assert_eq!(one_line(&io), "denied");
        let said = io.context("cannot read x: denied: run with sudo");
        assert_eq!(one_line(&said), "cannot read x: denied: run with sudo");
        assert_eq!(one_line(&said.context("y")), "y: cannot read x: denied: run with sudo");
    }
}
