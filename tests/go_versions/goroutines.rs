//! Goroutines read from outside are those of the program's own profile, in
//! every version and build.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use claw_ebpf::{
    pipeline::{Source, goroutines},
    report::goroutines as report,
    target::go::{layout::LAYOUTS, waits},
};

use crate::{
    common::*,
    dumps::*,
    profiles::{Frame, Profile},
};

/// Versions that stand for the others: each way to lay out goroutines and their
/// labels.
const SOME: [&str; 5] = ["1.19", "1.22.10", "1.24.11", "1.26.6", "1.27.3"];

const BUILDS: [&[&str]; 2] = [&["-ldflags=-s -w"], &["-buildmode=pie"]];

/// The fixture, which writes its own profile when told to.
struct Fixture {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn start(program: &Path, args: &[&str]) -> Self {
        Self::start_as(&mut Command::new(program), args)
    }

    fn start_as(command: &mut Command, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut child = command
            .args(args)
            .arg("-out")
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut fixture = Self { child, stdin, stdout, dir };
        fixture.wait_for("ready");
        fixture
    }

    fn wait_for(&mut self, wanted: &str) {
        let mut line = String::new();
        while line.trim() != wanted {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "no {wanted}");
        }
    }

    fn own_profiles(&mut self) -> (Vec<u8>, String) {
        writeln!(self.stdin, "now").unwrap();
        self.wait_for("done");
        let file = |name: &str| std::fs::read(self.dir.path().join(name)).unwrap();
        (file("profile"), String::from_utf8(file("debug2")).unwrap())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stack as `function file:line`, leaf first, and labels → goroutines.
type Counts = BTreeMap<(Vec<String>, Vec<String>), i64>;

fn counts(gz: &[u8]) -> Counts {
    let p = Profile::unpack(gz);
    let kind = ("goroutine", "count");
    let types: Vec<_> = p.raw.sample_type.iter().map(|t| p.value_type(t)).collect();
    assert_eq!(types, [kind]);
    let period = p.raw.period_type.as_ref().map(|t| p.value_type(t));
    assert_eq!((period, p.raw.period), (Some(kind), 1));
    let text = |(name, file, line): &Frame| format!("{name} {file}:{line}");
    let mut counts = Counts::new();
    for s in &p.raw.sample {
        let stack: Vec<String> =
            s.location_id.iter().flat_map(|id| p.places[id].1.iter().map(text)).collect();
        let mut labels: Vec<String> =
            s.label.iter().map(|l| format!("{}={}", p.text(l.key), p.text(l.str))).collect();
        labels.sort();
        // The main goroutine writes the profile at the time.
        if !stack.iter().any(|f| f.starts_with("main.main ")) {
            *counts.entry((stack, labels)).or_default() += s.value[0];
        }
    }
    counts
}

#[test]
fn equal_to_the_programs_own_profile() {
    for version in VERSIONS {
        for flags in [&[][..], &["-ldflags=-s -w"], &["-buildmode=pie", "-ldflags=-s -w"]] {
            let Some(program) = build(version, "goroutines", flags) else { continue };
            let what = format!("Go {version} {flags:?}");
            let mut f = Fixture::start(&program, &["-count", "20"]);
            let (own, own_text) = f.own_profiles();
            let dump = goroutines(&Source::Process(f.child.id()), false)
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let (own, ours) = (counts(&own), counts(&report::pprof(&dump)));
            for (key, n) in &own {
                assert_eq!(ours.get(key), Some(n), "{what}: {key:#?}\nours: {ours:#?}");
            }
            assert_eq!(ours.len(), own.len(), "{what}: {ours:#?}");
            assert_eq!(dump.unseen.torn + dump.unseen.partial + dump.unseen.running, 0, "{what}");
            assert_eq!((dump.unseen.torn_slots, dump.unseen.labels), (0, 0), "{what}");
            same_text(&what, &report::debug2(&dump), &own_text);
            waits_since(&what, &dump);
        }
    }
}

/// Header and frames of each goroutine but main, without arguments.
fn blocks(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for block in text.split("\n\n").filter(|b| !b.contains("main.main(")) {
        let mut lines = block.trim_end().lines();
        let head = lines.next().unwrap_or_default().to_owned();
        let lines = lines
            .map(|l| match l.rfind('(') {
                Some(at) if !l.starts_with('\t') && l.ends_with(')') => l[..at].to_owned(),
                _ => l.to_owned(),
            })
            .collect();
        all.insert(head, lines);
    }
    all
}

fn same_text(what: &str, ours: &str, own: &str) {
    let (ours, own) = (blocks(ours), blocks(own));
    for (head, lines) in &own {
        // Of a panic, Go prints the signal's frame with its arguments.
        assert_eq!(ours.get(head), Some(lines), "{what}: {head}");
    }
    assert_eq!(ours.len(), own.len(), "{what}");
}

fn waits_since(what: &str, dump: &report::Dump) {
    let known = dump.groups.iter().filter(|g| g.longest_s().is_some_and(|s| s < 600.0)).count();
    assert!(known > 10, "{what}: {known} of {} say since when", dump.groups.len());
    let parents = dump.groups.iter().flat_map(|g| &g.members).filter(|m| m.parent == Some(1));
    if !dump.version.starts_with("go1.19") {
        assert!(parents.count() > 300, "{what}");
    }
}

/// Two that hand a value to each other all the time, and one that runs.
#[test]
fn what_moves_is_never_shown_as_fact() {
    for version in ["1.22.10", "1.27.3"] {
        let Some(program) = build(version, "goroutines", &[]) else { continue };
        let f = Fixture::start(&program, &["-count", "2", "-spin"]);
        for _ in 0..30 {
            let dump = goroutines(&Source::Process(f.child.id()), false).unwrap();
            for g in &dump.groups {
                let known = g.stack_is == "complete";
                let outermost = g.stack.last().map_or("", |f| &*f.function);
                let start = g.start_function.as_deref().unwrap_or("");
                // Wrappers are left out, and the runtime calls `main.main`.
                let expected = outermost == start || start.contains(".gowrap");
                assert!(!known || expected || start == "runtime.main", "{g:#?}");
                assert_eq!(known, !g.stack.is_empty(), "{g:#?}");
            }
        }
    }
}

/// A service that works meanwhile: what stands still is told exactly, what
/// grows lies between its own profile before and the one after, and what moves
/// is all there.
#[test]
fn agrees_with_a_busy_service_within_what_moved() {
    const WORKERS: usize = 40;
    let line = marked_line("goroutines", "main.go", "go worker(todo)");
    for version in SOME {
        let Some(program) = build(version, "goroutines", &["-ldflags=-s -w"]) else { continue };
        let what = format!("Go {version}");
        let mut f = Fixture::start(&program, &["-count", "5", "-busy"]);
        let starts = |frame: &str, name: &str| frame.starts_with(&format!("main.{name} "));
        let moves = |stack: &[String]| {
            let outermost = stack.last().map_or("", String::as_str);
            ["worker", "short", "work.func1", "work.func2"].iter().any(|n| starts(outermost, n))
                || stack.is_empty()
        };
        let grows = |c: &Counts| {
            let of = |stack: &[String]| stack.last().is_some_and(|f| starts(f, "grows"));
            c.iter().filter(|((stack, _), _)| of(stack)).map(|(_, n)| *n).sum::<i64>()
        };
        let mut exact = 0;
        for _ in 0..5 {
            let before = counts(&f.own_profiles().0);
            let dump = goroutines(&Source::Process(f.child.id()), false).unwrap();
            // However slow the machine is, it grows at last.
            let mut later = || counts(&f.own_profiles().0);
            let after = (0..1000).map(|_| later()).find(|c| grows(c) > grows(&before)).unwrap();
            let ours = counts(&report::pprof(&dump));
            for (key, n) in &before {
                // Also what moves may have stood the same three times.
                if after.get(key) == Some(n) && !moves(&key.0) {
                    assert_eq!(ours.get(key), Some(n), "{what}: {key:#?}");
                    exact += n;
                }
            }
            for (key, n) in &ours {
                let [low, high] = [&before, &after].map(|c| c.get(key).copied().unwrap_or(0));
                let known = moves(&key.0) || (low.min(high)..=low.max(high)).contains(n);
                assert!(known, "{what}: {n} where its own are {low} and {high}: {key:#?}");
            }
            let [low, ours, high] = [&before, &ours, &after].map(grows);
            assert!((low..=high).contains(&ours), "{what}: {ours} of {low} to {high}");
            let worker = |g: &&report::Group| {
                g.created_by.as_ref().and_then(|f| f.line).map(u64::from) == Some(line)
            };
            let workers: usize = dump.groups.iter().filter(worker).map(|g| g.count).sum();
            assert_eq!(workers, WORKERS, "{what}");
        }
        assert!(exact > 5 * 80, "{what}: {exact}");
    }
}

/// Every number of every version, from the source of that version.
#[test]
fn wait_reasons_are_those_of_the_source() {
    for (version, l) in VERSIONS.iter().zip(&LAYOUTS) {
        let out = go(version).args(["env", "GOROOT"]).output();
        let Ok(out) = out.map(|o| String::from_utf8(o.stdout).unwrap()) else { continue };
        let path = Path::new(out.trim()).join("src/runtime/runtime2.go");
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let from = text.find("waitReasonZero ").unwrap();
        let block = text[from..].split("\n)").next().unwrap();
        let words: Vec<&str> =
            block.lines().filter_map(|l| l.split("// \"").nth(1)?.strip_suffix('"')).collect();
        assert!(words.len() > 20, "Go {version}");
        assert_eq!(waits::reasons(l.minor), words, "Go {version}");
    }
}

/// What a Go program begins its build information with, among the constants of
/// one that is none.
#[repr(align(16))]
struct Aligned([u8; 32]);
static MAGIC: Aligned = Aligned(*b"\xff Go buildinf:\x08\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

#[test]
fn one_line_for_what_cannot_be_read() {
    assert!(std::hint::black_box(&MAGIC).0.starts_with(b"\xff Go"));
    let message = |pid: u32| goroutines(&Source::Process(pid), false).unwrap_err().to_string();
    assert!(message(4_194_303).contains("no process"));
    assert!(message(std::process::id()).contains("not a Go program"));
    let core = Source::Core { path: "/dev/null".into(), exe: None };
    assert!(goroutines(&core, false).unwrap_err().to_string().contains("not a core dump"));
}

/// Goroutines of a dump are those of the program that it is of.
fn tells_the_same(what: &str, live: &report::Dump, core: &Path) {
    let source = Source::Core { path: core.to_owned(), exe: None };
    let dead = goroutines(&source, false).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(counts(&report::pprof(&dead)), counts(&report::pprof(live)), "{what}");
    assert_eq!((dead.pid, dead.goroutines), (live.pid, live.goroutines), "{what}");
    assert_eq!(dead.unseen.core_missing_bytes, 0, "{what}");
}

#[test]
fn dumps_of_gdb() {
    for (version, flags) in SOME.iter().zip(BUILDS.iter().cycle()) {
        let Some(program) = build(version, "goroutines", flags) else { continue };
        let what = format!("gcore, Go {version} {flags:?}");
        let f = Fixture::start(&program, &["-count", "5"]);
        let live = goroutines(&Source::Process(f.child.id()), false).unwrap();
        tells_the_same(&what, &live, &gcore(f.child.id(), f.dir.path()));
    }
}

/// A program that crashes, as `GOTRACEBACK=crash` lets it.
#[test]
fn dumps_of_the_kernel() {
    if !kernel_dumps_to_files() {
        return;
    }
    for (version, flags) in SOME.iter().zip(BUILDS.iter().rev().cycle()) {
        let Some(program) = build(version, "goroutines", flags) else { continue };
        let what = format!("kernel dump, Go {version} {flags:?}");
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(&program);
        let mut f = Fixture::start_as(dumps_core(&mut command, dir.path()), &["-count", "5"]);
        let live = goroutines(&Source::Process(f.child.id()), false).unwrap();
        let core = crash(&mut f.child, libc::SIGABRT, dir.path());
        tells_the_same(&what, &live, &core);
    }
}

/// Wherever a dump is cut: refused in one line, or what is left is told, with
/// what is missing counted and nothing made up.
#[test]
fn a_dump_cut_anywhere() {
    let program = build_default("goroutines", &[]);
    let f = Fixture::start(&program, &["-count", "5"]);
    let live = goroutines(&Source::Process(f.child.id()), false).unwrap();
    let core = gcore(f.child.id(), f.dir.path());
    let known: BTreeSet<Vec<String>> =
        counts(&report::pprof(&live)).into_keys().map(|(stack, _)| stack).collect();
    let file = std::fs::OpenOptions::new().write(true).open(&core).unwrap();
    let whole = file.metadata().unwrap().len();
    // Some anywhere, some in the headers, from the end on: a cut is for good.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut cuts: Vec<u64> = (0..60)
        .map(|i| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 11) % if i < 40 { whole } else { 0x4000 }
        })
        .chain([0, 1, 63, 64, 65, 120])
        .collect();
    cuts.sort_unstable();
    let (mut refused, mut told) = (0, 0);
    for cut in cuts.into_iter().rev() {
        file.set_len(cut).unwrap();
        let source = Source::Core { path: core.clone(), exe: Some(program.clone()) };
        match goroutines(&source, false) {
            Ok(dump) => {
                told += 1;
                assert!(dump.unseen.core_missing_bytes > 0, "{cut}");
                assert!(dump.goroutines <= live.goroutines, "{cut}: {}", dump.goroutines);
                for g in dump.groups.iter().filter(|g| g.stack_is == "complete") {
                    let main = g.stack.iter().any(|f| &*f.function == "main.main");
                    let frame = |f: &report::Frame| {
                        let file = f.file.as_deref().unwrap_or("");
                        format!("{} {file}:{}", f.function, f.line.unwrap_or(0))
                    };
                    let stack: Vec<String> = g.stack.iter().map(frame).collect();
                    assert!(main || known.contains(&stack), "{cut}: {stack:#?}");
                }
            }
            Err(e) => {
                refused += 1;
                let e = e.to_string();
                let why = ["cut", "does not hold", "not a core dump", "no slice"];
                assert!(why.iter().any(|w| e.contains(w)), "{cut}: {e}");
            }
        }
    }
    assert!(refused > 10 && told > 3, "{refused} refused, {told} told");
}
