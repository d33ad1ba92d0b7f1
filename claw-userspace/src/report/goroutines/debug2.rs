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
        let minutes = m.waiting_at_most_s.map_or(0, |s| (s / 60.0) as u64);
        let minutes = if minutes > 0 { format!(", {minutes} minutes") } else { String::new() };
        let locked = if m.locked_to_thread { ", locked to thread" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "goroutine {id} [{}{minutes}{locked}]:", g.status());
        stack(&mut out, g);
        let shown = g.created_by.as_ref().filter(|f| is_shown(&f.function, false) && id != 1);
        if let Some(f) = shown {
            let parent = m.parent.map(|p| format!(" in goroutine {p}")).unwrap_or_default();
            let _ = writeln!(out, "created by {}{parent}", f.function);
            place(&mut out, f, false);
        }
    }
    out
}

fn stack(out: &mut String, g: &Group) {
    if g.stack.is_empty() {
        out.push_str("\tgoroutine running on other thread; stack unavailable\n");
        return;
    }
    let mut trapped = false;
    for (i, f) in g.stack.iter().enumerate() {
        if is_shown(&f.function, i == 0) {
            // As `printFuncName` has it.
            let name = if &*f.function == "runtime.gopanic" { "panic" } else { &*f.function };
            let _ = writeln!(out, "{name}(...)");
            place(out, f, trapped);
        }
        trapped = ["runtime.sigpanic", "runtime.asyncPreempt"].contains(&&*f.function);
    }
}

/// `trapped`: no call led away from it, so what is kept is one more than its
/// address.
fn place(out: &mut String, f: &Frame, trapped: bool) {
    let file = f.file.as_deref().unwrap_or("?");
    let _ = write!(out, "\t{file}:{}", f.line.unwrap_or(0));
    // One byte in, it stands at the entry itself.
    if !f.inlined && f.offset > 1 {
        let _ = write!(out, " +{:#x}", f.offset - u64::from(trapped));
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
