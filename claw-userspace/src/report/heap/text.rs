//! A heap for people: the largest first, what cannot be trusted said first.

use std::fmt::Write;

use super::{HeapReport, HeapRow, HeldType};
use crate::report::text::{Style, WIDTH, bytes, cut_left, way, wrapped};

/// Rows that are shown; the other formats have all.
const MOST_ROWS: usize = 30;
/// Holders of one type that are shown.
const MOST_HOLDERS: usize = 4;

pub fn render(r: &HeapReport, style: Style) -> String {
    let mut out = String::new();
    let place = match (&r.core, r.pid) {
        (Some(core), _) => format!("core {core}"),
        (None, pid) => format!("pid {}", pid.unwrap_or(0)),
    };
    let _ = writeln!(out, "{} ({place}, {})", style.bold(&r.process), r.version);
    if let Some(since) = &r.since {
        let _ = writeln!(out, "change since {since}");
    }
    for b in &r.blocked {
        wrapped(&mut out, &format!("{}: {}", b.what, b.why), "  unknown: ", "    ");
    }
    let total = &r.total;
    let _ =
        writeln!(out, "{} in use in {} objects", signed(total.inuse_space), total.inuse_objects);
    if let Some(space) = total.alloc_space {
        let _ = writeln!(out, "{} allocated, what is gone included", signed(space));
    }
    if let Some(rate) = r.sample_rate.filter(|r| *r > 1) {
        let each = bytes(rate as f64);
        let _ = writeln!(out, "estimated: the runtime samples one object per {each} allocated");
    }
    out.push('\n');
    if r.rows.is_empty() {
        let _ = writeln!(out, "{}", if r.since.is_some() { "nothing changed" } else { "nothing" });
        return out;
    }
    let head = format!("{:>11} {:>10} {:>11}  {}", "in use", "objects", "allocated", r.by);
    let _ = writeln!(out, "{}", style.dim(&head));
    for row in r.rows.iter().take(MOST_ROWS) {
        line(&mut out, row, style);
    }
    if let Some(rest) = r.rows.get(MOST_ROWS..).filter(|r| !r.is_empty()) {
        let space = rest.iter().fold(0i64, |s, r| s.saturating_add(r.values.inuse_space));
        let _ = writeln!(
            out,
            "{:>11} {:>10} {:>11}  {} more: --format json has them all",
            signed(space),
            "",
            "",
            rest.len()
        );
    }
    for t in &r.holders {
        holders(&mut out, t, style);
    }
    out
}

/// Who holds the objects of one type.
fn holders(out: &mut String, t: &HeldType, style: Style) {
    out.push('\n');
    let title = format!("{} objects of {} are held by", t.objects, t.type_name);
    let _ = writeln!(out, "{}", style.bold(&cut_left(&title, WIDTH)));
    for h in t.holders.iter().take(MOST_HOLDERS) {
        let share = h.objects as f64 / t.objects.max(1) as f64 * 100.0;
        let held = format!("{} ({}, {share:.1} %)", h.root, h.objects);
        wrapped(out, &held, "  ", "    ");
        if h.path.len() > 1 {
            wrapped(out, &way(&h.path), "    ", "      ");
        }
    }
}

fn line(out: &mut String, row: &HeapRow, style: Style) {
    let allocated = row.values.alloc_space.map_or_else(|| "-".to_owned(), signed);
    let what = match (&row.type_name, &row.site) {
        (Some(name), _) => name.clone(),
        (None, Some(site)) => site.function.clone(),
        (None, None) => "(unknown)".to_owned(),
    };
    let _ = writeln!(
        out,
        "{:>11} {:>10} {allocated:>11}  {what}",
        signed(row.values.inuse_space),
        row.values.inuse_objects
    );
    if let Some(site) = &row.site
        && let Some(file) = &site.file
    {
        let place = format!("{file}:{}", site.line.unwrap_or(0));
        let _ = writeln!(out, "{:36}{}", "", style.dim(&cut_left(&place, WIDTH - 36)));
    }
}

fn signed(n: i64) -> String {
    let sign = if n < 0 { "-" } else { "" };
    format!("{sign}{}", bytes(n.unsigned_abs() as f64))
}
