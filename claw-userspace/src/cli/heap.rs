//! `claw-ebpf heap (--pid N | --core FILE)`

use std::{
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;

use claw_ebpf::{
    heap::{self, By, Snapshot, Source},
    report::{
        heap::{Context, HeapReport, folded, pprof, text},
        output::{Format, Output},
        text::Style,
    },
};

use super::{
    Exit,
    args::{duration, pause},
    not_to_a_terminal, print, style,
};

#[derive(clap::Args)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["pid", "core"]))]
pub struct Args {
    /// Look at process N. It is not signalled or probed, and not stopped unless
    /// --max-pause allows it
    #[arg(long, value_name = "N")]
    pid: Option<u32>,

    /// Look at a core dump
    #[arg(long, value_name = "FILE")]
    core: Option<PathBuf>,

    /// Executable that the core dump is of; default: the path that the dump
    /// names
    #[arg(long, value_name = "FILE", conflicts_with = "pid")]
    exe: Option<PathBuf>,

    /// What a row stands for
    #[arg(long, value_enum, default_value = "site")]
    by: Rows,

    /// Also find out who holds the largest types (CPython)
    #[arg(long)]
    holders: bool,

    /// Stop the process for no longer than TIME to copy its memory, which
    /// --holders needs. It goes on by itself, also when this program is killed
    #[arg(long, default_value = "0", value_parser = pause, value_name = "TIME")]
    max_pause: Duration,

    /// Have the process (CPython 3.14 and later) collect its garbage first. This
    /// writes into its memory, and a file into its /tmp that is removed again
    #[arg(long, conflicts_with = "core")]
    allow_remote_exec: bool,

    /// Have its own tracemalloc on for TIME, and show by line what was allocated
    /// meanwhile and is still in use. Slows the process down for that long
    #[arg(long, value_parser = duration, value_name = "TIME", requires = "allow_remote_exec")]
    tracemalloc: Option<Duration>,

    /// Show the change since an earlier heap profile in pprof's format: one
    /// that this verb wrote, or the service's own
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,

    /// What to write to stdout
    #[arg(long, value_enum, default_value = "text")]
    format: Format,

    /// Also write it to PATH; its extension decides the format (.json, .jsonl,
    /// .txt, .pb.gz, .folded). Repeatable
    #[arg(long, value_name = "PATH")]
    out: Vec<PathBuf>,

    /// No colours (also: NO_COLOR)
    #[arg(long)]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rows {
    Site,
    Type,
    Tenant,
}

impl From<Rows> for By {
    fn from(rows: Rows) -> Self {
        match rows {
            Rows::Site => Self::Site,
            Rows::Type => Self::Type,
            Rows::Tenant => Self::Tenant,
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let out: Vec<Output> = args.out.iter().map(|p| Output::new(p)).collect::<Result<_, _>>()?;
    not_to_a_terminal(args.format)?;
    let source = match (args.pid, &args.core) {
        (Some(pid), _) => Source::Process(pid),
        (None, Some(path)) => Source::Core { path: path.clone(), exe: args.exe.clone() },
        (None, None) => anyhow::bail!("--pid or --core is needed"),
    };
    let by = By::from(args.by);
    if args.holders && args.pid.is_some() && args.max_pause.is_zero() {
        anyhow::bail!(
            "--holders needs a copy of the process, for which it is stopped for a moment: say for \
             how long at most with --max-pause TIME, e.g. 200ms"
        );
    }
    if let (true, Some(pid)) = (args.allow_remote_exec, args.pid)
        && let Err(why) = heap::collect(pid)
    {
        eprintln!("claw-ebpf: --allow-remote-exec: process {pid}: {why}");
        return Ok(Exit::NoVerdict);
    }
    let mut snapshot = match (args.tracemalloc, args.pid) {
        (Some(time), Some(pid)) => match heap::tracemalloc(pid, time) {
            Ok(snapshot) => snapshot,
            Err(why) => {
                eprintln!("claw-ebpf: --tracemalloc: process {pid}: {why}");
                return Ok(Exit::NoVerdict);
            }
        },
        _ => heap::read(&source, by, args.holders.then_some(args.max_pause))?,
    };
    if let Some((_, why)) = snapshot.cannot.iter().find(|(what, _)| *what == by) {
        let name = args.by.to_possible_value().map(|v| v.get_name().to_owned());
        eprintln!("claw-ebpf: --by {}: {why}", name.unwrap_or_default());
        return Ok(Exit::NoVerdict);
    }
    if let Some(since) = &args.since {
        heap::subtract(&mut snapshot, since)?;
    }
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let context = Context {
        wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(0),
        host: std::fs::read_to_string("/proc/sys/kernel/hostname")
            .map(|s| s.trim().to_owned())
            .unwrap_or_default(),
        by,
        since: args.since.as_ref().map(|p| p.to_string_lossy().into_owned()),
    };
    let report = HeapReport::new(&snapshot, &context);
    let write = |format, style| render(format, &snapshot, &report, &context, style);
    for o in &out {
        o.save(&write(o.format, Style::Plain)?)?;
    }
    print(&write(args.format, style(args.no_color))?)?;
    // Nothing is sampled: an empty heap would be a lie.
    let nothing = snapshot.samples.is_empty() && args.since.is_none();
    Ok(if nothing && !report.blocked.is_empty() { Exit::NoVerdict } else { Exit::Clean })
}

fn render(
    format: Format,
    snapshot: &Snapshot,
    report: &HeapReport,
    context: &Context,
    style: Style,
) -> anyhow::Result<Vec<u8>> {
    Ok(match format {
        Format::Json => report.json()?.into_bytes(),
        Format::Jsonl => report.json_lines()?.into_bytes(),
        Format::Text => text(report, style).into_bytes(),
        Format::Folded => folded(&snapshot.samples).into_bytes(),
        Format::Pprof => pprof(snapshot, i64::try_from(context.wall_ns).unwrap_or(0)),
    })
}
