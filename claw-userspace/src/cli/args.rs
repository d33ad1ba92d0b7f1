//! Arguments that several verbs share, and how their values are written.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use claw_ebpf::{
    baseline::load_or_learn,
    pipeline::{ExactOptions, Finished, Options, State, Stdout, View},
    report::{
        exit::{self, FailOn},
        output::Output,
    },
    tenant::Rules,
};

use super::Exit;

/// What is written to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON document at the end
    Json,
    /// One JSON object per event, as it happens
    Jsonl,
}

/// How a report is written and what makes it fail.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// What to write to stdout
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,

    /// Also write the report to PATH; its extension decides the format
    /// (.json, .jsonl, .txt, .pb.gz, .folded). Repeatable
    #[arg(long, value_name = "PATH")]
    pub out: Vec<PathBuf>,

    /// Least verdict that makes the exit code 1
    #[arg(long, value_enum, default_value = "leak", value_name = "VERDICT")]
    pub fail_on: FailOn,

    /// No progress on stderr
    #[arg(long, short)]
    pub quiet: bool,

    /// No colours (also: NO_COLOR)
    #[arg(long)]
    pub no_color: bool,
}

/// How a process is watched.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// Time between two judgements
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub interval: Duration,

    /// Which part of the work to see. `sampled` rides the runtime's own sampler;
    /// `exact` also counts every allocation and new goroutine, by tenant, site
    /// and type, in windows that --max-overhead governs
    #[arg(long, value_enum, default_value = "sampled")]
    pub mode: Mode,

    /// Most a probe may cost a target, as a share of one CPU; goroutine probes
    /// that would cost more are detached and reported as blocked
    #[arg(long, default_value = "1%", value_parser = percent, value_name = "PERCENT")]
    pub max_overhead: f64,

    /// With --mode exact: also write each allocation of an open window to FILE,
    /// as JSON lines. Makes a hit dearer, and so windows rarer
    #[arg(long, value_name = "FILE")]
    pub stream: Option<PathBuf>,

    /// Set Go's MemProfileRate in the target to SIZE while watching. This
    /// writes into the target's memory; the old value is restored at the end
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub heap_rate: Option<u64>,

    /// Stop a CPython process for no longer than TIME to copy its memory, which
    /// shows who holds what grows in it. 0: never
    #[arg(long, default_value = "0", value_parser = pause, value_name = "TIME")]
    pub max_pause: Duration,

    /// Let a CPython process (3.14 and later) run scripts: `gc.collect()` before a
    /// census when something grows, so that garbage that waits for the collector
    /// is not taken for a leak. This writes into the target's memory, and a file
    /// into its /tmp that is removed again
    #[arg(long)]
    pub allow_remote_exec: bool,

    /// Watch the children of the processes as well (and theirs), those that are
    /// there and those that come: the workers of gunicorn, uvicorn, Celery …
    #[arg(long)]
    pub children: bool,

    /// Name of the environment, for the report
    #[arg(long, value_name = "NAME")]
    pub env: Option<String>,

    /// Where an event's tenant comes from: label:KEY (Go), contextvar:NAME,
    /// local:NAME, thread-name (CPython), env:NAME or cgroup; first
    /// match wins. Default: labels, context variables and local variables named
    /// tenant or tenant_id
    #[arg(long, value_name = "RULE")]
    pub tenant: Vec<String>,

    /// Growth in percent per minute from which a leak is of severity high
    #[arg(long, default_value = "5.2", value_name = "PERCENT")]
    pub threshold: f64,

    /// Hold what is seen against a named baseline, or a baseline's file
    #[arg(long, value_name = "NAME|FILE")]
    pub baseline: Option<String>,

    /// Where each tenant's rolling 24/48 h baseline is kept between runs;
    /// `none` keeps nothing. Default: $CLAW_EBPF_STATE, else
    /// /var/lib/claw-ebpf for root, $XDG_STATE_HOME/claw-ebpf for others
    #[arg(long, value_name = "DIR|none")]
    pub state: Option<PathBuf>,

    /// Size of the ring buffer between kernel and agent
    #[arg(long, default_value = "4MiB", value_parser = ring_size, value_name = "SIZE")]
    pub ring_size: u32,

    /// Keep what was seen in FILE, for `claw-ebpf replay`
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    Sampled,
    Exact,
}

