//! How soon a large binary is ready.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Result, ensure};

use super::{Programs, Rows, meter::Watcher, pairs::watch, row};
use crate::command::{Running, status};

/// Together these give more than [`SIZE`].
const PACKAGES: usize = 100;
const FUNCTIONS: usize = 1500;
/// Bytes that the binary has to have at least.
const SIZE: u64 = 200 << 20;
const RUNS: usize = 5;

/// A program of many functions, as vendored SDKs make them.
fn generate(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("go.mod"), "module example.com/large\n\ngo 1.21\n")?;
    let mut main = "package main\n\nimport (\n\t\"fmt\"\n\t\"time\"\n".to_owned();
    let mut calls = String::new();
    for p in 0..PACKAGES {
        writeln!(main, "\t\"example.com/large/p{p}\"")?;
        writeln!(calls, "\tp{p}.Table[time.Now().Nanosecond()%len(p{p}.Table)](1, \"x\")")?;
        let mut text = format!("package p{p}\n\nimport \"fmt\"\n\n");
        let mut table = "var Table = []func(int, string) string{\n".to_owned();
        for f in 0..FUNCTIONS {
            writeln!(
                text,
                "func handlerOfRequest{f}(n int, s string) string {{\n\
                 \tm := map[string]int{{s: n, \"k{f}\": {f}}}\n\
                 \tfor k, v := range m {{\n\t\ts = fmt.Sprintf(\"%s %d %s\", k, v*{f}+n, s)\n\t}}\n\
                 \treturn s + fmt.Sprint(len(m), n, {f})\n}}\n"
            )?;
            writeln!(table, "\thandlerOfRequest{f},")?;
        }
        fs::create_dir_all(dir.join(format!("p{p}")))?;
        fs::write(dir.join(format!("p{p}/p.go")), text + &table + "}\n")?;
    }
    main += ")\n\nfunc main() {\n\tfmt.Println(\"ready\")\n";
    main += &calls;
    main += "\tfor {\n\t\ttime.Sleep(time.Second)\n\t}\n}\n";
    fs::write(dir.join("main.go"), main)?;
    Ok(())
}

fn build(programs: &Programs, dir: &Path) -> Result<PathBuf> {
    generate(dir)?;
    let out = dir.join("large");
    status(
        Command::new(&programs.go)
            .args(["build", "-buildvcs=false", "-ldflags=-compressdwarf=false", "-o"])
            .arg(&out)
            .arg(".")
            .current_dir(dir),
    )?;
    let size = fs::metadata(&out)?.len();
    ensure!(size >= SIZE, "{} has only {size} bytes", out.display());
    Ok(out)
}

/// Seconds from the agent's start until it is attached, median.
fn attached_after(programs: &Programs, mut target: Command) -> Result<f64> {
    let (target, _) = Running::start(target.stdin(Stdio::null()))?;
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        let watcher = Watcher::start(&mut watch(programs, target.0.id()), "\"Attaching\"")?;
        times.push(began.elapsed().as_secs_f64());
        drop(watcher);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

pub fn ready(programs: &Programs) -> Result<Rows> {
    let dir = programs.alloc_loop.with_file_name("large-binary");
    let large = build(programs, &dir)?;
    let mib = fs::metadata(&large)?.len() >> 20;
    let mut small = Command::new(&programs.alloc_loop);
    small.args(["-workers", "1", "-rate", "1000"]);
    let small = attached_after(programs, small)?;
    let large = attached_after(programs, Command::new(&large))?;
    Ok(vec![row(
        format!("Start to attached, a binary of {mib} MiB, {} functions", PACKAGES * FUNCTIONS),
        format!("{large:.2} s ({small:.2} s for one of 2 MiB)"),
        "< 1 s more",
    )])
}
