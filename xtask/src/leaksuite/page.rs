//! `docs/leak-suite.md`.

use super::{SOURCE, WATCHED, judge::Outcome, programs::Program};

pub fn render(programs: &[Program], builds: &[&str], outcomes: &[Vec<Outcome>]) -> String {
    let mut text = format!(
        "# Go's own goroutine-leak programs\n\n\
         Written by `cargo xtask leaksuite`: the {} programs with which Go ({SOURCE}) tests its\n\
         goroutine-leak profile, read from the toolchain, all at once for {WATCHED} under one\n\
         `claw-ebpf watch`. Nothing inside a process helps: their own leak profile is taken out.\n\n\
         `watch` sees a leak when goroutines keep coming to a place and never leave it. The programs\n\
         leak once and end, so each is held alive and run again every second in the same process\n\
         (those that repeat themselves 100 times or more do so 10 times); one that exits ends only\n\
         the goroutine that asks for it. Each figure is of leaks that Go's test expects:\n\n\
         - *found*: a verdict `leak` names the creation site, the place where they wait and for what;\n\
         - *missed*: goroutines stand there at the end, but there is no verdict `leak`;\n\
         - *absent*: not a single goroutine stands there. The programs marked with * do not leak\n\
         \x20 each time, and of several leaks of one program often only some can come about;\n\
         - *other*: a verdict `leak` on what Go's test does not list. Go proves that nobody can ever\n\
         \x20 wake a goroutine; `watch` says that they pile up. What piles up but could be woken is\n\
         \x20 listed here, below with its place.\n\n\
         A program's own main goroutine, which here is a new one each second, is left out.\n\n\
         The rule needs 12 goroutines that came to one place over half a minute or more and stayed.\n\
         So it misses what came about too rarely in this time (the number of goroutines is given\n\
         below), and goroutines that hinder each other but go on now and then. A leak that happened\n\
         once it cannot see at all: that takes a proof that nobody can reach what is waited for.\n\n",
        programs.len()
    );
    text += &head("found / missed / absent / other", builds);
    for (flaky, what) in [(false, "leak every time"), (true, "do not (*)")] {
        let of = programs.iter().filter(|p| p.flaky == flaky).count();
        text += &format!("| {of} that {what} |");
        for outcomes in outcomes {
            let all = programs.iter().zip(outcomes).filter(|(p, _)| p.flaky == flaky);
            let sum = all.fold([0; 4], |sum, (_, o)| {
                let n = [o.found, o.missed.len(), o.absent.len(), o.other.len()];
                [0, 1, 2, 3].map(|i| sum[i] + n[i])
            });
            text += &format!(" {} |", sum.map(|n| n.to_string()).join(" / "));
        }
        text.push('\n');
    }
    text += &format!("\n## Each program\n\n{}", head("found / missed / absent / other", builds));
    for (i, p) in programs.iter().enumerate() {
        text += &format!("| {}{} |", p.name, if p.flaky { "*" } else { "" });
        for o in outcomes.iter().filter_map(|o| o.get(i)) {
            text += &match &o.ended {
                Some(how) => format!(" ended: {how} |"),
                None => format!(
                    " {} / {} / {} / {} |",
                    o.found,
                    o.missed.len(),
                    o.absent.len(),
                    o.other.len()
                ),
            };
        }
        text.push('\n');
    }
    text += "\n## What was missed, and what else was found\n\n";
    for (version, outcomes) in builds.iter().zip(outcomes) {
        for (p, o) in programs.iter().zip(outcomes) {
            let missed = o.missed.iter().map(|(m, n)| format!("missed `{m}` ({n} goroutines)"));
            let other = o.other.iter().map(|w| format!("other `{w}`"));
            let all: Vec<String> = missed.chain(other).collect();
            if !all.is_empty() {
                text += &format!("- {version} {}: {}\n", p.name, all.join(", "));
            }
        }
    }
    text
}

fn head(what: &str, builds: &[&str]) -> String {
    let names: Vec<String> = builds.iter().map(|b| format!(" {b} |")).collect();
    format!("| {what} |{}\n|---|{}\n", names.concat(), "---|".repeat(builds.len()))
}
