//! `claw-ebpf goroutines`

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use clap::{ValueEnum, builder::PossibleValue};
use claw_ebpf::{
    pipeline::{self, Judging, Source},
    report::{
        exit::{self, FailOn},
        goroutines::{self, Dump},
        output::{Format, Output},
        text::Style,
    },
    tenant::Rules,
};

use super::{Exit, args::duration, not_to_a_terminal, print, style};

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

    /// Look several times in TIME, without probes, and judge which goroutines
    /// leak; half a minute is the least that says anything, a minute for a
    /// process that has just started
    #[arg(long = "for", value_parser = duration, value_name = "TIME", conflicts_with = "core")]
    time: Option<Duration>,

    /// Least verdict that makes the exit code 1
    #[arg(long, value_enum, default_value = "leak", value_name = "VERDICT", requires = "time")]
    fail_on: FailOn,

    /// Where a goroutine's tenant comes from in verdicts: label:KEY, env:NAME or
    /// cgroup; first match wins. Default: labels named tenant or tenant_id
    #[arg(long, value_name = "RULE", requires = "time")]
    tenant: Vec<String>,

    /// Name of the environment, for the report
    #[arg(long, value_name = "NAME", requires = "time")]
    env: Option<String>,

    /// What to write
    #[arg(long, value_enum, default_value = "text")]
    format: Shown,

    /// Also write it to PATH; its extension decides the format (.json, .jsonl,
    /// .txt, .pb.gz, .folded). Repeatable
    #[arg(long, value_name = "PATH")]
    out: Vec<PathBuf>,

    /// Also the runtime's own goroutines
    #[arg(long)]
    system: bool,

    /// Groups that the text shows; 0 for all
    #[arg(long, default_value = "50", value_name = "N")]
    top: usize,

    /// No colours (also: NO_COLOR)
    #[arg(long)]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    As(Format),
    Debug2,
}

impl ValueEnum for Shown {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Shown; 6] = [
            Shown::As(Format::Text),
            Shown::As(Format::Json),
            Shown::As(Format::Jsonl),
            Shown::As(Format::Folded),
            Shown::As(Format::Pprof),
            Shown::Debug2,
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::As(format) => format.to_possible_value(),
            Self::Debug2 => Some(
                PossibleValue::new("debug2").help("The text of /debug/pprof/goroutine?debug=2"),
            ),
        }
    }
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let out: Vec<Output> = args.out.iter().map(|p| Output::new(p)).collect::<Result<_, _>>()?;
    if let Shown::As(format) = args.format {
        not_to_a_terminal(format)?;
    }
    let source = match (args.pid, &args.core) {
        (Some(pid), _) => Source::Process(pid),
        (None, Some(path)) => Source::Core { path: path.clone(), exe: args.exe.clone() },
        (None, None) => anyhow::bail!("give --pid or --core"),
    };
    let dump = read(args, &source)?;
    let render = |format, top, style| -> anyhow::Result<Vec<u8>> {
        Ok(match format {
            Format::Text => goroutines::text(&dump, top, style).into_bytes(),
            Format::Json => dump.json()?.into_bytes(),
            Format::Jsonl => dump.json_lines()?.into_bytes(),
            Format::Folded => dump.folded().into_bytes(),
            Format::Pprof => goroutines::pprof(&dump),
        })
    };
    for o in &out {
        o.save(&render(o.format, usize::MAX, Style::Plain)?)?;
    }
    let top = if args.top == 0 { usize::MAX } else { args.top };
    print(match args.format {
        Shown::As(format) => render(format, top, style(args.no_color))?,
        Shown::Debug2 => goroutines::debug2(&dump).into_bytes(),
    })?;
    // The collector's own proof, where the program asked for it.
    if dump.groups.iter().any(|g| g.leaked) {
        return Ok(Exit::Found);
    }
    Ok(match dump.report.as_ref().map(|r| exit::code(r, args.fail_on)) {
        None | Some(0) => Exit::Clean,
        Some(1) => Exit::Found,
        Some(_) => Exit::NoVerdict,
    })
}

fn read(args: &Args, source: &Source) -> anyhow::Result<Dump> {
    let (Source::Process(pid), Some(time)) = (source, args.time) else {
        return Ok(pipeline::goroutines(source, args.system)?);
    };
    let how = Judging { time, environment: args.env.clone(), tenants: Rules::parse(&args.tenant)? };
    if std::io::stderr().is_terminal() {
        eprintln!("claw-ebpf: looking at the goroutines of process {pid} for {time:.0?}");
    }
    Ok(pipeline::judged_goroutines(*pid, args.system, &how)?)
}
