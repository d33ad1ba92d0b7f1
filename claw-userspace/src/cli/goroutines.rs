//! `claw-ebpf goroutines`

use std::{io::Write, path::PathBuf};

use clap::ValueEnum;
use claw_ebpf::{
    pipeline::{self, Source},
    report::goroutines,
};

use super::Exit;

#[derive(clap::Args)]
pub struct Args {
    /// Read process N, which runs on meanwhile
    #[arg(long, value_name = "N")]
    pid: Option<u32>,

    /// Read an ELF core dump of a Go program
    #[arg(long, value_name = "FILE", required_unless_present = "pid", conflicts_with = "pid")]
    core: Option<PathBuf>,

    /// The executable that the core dump is of, when it is not where it was
    #[arg(long, value_name = "FILE", requires = "core")]
    exe: Option<PathBuf>,

    /// What to write
    #[arg(long, value_enum, default_value = "text")]
    format: Format,

    /// Write to PATH instead of stdout
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,

    /// Also the runtime's own goroutines
    #[arg(long)]
    system: bool,

    /// Groups that the text shows; 0 for all
    #[arg(long, default_value = "50", value_name = "N")]
    top: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people, the largest group first
    Text,
    /// One JSON document
    Json,
    /// One JSON object per goroutine
    Jsonl,
    /// Collapsed stacks with counts
    Folded,
    /// A goroutine profile for `go tool pprof`
    Pprof,
    /// The text of /debug/pprof/goroutine?debug=2
    Debug2,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let source = match (args.pid, &args.core) {
        (Some(pid), _) => Source::Process(pid),
        (None, Some(path)) => Source::Core { path: path.clone(), exe: args.exe.clone() },
        (None, None) => anyhow::bail!("give --pid or --core"),
    };
    let dump = pipeline::goroutines(&source, args.system)?;
    let top = if args.top == 0 { usize::MAX } else { args.top };
    let bytes = match args.format {
        Format::Text => goroutines::text(&dump, top).into_bytes(),
        Format::Json => dump.json()?.into_bytes(),
        Format::Jsonl => dump.json_lines()?.into_bytes(),
        Format::Folded => dump.folded().into_bytes(),
        Format::Pprof => goroutines::pprof(&dump),
        Format::Debug2 => goroutines::debug2(&dump).into_bytes(),
    };
    let written = match &args.out {
        Some(path) => std::fs::write(path, bytes),
        None => std::io::stdout().write_all(&bytes),
    };
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            let to = args.out.as_ref().map_or("stdout".into(), |p| p.display().to_string());
            anyhow::bail!("cannot write to {to}: {e}");
        }
        _ => {}
    }
    // The collector's own proof, where the program asked for it.
    Ok(if dump.groups.iter().any(|g| g.leaked) { Exit::Found } else { Exit::Clean })
}
