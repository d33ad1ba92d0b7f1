//! For people: fits a terminal, the largest group first.

use std::fmt::Write;

use super::{Dump, Frame, Group};
use crate::report::text::{self, Style};

/// Frames and ids that are shown of a group.
const MOST_FRAMES: usize = 24;
const MOST_IDS: usize = 8;

// Writing to a String cannot fail.
macro_rules! line {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

/// At most `most` groups.
pub fn render(d: &Dump, most: usize, style: Style) -> String {
    let mut out = String::new();
    let whence = match &d.core {
        Some(core) => format!("core {core} of pid {}", d.pid),
        None => format!("pid {}", d.pid),
    };
    line!(
        out,
        "{} ({whence}), {}: {} goroutines in {} groups, read in {:.0} ms",
        d.process,
        d.version,
        d.goroutines,
        d.groups.len(),
        d.elapsed_ms
    );
    for note in notes(d) {
        line!(out, "  {note}");
    }
    for g in d.groups.iter().take(most) {
        out.push('\n');
        group(&mut out, g);
    }
    if let Some(more) = d.groups.len().checked_sub(most).filter(|n| *n > 0) {
        let count: usize = d.groups.iter().skip(most).map(|g| g.count).sum();
        line!(out, "\n{more} more groups, {count} goroutines (--top 0 shows all)");
    }
    if let Some(report) = &d.report {
        out.push('\n');
        out += &text::findings(report, style);
    }
    out
}

fn notes(d: &Dump) -> Vec<String> {
    let u = &d.unseen;
    let all = [
        (u.system as u64, "of the runtime's own are left out (--system shows them)"),
        (u.running as u64, "ran while they were read: their stacks are not known"),
        (u.torn as u64, "changed whenever they were read: their stacks are not known"),
        (u.partial as u64, "have stacks that could not be followed to the outermost function"),
        (u.torn_slots as u64, "slots held no goroutine in any known state"),
        (u.labels as u64, "have labels that could not be read"),
        (u.core_missing_bytes, "bytes of memory are missing: the core dump was cut short"),
    ];
    all.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect()
}

fn group(out: &mut String, g: &Group) {
    let mut head = format!("{} [{}]", g.count, g.status());
    if let Some(s) = g.longest_s() {
        head += &format!(", waiting for at most {}", duration(s));
    }
    for (key, value) in g.labels.iter() {
        head += &format!(", {key}={value}");
    }
    line!(out, "{head}");
    if g.stack_is != "complete" {
        line!(out, "    ({})", g.stack_is);
    }
    for f in g.stack.iter().take(MOST_FRAMES) {
        line!(out, "    {}", place(f));
    }
    if let Some(more) = g.stack.len().checked_sub(MOST_FRAMES).filter(|n| *n > 0) {
        line!(out, "    … {more} more");
    }
    match (&g.created_by, &g.start_function) {
        (Some(f), _) => {
            line!(out, "    created by {}", place(f));
        }
        (None, Some(start)) => {
            line!(out, "    started as {start}");
        }
        (None, None) => {}
    }
    let ids: Vec<String> = g.members.iter().take(MOST_IDS).map(|m| m.id.to_string()).collect();
    let more = if g.count > MOST_IDS { ", …" } else { "" };
    line!(out, "    goroutine {}{more}", ids.join(", "));
}

fn place(f: &Frame) -> String {
    match (&f.file, f.line) {
        (Some(file), Some(line)) => format!("{} {file}:{line}", f.function),
        _ => f.function.to_string(),
    }
}

fn duration(s: f64) -> String {
    match s {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
