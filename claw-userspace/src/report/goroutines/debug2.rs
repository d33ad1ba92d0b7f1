//! Go's own text, as `/debug/pprof/goroutine?debug=2` and a crash print it
//! (`goroutineheader` and `traceback2` in `runtime/traceback.go`). Arguments
//! are not read: every call has `(...)`.

use std::fmt::Write;

use super::{Dump, Frame, Group};

pub fn render(d: &Dump) -> String {
    let mut all: Vec<_> =
        d.groups.iter().flat_map(|g| g.members.iter().map(move |m| (m.id, g, m))).collect();
    all.sort_unstable_by_key(|(id, ..)| *id);
    let mut out = String::new();
    for (i, (id, g, m)) in all.into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let minutes = m.waiting_at_least_s.map_or(0, |s| (s / 60.0) as u64);
        let minutes = if minutes > 0 { format!(", {minutes} minutes") } else { String::new() };
        let locked = if m.locked_to_thread { ", locked to thread" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "goroutine {id} [{}{minutes}{locked}]:", g.status());
        stack(&mut out, g);
        let shown = g.created_by.as_ref().filter(|f| is_shown(&f.function, false) && id != 1);
        if let Some(f) = shown {
            let parent = m.parent.map(|p| format!(" in goroutine {p}")).unwrap_or_default();
            let _ = writeln!(out, "created by {}{parent}", f.function);
            place(&mut out, f);
        }
    }
    out
}

fn stack(out: &mut String, g: &Group) {
    if g.stack.is_empty() {
        out.push_str("\tgoroutine running on other thread; stack unavailable\n");
        return;
    }
    for (i, f) in g.stack.iter().enumerate().filter(|(i, f)| is_shown(&f.function, *i == 0)) {
        let _ = i;
        let _ = writeln!(out, "{}(...)", f.function);
        place(out, f);
    }
}

fn place(out: &mut String, f: &Frame) {
    let file = f.file.as_deref().unwrap_or("?");
    let _ = write!(out, "\t{file}:{}", f.line.unwrap_or(0));
    if !f.inlined && f.offset > 0 {
        let _ = write!(out, " +{:#x}", f.offset);
    }
    out.push('\n');
}

/// `showfuncinfo`: the runtime's inner functions are left out.
fn is_shown(function: &str, first: bool) -> bool {
    if function == "runtime.gopanic" {
        return !first;
    }
    match function.strip_prefix("runtime.") {
        Some(name) => {
            let known = ["runFinalizers", "runCleanups", "runfinq"].contains(&name);
            // `isExportedRuntime`: an upper-case letter, methods aside.
            known || name.chars().next().is_some_and(|c| c.is_ascii_uppercase())
        }
        None => function.contains('.'),
    }
}
