//! A census of a CPython heap from outside, beside what counts its objects from
//! inside: the time it takes, and how long the process stood still.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Programs, Rows, pairs::median, row};
use crate::command::output;

/// Blocks in use.
const SIZES: [u64; 2] = [1_000_000, 10_000_000];
/// tracemalloc needs minutes for more.
const MOST_TRACED: u64 = 1_000_000;
const RUNS: usize = 5;

struct Heap {
    child: Child,
    input: ChildStdin,
    out: BufReader<ChildStdout>,
    blocks: f64,
}

impl Heap {
    fn start(root: &Path, blocks: u64, how: &[&str]) -> Result<Self> {
        let mut child = Command::new("python3")
            .arg(root.join("tests/fixtures/python/blocks.py"))
            .arg(blocks.to_string())
            .args(how)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("no stdin")?;
        let mut out = BufReader::new(child.stdout.take().context("no stdout")?);
        let blocks = line(&mut out)?;
        Ok(Self { child, input, out, blocks })
    }

    /// Milliseconds.
    fn ask(&mut self, what: &str) -> Result<f64> {
        writeln!(self.input, "{what}")?;
        line(&mut self.out)
    }

    /// Median milliseconds of `one`, and how late the ticker was at most.
    fn timed(&mut self, mut one: impl FnMut(&mut Self) -> Result<f64>) -> Result<String> {
        self.ask("gap")?;
        let mut times = Vec::new();
        for _ in 0..RUNS {
            times.push(one(self)?);
        }
        let gap = self.ask("gap")?;
        Ok(format!("{:.0} ms; ticker overdue by at most {gap:.0} ms", median(&mut times)))
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(out: &mut BufReader<ChildStdout>) -> Result<f64> {
    let mut text = String::new();
    out.read_line(&mut text)?;
    text.trim().parse().with_context(|| format!("the program said {text:?}"))
}

/// Milliseconds that a command takes.
fn run(command: &mut Command) -> Result<f64> {
    let began = Instant::now();
    let out = command.output()?;
    ensure!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Objects in all rows of a report.
fn counted(programs: &Programs, pid: &str) -> Result<f64> {
    let mut c = Command::new(&programs.claw);
    let out = c.args(["heap", "--pid", pid, "--by", "type", "--format", "json"]).output()?;
    let report: serde_json::Value = serde_json::from_slice(&out.stdout)?;
    let objects = report["total"]["inuse_objects"].as_f64();
    objects.context("the report has no total")
}

pub fn census(root: &Path, programs: &Programs) -> Result<Rows> {
    let mut rows = Rows::new();
    let py_spy = output(Command::new("py-spy").arg("--version")).is_ok();
    for size in SIZES {
        let mut heap = Heap::start(root, size, &[])?;
        let pid = heap.pid();
        let of = format!("{:.1} million blocks", heap.blocks / 1e6);
        let mut add = |what: &str, figure: String, aim: &str| {
            rows.push(row(format!("{of}: {what}"), figure, aim));
        };
        let nothing = heap.timed(|_| {
            thread::sleep(Duration::from_millis(300));
            Ok(300.0)
        })?;
        add("nothing, for comparison", nothing, "–");
        let args = ["heap", "--pid", &pid, "--by", "type"];
        let ours = heap.timed(|_| run(Command::new(&programs.claw).args(args)))?;
        add("`claw-ebpf heap --by type`", ours, if size == SIZES[1] { "≤ 500 ms" } else { "–" });
        let share = counted(programs, &pid)? / heap.blocks - 1.0;
        let figure = format!("{:+.3} %", share * 100.0);
        add("blocks counted, against `sys.getallocatedblocks()`", figure, "–");
        let inside = heap.timed(|h| h.ask("objects"))?;
        add("counted by type from inside, with `gc.get_objects()`", inside, "–");
        if py_spy {
            let dump = heap.timed(|_| run(Command::new("py-spy").args(["dump", "--pid", &pid])))?;
            add("`py-spy dump` (stacks alone), for comparison", dump, "–");
        }
        if size <= MOST_TRACED {
            let mut traced = Heap::start(root, size, &["tracemalloc"])?;
            let snapshot = traced.timed(|h| h.ask("snapshot"))?;
            add("`tracemalloc.take_snapshot()` in a process that traces", snapshot, "–");
        }
    }
    Ok(rows)
}
