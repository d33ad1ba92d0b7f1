//! `claw-ebpf detect`

use std::path::PathBuf;

use claw_ebpf::{
    baseline,
    detect::fleet::{Fleet, Profiles},
    input,
    report::{
        exit::FailOn,
        model::Verdict,
        series::{self, SeriesReport, Terms},
    },
};

use super::{
    Exit,
    args::{Format, size},
    print,
};

#[derive(clap::Args)]
pub struct Args {
    /// Series as JSON lines or CSV (`-`: standard input): t (s), process and
    /// live_bytes; where known tenant, site, load, uptime_s, gc, old_bytes,
    /// allocs, frees
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// What is healthy: a named baseline, its file, or series of a healthy run
    #[arg(long, value_name = "FILE|NAME")]
    baseline: Option<String>,

    /// Say of each series what it did that is no leak
    #[arg(long)]
    explain: bool,

    /// Memory limit of each process, to say when it is reached
    #[arg(long, value_parser = size, value_name = "SIZE")]
    limit: Option<u64>,

    /// Growth in percent per minute from which a leak is of severity high
    #[arg(long, default_value = "5.2", value_name = "PERCENT")]
    threshold: f64,

    /// What to write to stdout
    #[arg(long, value_enum, default_value = "text")]
    format: Format,

    /// Also write the report to PATH (.json, .jsonl or .txt). Repeatable
    #[arg(long, value_name = "PATH")]
    out: Vec<PathBuf>,

    /// Least verdict that makes the exit code 1
    #[arg(long, value_enum, default_value = "leak", value_name = "VERDICT")]
    fail_on: FailOn,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if args.threshold.is_nan() || args.threshold <= 0.0 {
        anyhow::bail!("--threshold must be a percentage above 0");
    }
    let outs: Vec<Format> = args.out.iter().map(|p| format_of(p)).collect::<Result<_, _>>()?;
    let profiles = match &args.baseline {
        Some(name) => baseline::load_or_learn(name)?,
        None => Profiles::new(),
    };
    let mut fleet = Fleet::new(profiles, Default::default());
    let read = input::read_fleet(&args.input, &mut fleet)?;
    let terms = Terms {
        threshold: args.threshold,
        limit: args.limit.map(|l| l as f64),
        explain: args.explain,
        missing: read.missing,
    };
    let report = series::report(&fleet, &terms);
    if args.baseline.is_some() && report.summary.with_baseline == 0 {
        eprintln!("claw-ebpf: the baseline knows none of these series; they are judged without");
    }
    for (path, format) in args.out.iter().zip(outs) {
        std::fs::write(path, text(&report, format)?)
            .map_err(|e| anyhow::anyhow!("--out {}: {e}", path.display()))?;
    }
    print(&text(&report, args.format)?)?;
    let least = match args.fail_on {
        FailOn::Leak => Some(Verdict::Leak),
        FailOn::Suspect => Some(Verdict::Suspect),
        FailOn::Never => None,
    };
    Ok(if least.is_some_and(|l| report.findings.iter().any(|f| f.verdict >= l)) {
        Exit::Found
    } else if report.summary.enough_evidence {
        Exit::Clean
    } else {
        Exit::NoVerdict
    })
}

fn format_of(path: &std::path::Path) -> anyhow::Result<Format> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => Ok(Format::Json),
        Some("jsonl") => Ok(Format::Jsonl),
        Some("txt") => Ok(Format::Text),
        _ => anyhow::bail!(
            "--out {}: unknown extension; known are .json, .jsonl and .txt",
            path.display()
        ),
    }
}

/// JSON lines: a finding each, then the summary.
fn text(report: &SeriesReport, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Text => series::render(report),
        Format::Json => serde_json::to_string_pretty(report)? + "\n",
        Format::Jsonl => {
            let mut lines = String::new();
            for f in &report.findings {
                lines += &serde_json::to_string(f)?;
                lines.push('\n');
            }
            for s in &report.series {
                lines += &serde_json::to_string(s)?;
                lines.push('\n');
            }
            lines + &serde_json::to_string(&report.summary)? + "\n"
        }
    })
}
