//! One finding in words.

use std::fmt::Write;

use super::{
    model::{EvidenceKind, Finding, Kind, Site},
    text::{Style, WIDTH, bytes, cut, cut_left, growth, line, seconds, way, word, wrapped},
};

/// Frames of a stack that are shown.
const MOST_FRAMES: usize = 12;

/// `number` is its place in the table.
pub(super) fn finding(out: &mut String, number: usize, f: &Finding, style: Style) {
    let subject = match (f.kind, &f.type_name) {
        (Kind::Goroutine, _) => "goroutines created".to_owned(),
        (Kind::Thread, _) if f.site.stack.is_empty() => "threads started".to_owned(),
        (Kind::Task, _) => "asyncio tasks created".to_owned(),
        (Kind::Rss, _) => "memory outside the runtime's heap".to_owned(),
        (_, Some(name)) => format!("objects of {} made", cut(name, WIDTH / 2)),
        (_, None) if f.site.stack.is_empty() => "objects made".to_owned(),
        _ => "memory allocated".to_owned(),
    };
    let verbs = if subject.starts_with("memory") { "stays and grows" } else { "stay and grow" };
    let title = format!(
        "{number}. {}: {subject} for tenant {} in {} (pid {}) {verbs} by {} a minute",
        word(&f.verdict).to_uppercase(),
        f.tenant,
        f.process,
        f.pid,
        growth(f),
    );
    wrapped(out, &style.verdict(f, &title), "", "   ");
    stack(out, &f.site, style);
    if let Some(h) = &f.holder {
        let held = format!("held by {} ({} elements)", h.root, h.objects);
        wrapped(out, &held, "   ", "     ");
        if h.path.len() > 2 {
            wrapped(out, &way(&h.path), "     ", "       ");
        }
    }
    facts(out, f);
    line!(out);
}

/// The stack with the culprit's line marked.
fn stack(out: &mut String, site: &Site, style: Style) {
    for (i, frame) in site.stack.iter().take(MOST_FRAMES).enumerate() {
        let culprit =
            frame.function == site.function && frame.file == site.file && frame.line == site.line;
        let first = site.stack.iter().position(|s| s == frame) == Some(i);
        let marked = culprit && first;
        let place = match (&frame.file, frame.line) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            _ => String::new(),
        };
        let inlined = if frame.inlined { " (inlined)" } else { "" };
        let mark = if marked { "→" } else { " " };
        let text = format!("   {mark} {}{inlined}", cut(&frame.function, WIDTH - 17));
        line!(out, "{}", if marked { style.bold(&text) } else { text });
        if !place.is_empty() {
            line!(out, "{}", style.dim(&format!("       {}", cut_left(&place, WIDTH - 7))));
        }
    }
    if site.stack.len() > MOST_FRAMES {
        line!(out, "     … {} more", site.stack.len() - MOST_FRAMES);
    }
    if site.stack.is_empty() {
        line!(out, "{}", style.bold(&format!("   → {}", cut(&site.function, WIDTH - 5))));
        if let (Some(file), Some(line)) = (&site.file, site.line) {
            line!(
                out,
                "{}",
                style.dim(&format!("       {}", cut_left(&format!("{file}:{line}"), WIDTH - 7)))
            );
        }
    }
}

/// How much, how sure, why, and what to do.
fn facts(out: &mut String, f: &Finding) {
    let interval = f.growth.interval95.map(|[low, high]| match f.kind {
        Kind::Heap | Kind::Rss => format!(" (95 %: {} to {})", bytes(low), bytes(high)),
        _ => format!(" (95 %: {low:.1} to {high:.1})"),
    });
    let mut live = Vec::new();
    if let Some(b) = f.live.bytes {
        live.push(format!("{} in use", bytes(b)));
    }
    if let Some(o) = f.live.objects {
        let what = match f.kind {
            Kind::Goroutine => "goroutines",
            Kind::Thread => "threads",
            Kind::Task => "tasks",
            Kind::Heap | Kind::Rss => "objects",
        };
        live.push(format!("{o:.0} {what}"));
    }
    if let Some(o) = f.live.oldest_s {
        live.push(format!("oldest {}", seconds(o)));
    }
    if live.is_empty() {
        live.push("not known of its part alone".to_owned());
    }
    let fields = [
        ("growth", format!("{} a minute{}", growth(f), interval.unwrap_or_default())),
        ("live", live.join(", ")),
        (
            "sure",
            format!(
                "confidence {:.2}, found after {}, since {}",
                f.confidence,
                seconds(f.detected_after_s),
                f.since
            ),
        ),
    ];
    for (name, text) in fields {
        wrapped(out, &text, &format!("   {name:<9}"), "            ");
    }
    for e in &f.evidence {
        wrapped(out, &e.detail, &format!("   {:<9}", word(&e.kind)), "            ");
    }
    let said = f.evidence.iter().any(|e| e.kind == EvidenceKind::Blocked);
    if let Some(b) = f.blocked_on.as_ref().filter(|_| !said) {
        wrapped(out, &b.reason, "   blocked  ", "            ");
    }
    if let Some(remedy) = &f.remedy {
        wrapped(out, &remedy.text, "   remedy   ", "            ");
    }
}
