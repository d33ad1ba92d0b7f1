//! `cargo xtask leaksuite`: the programs with which Go tests its own
//! goroutine-leak profile, under `watch`.
//!
//! The programs and what is expected of them are read from the installed
//! toolchain. Each is run again and again within one process, so that what it
//! leaks becomes more; their own leak profile is turned into the plain one, so
//! that nothing inside the process helps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use regex::Regex;
use serde_json::Value;

use crate::{
    command::{Running, is_root, output, status},
    toolchain,
};

/// Where the programs come from, and what they are built with.
const SOURCE: &str = "go1.27.3";
const BUILDS: [&str; 3] = ["go1.22.10", "go1.26.6", "go1.27.3"];
const FOLDERS: [&str; 2] = ["testgoroutineleakprofile", "testgoroutineleakprofile/goker"];
/// How long they are watched; they run once a second.
const WATCHED: &str = "75s";

#[derive(clap::Args)]
pub struct Args {
    /// Take this claw-ebpf instead of building it
    #[arg(long)]
    claw: Option<PathBuf>,
}

/// What Go expects of one program.
struct Program {
    name: String,
    /// Which of the folders it is in.
    folder: usize,
    patterns: Vec<Regex>,
    /// It does not leak every time.
    flaky: bool,
}

#[derive(Default)]
struct Outcome {
    found: usize,
    missed: Vec<String>,
    wrong: Vec<String>,
}

pub fn run(root: &Path, args: &Args) -> Result<()> {
    if !is_root() {
        bail!("watching needs root: run `sudo -E cargo xtask leaksuite`");
    }
    let claw = match &args.claw {
        Some(path) => path.clone(),
        None => {
            let mut c = Command::new("cargo");
            status(c.args(["build", "--release", "-p", "claw-ebpf"]).current_dir(root))?;
            root.join("target/release/claw-ebpf")
        }
    };
    let go = toolchain::go(root)?;
    let mut env = Command::new(&go);
    let goroot = output(env.args(["env", "GOROOT"]).env("GOTOOLCHAIN", SOURCE).current_dir("/"))?;
    let runtime = Path::new(goroot.trim()).join("src/runtime");
    let programs = expectations(&runtime)?;
    let mut outcomes = Vec::new();
    for version in BUILDS {
        let built = build(root, &go, &runtime, version)?;
        outcomes.push(watch(&claw, &built, &programs)?);
        println!("{version}: done");
    }
    let text = render(&programs, &outcomes);
    println!("{text}");
    fs::write(root.join("docs/leak-suite.md"), text)?;
    Ok(())
}