impl ReportArgs {
    /// # Errors
    /// When an `--out` cannot be written.
    pub fn view(&self) -> anyhow::Result<View> {
        let stdout = match self.format {
            Format::Text => Stdout::Text(super::style(self.no_color)),
            Format::Json => Stdout::Json,
            Format::Jsonl => Stdout::JsonLines,
        };
        let out = self.out.iter().map(|p| Output::new(p)).collect::<Result<_, _>>()?;
        Ok(View { stdout, progress: !self.quiet, out })
    }

    /// # Errors
    /// When a file of the report could not be written.
    pub fn exit(&self, finished: &Finished) -> anyhow::Result<Exit> {
        if let Some(e) = finished.failed.first() {
            anyhow::bail!("{e}");
        }
        Ok(match exit::code(&finished.report, self.fail_on) {
            0 => Exit::Clean,
            1 => Exit::Found,
            _ => Exit::NoVerdict,
        })
    }
}

impl WatchArgs {
    /// # Errors
    /// When a tenant rule or the baseline is wrong.
    pub fn options(&self, duration: Option<Duration>) -> anyhow::Result<Options> {
        let exact = match (self.mode, &self.stream) {
            (Mode::Exact, stream) => Some(ExactOptions { stream: stream.clone() }),
            (Mode::Sampled, None) => None,
            (Mode::Sampled, Some(_)) => anyhow::bail!("--stream needs --mode exact"),
        };
        Ok(Options {
            duration,
            interval: self.interval,
            max_overhead: self.max_overhead,
            heap_rate: self.heap_rate,
            max_pause: self.max_pause,
            remote_exec: self.allow_remote_exec,
            children: self.children,
            exact,
            environment: self.env.clone(),
            tenants: Rules::parse(&self.tenant)?,
            threshold: self.threshold,
            baseline: self.baseline.as_deref().map(load_or_learn).transpose()?.unwrap_or_default(),
            state: self.state.as_ref().map_or(State::Usual, |s| State::named(s.as_os_str())),
            ring_bytes: self.ring_size,
            record: self.record.clone(),
        })
    }
}

fn number_and_unit(text: &str) -> Result<(f64, &str), String> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` does not start with a number"))?;
    Ok((number, unit.trim()))
}

/// `30s`, `5m`, `2h`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text)?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(format!("`{text}` needs a unit: ms, s, m or h")),
    };
    if seconds <= 0.0 || seconds > 366.0 * 86_400.0 {
        return Err(format!("`{text}` must be more than 0 and at most a year"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// As [`duration`], or `0`.
pub fn pause(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

/// `512KiB`, `4MiB`, `1000`; decimal units are accepted as binary ones.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" | "kib" => 1024.0,
        "m" | "mb" | "mib" => 1024.0 * 1024.0,
        "g" | "gb" | "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(format!("`{text}` needs a unit: B, KiB, MiB or GiB")),
    };
    let bytes = number * factor;
    if !(1.0..=1e15).contains(&bytes) {
        return Err(format!("`{text}` must be at least one byte"));
    }
    Ok(bytes as u64)
}

/// Power of two between 64 KiB and 1 GiB, as the kernel wants it.
fn ring_size(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    match u32::try_from(bytes) {
        Ok(b) if b.is_power_of_two() && (64 << 10..=1 << 30).contains(&b) => Ok(b),
        _ => Err(format!("`{text}` must be a power of two from 64KiB to 1GiB")),
    }
}

/// `1%` or `1` → 0.01.
fn percent(text: &str) -> Result<f64, String> {
    let (number, unit) = number_and_unit(text)?;
    if !matches!(unit, "" | "%") || number <= 0.0 || number > 100.0 {
        return Err(format!("`{text}` must be a percentage above 0 and at most 100"));
    }
    Ok(number / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(duration("90").is_err() && duration("s").is_err() && duration("0s").is_err());
        assert_eq!(size("256KiB"), Ok(256 << 10));
        assert!(size("1parsec").is_err() && size("0").is_err());
        assert_eq!(ring_size("4MiB"), Ok(4 << 20));
        assert!(ring_size("3MiB").is_err() && ring_size("1KiB").is_err());
        assert_eq!(percent("1%"), Ok(0.01));
        assert!(percent("0%").is_err() && percent("200%").is_err());
    }
}
