//! What tests share: Go toolchains, fixtures, and the processes made of them.
#![allow(dead_code)]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    time::{Duration, Instant},
};

use serde_json::Value;

/// All versions that must work, newest last.
pub const VERSIONS: [&str; 8] =
    ["1.19", "1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures/go").join(name)
}

/// A `go` of that version.
pub fn go(version: &str) -> Command {
    if version == "1.19" {
        return Command::new("/usr/lib/go-1.19/bin/go");
    }
    let mut c = Command::new(std::env::var("CLAW_GO").unwrap_or_else(|_| "go".into()));
    c.env("GOTOOLCHAIN", format!("go{version}"));
    c
}

/// Build fixture `name` with a Go version. `None` when that Go is not here and
/// is not required; the reason is printed.
pub fn build(version: &str, name: &str, flags: &[&str]) -> Option<PathBuf> {
    build_with(version, name, flags, None)
}

/// The same with a `GOEXPERIMENT`.
pub fn build_with(
    version: &str,
    name: &str,
    flags: &[&str],
    experiment: Option<&str>,
) -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let tag: String =
        format!("{name}-{version}-{}{}", flags.join("_"), experiment.unwrap_or_default())
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' })
            .collect();
    let out = root().join("target/fixtures").join(tag);
    std::fs::create_dir_all(out.parent().unwrap()).unwrap();
    let mut go = go(version);
    if let Some(experiment) = experiment {
        go.env("GOEXPERIMENT", experiment);
    }
    let built = go
        .args(["build", "-buildvcs=false"])
        .args(flags)
        .arg("-o")
        .arg(&out)
        .arg(".")
        .current_dir(fixture(name))
        .output();
    match built {
        Ok(o) if o.status.success() => Some(out),
        Ok(o) => unavailable(version, &String::from_utf8_lossy(&o.stderr)),
        Err(e) => unavailable(version, &e.to_string()),
    }
}

fn unavailable(version: &str, why: &str) -> Option<PathBuf> {
    assert!(std::env::var_os("CLAW_REQUIRE_TOOLCHAINS").is_none(), "Go {version}: {why}");
    println!("skipped for Go {version}: {why}");
    None
}

/// The default version, which must be there.
pub fn build_default(name: &str, flags: &[&str]) -> PathBuf {
    build("1.26.6", name, flags).expect("the tests need a Go toolchain: run `cargo xtask test`")
}

/// Number of the line of a fixture's source that holds `marker`.
pub fn marked_line(name: &str, file: &str, marker: &str) -> u64 {
    let text = std::fs::read_to_string(fixture(name).join(file)).unwrap();
    text.lines().position(|l| l.contains(marker)).expect("marker") as u64 + 1
}

/// Number of the line of a file that ends with `marker`.
pub fn marked_line_of(file: impl AsRef<Path>, marker: &str) -> u64 {
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    text.lines().position(|l| l.ends_with(marker)).expect("marker") as u64 + 1
}

/// A process that ends with its test.
pub struct Running {
    pub child: Child,
    pub first_line: String,
    /// Kept open: a Go program that writes to a closed pipe dies.
    _stdout: Option<BufReader<std::process::ChildStdout>>,
}

impl From<Child> for Running {
    fn from(child: Child) -> Self {
        Self { child, first_line: String::new(), _stdout: None }
    }
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut first_line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut first_line).unwrap();
        Self { child, first_line, _stdout: Some(out) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.first_line).expect("a JSON line when ready")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program under test.
pub fn claw(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_claw-ebpf"));
    // What is ordinary on this machine is not to be changed by a test.
    c.args(args).env("CLAW_EBPF_STATE", "none");
    c
}

/// Run it; gives the exit code, the JSON on stdout, and stderr.
pub fn claw_json(args: &[&str]) -> (i32, Value, String) {
    let out = claw(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    let json = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{stderr}", String::from_utf8_lossy(&out.stdout)));
    (out.status.code().unwrap(), json, stderr)
}

/// Watch for `at_least`, and on until each of `leaking` has a finding that says
/// so; see [`watch_until`].
pub fn watch_until_found(args: &[&str], at_least: Duration, leaking: &[u32]) -> (i32, Value) {
    watch_until(args, at_least, |found| {
        let leaks = |pid| found.iter().any(|f| f["pid"] == pid && f["verdict"] == "leak");
        leaking.iter().all(|pid| leaks(*pid))
    })
}

/// Watch for `at_least`, and on until the findings that came up so far are
/// enough, three times as long at most: a slow machine is waited for. Gives the
/// exit code and the report.
pub fn watch_until(
    args: &[&str],
    at_least: Duration,
    enough: impl Fn(&[Value]) -> bool,
) -> (i32, Value) {
    let at_most = (at_least * 3).as_secs().to_string() + "s";
    let mut agent = claw(args)
        .args(["--format", "jsonl", "-q", "--duration", &at_most])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (send, lines) = channel();
    let out = BufReader::new(agent.stdout.take().unwrap());
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|l| send.send(l)));
    let began = Instant::now();
    let mut found = Vec::new();
    let mut report = None;
    let mut asked_to_stop = false;
    while let Some(line) = next(&lines) {
        let line = line.map(|l| serde_json::from_str::<Value>(&l).expect("a JSON line"));
        match line {
            Some(line) if line["event"] == "finding" => found.push(line),
            Some(line) if line["event"] == "report" => report = Some(line),
            _ => {}
        }
        if !asked_to_stop && began.elapsed() >= at_least && enough(&found) {
            // SAFETY: plain kill(2) of our own child, which was not waited for.
            unsafe { libc::kill(agent.id().cast_signed(), libc::SIGINT) };
            asked_to_stop = true;
        }
    }
    let code = agent.wait().unwrap().code().unwrap();
    (code, report.expect("the last line is the report"))
}

/// The next line; `Some(None)` when there is none yet, `None` after the last.
fn next(lines: &Receiver<String>) -> Option<Option<String>> {
    match lines.recv_timeout(Duration::from_secs(1)) {
        Ok(line) => Some(Some(line)),
        Err(RecvTimeoutError::Timeout) => Some(None),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

/// State letters of a process's threads, and the CPU time it has had, ticks.
pub fn states(pid: u32) -> (String, u64) {
    let mut letters = String::new();
    let mut ticks = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default().to_owned();
        let fields: Vec<&str> = after.split_whitespace().collect();
        letters += fields.first().copied().unwrap_or_default();
        let time = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        ticks += time(11) + time(12);
    }
    (letters, ticks)
}
