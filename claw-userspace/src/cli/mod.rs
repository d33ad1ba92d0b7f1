//! The command line: one file per verb. Parsing and wording live here; what a
//! verb does lives in the rooms it calls.

mod args;
mod baseline;
mod detect;
mod discover;
mod doctor;
mod goroutines;
mod heap;
mod parity;
mod replay;
mod run;
mod watch;

use std::io::{IsTerminal, Write};

use clap::{Parser, Subcommand};
use claw_ebpf::{
    heap::HeapError,
    pipeline::{DumpError, WatchError},
    report::{output::Format, text::Style},
};

/// How a verb ended; `main` turns it into the exit code of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing found.
    Clean,
    /// A finding at or above `--fail-on`.
    Found,
    /// Not permitted, or not enough evidence to say.
    NoVerdict,
    /// The watched command's own code (`run`).
    Command(u8),
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Self::Clean => 0,
            Self::Found => 1,
            Self::NoVerdict => 3,
            Self::Command(code) => code,
        }
    }
}

/// Finds memory and goroutine leaks per tenant in running Go and CPython services.
#[derive(Parser)]
#[command(name = "claw-ebpf", version, propagate_version = true)]
#[command(after_help = "Exit codes: 0 nothing found, 1 a finding at or above --fail-on, \
    2 usage or runtime error, 3 not permitted or not enough evidence.")]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List Go and CPython processes and what can be watched in them
    Discover(discover::Args),
    /// Say what this kernel and these capabilities allow
    Doctor(doctor::Args),
    /// Attach to running processes and report leaks
    Watch(watch::Args),
    /// Start a program and watch it until it ends
    Run(run::Args),
    /// Show a program's heap as its runtime accounts for it, since it started
    Heap(heap::Args),
    /// List every goroutine of a running Go process or a core dump, by stack
    Goroutines(goroutines::Args),
    /// Judge a recording again, without root
    Replay(replay::Args),
    /// Judge series from elsewhere, without root
    Detect(detect::Args),
    /// Keep what is healthy, to hold later runs against
    Baseline(baseline::Args),
    /// Compare environments: equivalent, different or inconclusive
    Parity(parity::Args),
}

/// Write to stdout. A reader that went away is not an error.
fn print(content: impl AsRef<[u8]>) -> std::io::Result<()> {
    match std::io::stdout().write_all(content.as_ref()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// What is no text may not be written to a terminal.
fn not_to_a_terminal(format: Format) -> anyhow::Result<()> {
    if format == Format::Pprof && std::io::stdout().is_terminal() {
        anyhow::bail!("--format pprof is no text: write it to a file, or use --out FILE.pb.gz");
    }
    Ok(())
}

/// How text on stdout is written.
fn style(no_color: bool) -> Style {
    let plain =
        no_color || std::env::var_os("NO_COLOR").is_some() || !std::io::stdout().is_terminal();
    if plain { Style::Plain } else { Style::Colour }
}

/// The exit code of an error: 3 where permission is missing, else 2.
pub fn error_code(error: &anyhow::Error) -> u8 {
    let watch = matches!(error.downcast_ref(), Some(WatchError::NotPermitted(_)));
    let heap = error.downcast_ref::<HeapError>().is_some_and(HeapError::is_permission);
    let dump = error.downcast_ref::<DumpError>().is_some_and(DumpError::is_permission);
    if watch || heap || dump { 3 } else { 2 }
}

impl Cli {
    /// # Errors
    /// One line that names the cause and the remedy.
    pub fn run(self) -> anyhow::Result<Exit> {
        match self.verb {
            Verb::Discover(args) => discover::run(&args),
            Verb::Doctor(args) => doctor::run(&args),
            Verb::Watch(args) => watch::run(args),
            Verb::Run(args) => run::run(args),
            Verb::Heap(args) => heap::run(&args),
            Verb::Goroutines(args) => goroutines::run(&args),
            Verb::Replay(args) => replay::run(&args),
            Verb::Detect(args) => detect::run(&args),
            Verb::Baseline(args) => baseline::run(&args),
            Verb::Parity(args) => parity::run(&args),
        }
    }
}