/// From the test's own source: `makeTest("Name", pattern, …)`.
fn expectations(runtime: &Path) -> Result<Vec<Program>> {
    let text = fs::read_to_string(runtime.join("goroutineleakprofile_test.go"))?;
    let name = Regex::new(r#"make(Flaky)?Test\("(\w+)""#)?;
    let pattern = Regex::new("^\\s*`([^`]+)`,")?;
    let mut programs: Vec<Program> = Vec::new();
    let mut folder = 0;
    for line in text.lines() {
        folder += usize::from(line.contains("gokerTestCases :="));
        if let Some(c) = name.captures(line) {
            let flaky = c.get(1).is_some();
            programs.push(Program { name: c[2].to_owned(), folder, patterns: Vec::new(), flaky });
        } else if let (Some(c), Some(p)) = (pattern.captures(line), programs.last_mut()) {
            p.patterns.push(Regex::new(&c[1])?);
        }
    }
    ensure!(programs.len() > 50, "the test's source is not as it was");
    Ok(programs)
}

fn build(root: &Path, go: &Path, runtime: &Path, version: &str) -> Result<Vec<PathBuf>> {
    let mut built = Vec::new();
    for (i, folder) in FOLDERS.iter().enumerate() {
        let out = root.join(format!("target/leaksuite/{version}-{i}"));
        fs::create_dir_all(&out)?;
        fs::write(out.join("go.mod"), "module leaks\n\ngo 1.22\n")?;
        for entry in fs::read_dir(runtime.join("testdata").join(folder))? {
            let path = entry?.path();
            let Some(name) = path.file_name().filter(|_| path.extension() == Some("go".as_ref()))
            else {
                continue;
            };
            let mut text = fs::read_to_string(&path)?;
            text = text.replace(r#"Lookup("goroutineleak")"#, r#"Lookup("goroutine")"#);
            if name == "main.go" {
                ensure!(text.contains("\tf()\n}"), "main.go is not as it was");
                text = text.replace(
                    "\tf()\n}",
                    "\tfor {\n\t\tgo f()\n\t\ttime.Sleep(time.Second)\n\t}\n}",
                );
                text = text.replace("import \"os\"", "import (\n\t\"os\"\n\t\"time\"\n)");
            }
            fs::write(out.join(name), text)?;
        }
        let program = out.join(format!("leaks-{version}"));
        let mut c = Command::new(go);
        c.args(["build", "-buildvcs=false", "-o"]).arg(&program).arg(".");
        status(c.current_dir(&out).env("GOTOOLCHAIN", version))?;
        built.push(program);
    }
    Ok(built)
}

/// All programs at once under one agent.
fn watch(claw: &Path, built: &[PathBuf], programs: &[Program]) -> Result<Vec<Outcome>> {
    let mut running = Vec::new();
    for p in programs {
        let mut c = Command::new(built.get(p.folder).context("no such folder")?);
        // As Go's own test runs them.
        c.arg(&p.name).env("GODEBUG", "asyncpreemptoff=1");
        if !p.flaky {
            c.env("GOMAXPROCS", "1");
        }
        running.push(Running(c.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?));
    }
    let mut c = Command::new(claw);
    // By name, for one of them may end by itself before it is looked at.
    c.args(["watch", "--name", "^leaks-go1", "--duration", WATCHED, "--format", "json", "-q"]);
    let report = c.stderr(Stdio::inherit()).output()?.stdout;
    let report: Value = serde_json::from_slice(&report).context("watch gave no report")?;
    let findings = report["findings"].as_array().context("no findings")?;
    programs
        .iter()
        .zip(&mut running)
        .map(|(p, r)| {
            let pid = r.0.id();
            if r.0.try_wait()?.is_some() {
                println!("{} ended by itself", p.name);
                return Ok(outcome(p, &BTreeSet::new()));
            }
            let mut c = Command::new(claw);
            let dump = c.args(["goroutines", "--format", "json", "--pid", &pid.to_string()]);
            let dump: Value = serde_json::from_slice(&dump.output()?.stdout)?;
            let own = findings.iter().filter(|f| f["pid"] == pid && f["verdict"] == "leak");
            Ok(outcome(p, &judged(own, &dump)))
        })
        .collect()
}

/// As Go's test writes a leak: outermost function and reason, of every group
/// of goroutines that a finding names by creation site and reason.
fn judged<'a>(findings: impl Iterator<Item = &'a Value>, dump: &Value) -> BTreeSet<String> {
    let named: Vec<&Value> =
        findings.filter(|f| matches!(f["kind"].as_str(), Some("goroutine" | "thread"))).collect();
    let groups = dump["groups"].as_array().map_or(&[][..], Vec::as_slice);
    let mut leaks = BTreeSet::new();
    for g in groups {
        let created = &g["created_by"];
        let stack = g["stack"].as_array().map_or(&[][..], Vec::as_slice);
        let Some(outermost) = stack.last().and_then(|f| f["function"].as_str()) else { continue };
        for f in &named {
            let reason = f["blocked_on"]["reason"].as_str().unwrap_or("");
            let words = g["wait_reason"].as_str().unwrap_or("");
            // One word of older versions stands for several of newer ones.
            let same = words == reason
                || (words == "semacquire" || words == "sync.Mutex.Lock")
                    && reason.starts_with("sync.");
            let here = stack.iter().any(|s| s["line"] == f["blocked_on"]["line"]);
            if same
                && here
                && created["file"] == f["site"]["file"]
                && created["line"] == f["site"]["line"]
            {
                let name = outermost.strip_prefix("main.").unwrap_or(outermost);
                leaks.insert(format!("{name}(...) [{reason}]"));
            }
        }
    }
    leaks
}

fn outcome(p: &Program, leaks: &BTreeSet<String>) -> Outcome {
    let mut o = Outcome::default();
    for pattern in &p.patterns {
        if leaks.iter().any(|l| pattern.is_match(l)) {
            o.found += 1;
        } else {
            o.missed.push(pattern.as_str().replace('\\', ""));
        }
    }
    let expected = |l: &&String| p.patterns.iter().any(|pattern| pattern.is_match(l));
    o.wrong = leaks.iter().filter(|l| !expected(l)).cloned().collect();
    o
}

fn render(programs: &[Program], outcomes: &[Vec<Outcome>]) -> String {
    let mut text = format!(
        "# Go's own goroutine-leak programs\n\n\
         Written by `cargo xtask leaksuite`: the {} programs with which Go ({SOURCE}) tests its\n\
         goroutine-leak profile, read from the toolchain, each run once a second for {WATCHED} under\n\
         `claw-ebpf watch`, with nothing inside the process that helps. *Found* and *missed* count\n\
         the leaks that Go's test expects; a leak is found when a verdict `leak` names its creation\n\
         site, where it waits and for what. *Other* are verdicts that Go's test does not list. A\n\
         program marked with * does not leak every time.\n\n",
        programs.len()
    );
    let mut totals: BTreeMap<(usize, bool), [usize; 3]> = BTreeMap::new();
    let mut rows = String::new();
    for (i, p) in programs.iter().enumerate() {
        rows += &format!("| {}{} |", p.name, if p.flaky { "*" } else { "" });
        for (v, o) in outcomes.iter().enumerate() {
            let Some(o) = o.get(i) else { continue };
            let t = totals.entry((v, p.flaky)).or_default();
            t[0] += o.found;
            t[1] += o.missed.len();
            t[2] += o.wrong.len();
            rows += &format!(" {} / {} / {} |", o.found, o.missed.len(), o.wrong.len());
        }
        rows.push('\n');
    }
    let head = |what: &str| {
        let names: Vec<String> = BUILDS.iter().map(|b| format!(" {b} |")).collect();
        format!("| {what} |{}\n|---|{}\n", names.concat(), "---|".repeat(BUILDS.len()))
    };
    text += &head("found / missed / other");
    for (flaky, what) in [(false, "all that always leak"), (true, "all marked with *")] {
        text += &format!("| {what} |");
        for v in 0..outcomes.len() {
            let [found, missed, wrong] = totals.get(&(v, flaky)).copied().unwrap_or_default();
            text += &format!(" {found} / {missed} / {wrong} |");
        }
        text.push('\n');
    }
    text += &format!("\n## Each program\n\n{}{rows}", head("found / missed / other"));
    text += "\n## What was missed, and what else was found\n\n";
    for (version, outcomes) in BUILDS.iter().zip(outcomes) {
        for (p, o) in programs.iter().zip(outcomes) {
            let missed = o.missed.iter().map(|m| format!("missed `{m}`"));
            let all: Vec<String> =
                missed.chain(o.wrong.iter().map(|w| format!("other `{w}`"))).collect();
            if !all.is_empty() {
                text += &format!("- {version} {}: {}\n", p.name, all.join(", "));
            }
        }
    }
    text
}
