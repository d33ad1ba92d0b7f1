//! The report for people: fits a terminal, the worst first.

use std::fmt::Write;

use super::{
    finding::finding,
    model::{
        BeforeAttach, Finding, HolderStep, LimitOf, MemoryLimit, Report, Severity, Site, Tenant,
        Verdict,
    },
};
use crate::stream::Part;

/// Columns that lines fit in.
pub const WIDTH: usize = 100;
/// Tenants that are shown.
const MOST_TENANTS: usize = 20;

/// Colours or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Plain,
    Colour,
}

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Colour => format!("\x1b[{code}m{text}\x1b[0m"),
        }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn verdict(self, f: &Finding, text: &str) -> String {
        match (f.verdict, f.severity) {
            (Verdict::Leak, Severity::High) => self.paint("1;31", text),
            (Verdict::Leak, _) => self.paint("31", text),
            _ => self.paint("33", text),
        }
    }
}

pub fn render(r: &Report, style: Style) -> String {
    let mut out = String::new();
    head(&mut out, r, style);
    out += &findings(r, style);
    tenants(&mut out, r, style);
    allocations(&mut out, r, style);
    out
}

/// The findings alone, or why there are none.
pub fn findings(r: &Report, style: Style) -> String {
    let mut out = String::new();
    verdicts(&mut out, r, style);
    for (i, f) in r.findings.iter().enumerate() {
        finding(&mut out, i + 1, f, style);
    }
    out
}

/// The report without the findings' details: what fits a screen.
pub fn overview(r: &Report, style: Style) -> String {
    let mut out = String::new();
    head(&mut out, r, style);
    verdicts(&mut out, r, style);
    tenants(&mut out, r, style);
    allocations(&mut out, r, style);
    out
}

fn verdicts(out: &mut String, r: &Report, style: Style) {
    if r.findings.is_empty() {
        nothing(out, r, style);
    } else {
        table(out, r, style);
    }
}

// Writing to a String cannot fail, so the results of `writeln!` are dropped
// here once.
macro_rules! line {
    ($out:expr) => { $out.push('\n') };
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}
pub(super) use line;

fn head(out: &mut String, r: &Report, style: Style) {
    let environment = r.environment.as_ref().map(|e| format!(", {e}")).unwrap_or_default();
    let title = format!("{} on {}{environment}", r.execution_id, r.host);
    line!(out, "{}", style.bold(&cut(&title, WIDTH)));
    for t in &r.targets {
        let mut facts = vec![t.version.clone(), t.mode.clone()];
        if t.stripped {
            facts.push("stripped".into());
        }
        if let Some(c) = &t.container {
            let image = t.image.as_ref().map(|i| format!(" ({i})")).unwrap_or_default();
            facts.push(format!("container {}{image}", cut(c, 12)));
        }
        if let Some(rss) = t.rss_bytes {
            facts.push(format!("RSS {}", bytes(rss as f64)));
        }
        if let Some(gc) = t.gc_cycles {
            let of = t.gc_generations.map(|g| format!(" ({} + {} + {})", g[0], g[1], g[2]));
            facts.push(format!("{gc} GC cycles{}", of.unwrap_or_default()));
        }
        let text = format!("  {} (pid {}): {}", t.name, t.pid, facts.join(", "));
        line!(out, "{}", cut(&text, WIDTH));
        if let Some(gone) = &t.gone {
            line!(out, "    {}", cut(&format!("no longer watched: {gone}"), WIDTH - 4));
        }
        if let Some(before) = t.before_attach.as_ref().filter(|b| b.bytes >= 1.0) {
            held(out, before);
        }
        if let Some(text) = t.memory_limit.as_ref().and_then(limit) {
            line!(out, "    {}", cut(&text, WIDTH - 4));
        }
        for b in &t.blocked {
            wrapped(out, &format!("blocked: {}: {}", b.what, b.why), "    ", "    ");
        }
    }
    let known = || r.targets.iter().filter_map(|t| t.overhead.estimated_ratio);
    let hits: u64 = r.targets.iter().map(|t| t.overhead.hits).sum();
    let ratio: f64 = known().sum();
    let cost = known()
        .next()
        .map(|_| format!(", {hits} probe hits, {:.2} % of one CPU", ratio * 100.0))
        .unwrap_or_default();
    let received: u64 = r.targets.iter().map(|t| t.events.received).sum();
    line!(out, "  watched {}, {received} events, {}{cost}", seconds(r.duration_s), lost(r));
    line!(out);
}

/// When leaks reach the limit of memory.
fn limit(l: &MemoryLimit) -> Option<String> {
    let whose = match l.of {
        LimitOf::Cgroup => "its cgroup's limit",
        LimitOf::Machine => "the machine's",
    };
    Some(format!(
        "memory: {} of {} in use ({whose}), full in at most {} by its leaks",
        bytes(l.used_bytes as f64),
        bytes(l.bytes as f64),
        seconds(l.reached_in_s?)
    ))
}

/// The steps from a root to what it holds.
pub(super) fn way(path: &[HolderStep]) -> String {
    let step = |s: &HolderStep| {
        let count = s.count.filter(|n| *n > 1).map(|n| format!(" × {n}")).unwrap_or_default();
        format!("{} {}{count}", s.field.as_deref().unwrap_or("?"), s.type_name)
    };
    path.iter().map(step).collect::<Vec<_>>().join(" → ")
}

/// What was there before, and the site with most of it.
fn held(out: &mut String, before: &BeforeAttach) {
    let most = before.sites.first().map(|s| {
        let place = match (&s.file, s.line) {
            (Some(file), Some(line)) => format!(" ({file}:{line})"),
            _ => String::new(),
        };
        format!("; most of it, {}, at {}{place}", bytes(s.bytes), s.function)
    });
    let text = format!("in use since before: {}{}", bytes(before.bytes), most.unwrap_or_default());
    wrapped(out, &text, "    ", "      ");
}

fn lost(r: &Report) -> String {
    let all: Vec<String> = r
        .targets
        .first()
        .map(|t| &t.events.lost)
        .into_iter()
        .flatten()
        .filter(|(_, n)| **n > 0)
        .map(|(name, n)| format!("{n} {name}"))
        .collect();
    if all.is_empty() { "none lost".into() } else { format!("LOST {}", all.join(", ")) }
}

fn nothing(out: &mut String, r: &Report, style: Style) {
    let unseen = r.targets.iter().filter(|t| Part::Heap.is_blocked(&t.blocked));
    let unseen: Vec<String> = unseen.map(|t| t.pid.to_string()).collect();
    let text = match &r.summary.why_not_enough {
        Some(why) => format!("Not enough evidence to say whether anything leaks: {why}."),
        None if unseen.is_empty() => {
            "No leak found: nothing outlives its peers and keeps accumulating.".to_owned()
        }
        None => format!(
            "No leak found in what is seen, to which the heap does not belong (process {}): nothing \
             of it outlives its peers and keeps accumulating.",
            unseen.join(", ")
        ),
    };
    wrapped(out, &style.bold(&text), "", "  ");
    line!(out);
}

fn table(out: &mut String, r: &Report, style: Style) {
    let header = format!(
        " {:<2} {:<8} {:<8} {:<10} {:<18} {:<24} {:>8}  {:>12}",
        "#", "VERDICT", "SEVERITY", "KIND", "TENANT", "SITE", "%/MIN", "GROWTH/MIN"
    );
    line!(out, "{}", style.dim(header.trim_end()));
    for (i, f) in r.findings.iter().enumerate() {
        let percent = f.growth.percent_per_minute.map_or_else(|| "-".into(), |p| format!("{p:.1}"));
        let row = format!(
            " {:<2} {:<8} {:<8} {:<10} {:<18} {:<24} {:>8}  {:>12}",
            i + 1,
            word(&f.verdict),
            word(&f.severity),
            word(&f.kind),
            cut(&f.tenant, 18),
            place(f, 24),
            percent,
            growth(f),
        );
        line!(out, "{}", style.verdict(f, row.trim_end()));
    }
    line!(out);
}

fn tenants(out: &mut String, r: &Report, style: Style) {
    if r.tenants.is_empty() {
        return;
    }
    let header = format!(
        " {:<24} {:>8} {:>22} {:>12} {:>12} {:>12}",
        "TENANT", "PID", "LIVE SINCE ATTACH", "OBJECTS", "ALLOC/S", "GOROUTINES"
    );
    line!(out, "{}", style.dim(&header));
    for t in r.tenants.iter().take(MOST_TENANTS) {
        line!(out, "{}", tenant_row(t));
    }
    if r.tenants.len() > MOST_TENANTS {
        line!(out, " … {} more", r.tenants.len() - MOST_TENANTS);
    }
}

fn tenant_row(t: &Tenant) -> String {
    let or_dash = |v: Option<String>| v.unwrap_or_else(|| "-".into());
    let live = t.live_bytes.map(|b| match t.live_bytes_se {
        Some(se) => format!("{} ± {}", bytes(b), bytes(se)),
        None => bytes(b),
    });
    format!(
        " {:<24} {:>8} {:>22} {:>12} {:>12} {:>12}",
        cut(&t.tenant, 24),
        t.pid,
        or_dash(live),
        or_dash(t.live_objects.map(|o| format!("{o:.0}"))),
        or_dash(t.alloc_bytes_per_s.map(bytes)),
        or_dash(t.goroutines.map(|g| g.to_string())),
    )
}

fn allocations(out: &mut String, r: &Report, style: Style) {
    for (t, e) in r.targets.iter().filter_map(|t| Some((t, t.exact.as_ref()?))) {
        let how = match e.scaled_by.as_str() {
            "complete" => "every allocation was counted".to_owned(),
            by => format!(
                "{} windows saw {:.2} % of {}, scaled by {}",
                e.windows,
                e.coverage * 100.0,
                seconds(e.span_s),
                if by == "sampler" { "the runtime's own sampler" } else { "time" }
            ),
        };
        let cost = e.estimated_ratio * 100.0;
        line!(out);
        wrapped(
            out,
            &format!(
                "Allocations in {} (pid {}): {how}; cost {cost:.2} % of its work",
                t.name, t.pid
            ),
            "",
            "  ",
        );
    }
    if r.allocations.is_empty() {
        return;
    }
    let header = format!(
        " {:<14} {:<22} {:<24} {:>10} {:>10} {:>12}",
        "TENANT", "TYPE", "SITE", "BYTES/S", "COUNT/S", "95 % ±"
    );
    line!(out, "{}", style.dim(&header));
    for a in r.allocations.iter().take(MOST_TENANTS) {
        let half = a.interval95.map(|[low, high]| {
            if a.count_per_s > 0.0 { (high - low) / 2.0 / a.count_per_s * 100.0 } else { 0.0 }
        });
        let (name, subject) = (a.type_name.as_deref().unwrap_or("-"), a.kind == "goroutine");
        let text = format!(
            " {:<14} {:<22} {:<24} {:>10} {:>10.0} {:>12}",
            cut(&a.tenant, 14),
            cut(&if subject { format!("go {name}") } else { name.to_owned() }, 22),
            site_place(&a.site, 24),
            a.bytes_per_s.map_or_else(|| "-".into(), bytes),
            a.count_per_s,
            half.map_or_else(|| "-".into(), |h| format!("{h:.1} %")),
        );
        line!(out, "{text}");
    }
    if r.allocations.len() > MOST_TENANTS {
        line!(out, " … {} more", r.allocations.len() - MOST_TENANTS);
    }
}

/// The name that serde gives an enum's value: one spelling everywhere.
pub(super) fn word<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn growth(f: &Finding) -> String {
    match (f.growth.bytes_per_minute, f.growth.count_per_minute) {
        (Some(b), _) => bytes(b),
        (None, Some(c)) => format!("{c:.1}"),
        (None, None) => "-".into(),
    }
}

fn place(f: &Finding, width: usize) -> String {
    site_place(&f.site, width)
}

fn site_place(site: &Site, width: usize) -> String {
    match (&site.file, site.line) {
        (Some(file), Some(line)) => {
            let name = file.rsplit('/').take(2).collect::<Vec<_>>();
            let name: Vec<&str> = name.into_iter().rev().collect();
            cut_left(&format!("{}:{line}", name.join("/")), width)
        }
        _ => cut(&site.function, width),
    }
}

/// Binary units, three digits.
pub fn bytes(n: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    // Adding 0 takes the sign off a zero: an empty sum of floats is -0.
    let (mut value, mut unit) = (n + 0.0, 0);
    while value.abs() >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value.abs() >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

pub fn seconds(s: f64) -> String {
    if s < 120.0 {
        format!("{s:.0} s")
    } else if s < 7200.0 {
        format!("{:.0} min {:.0} s", (s / 60.0).floor(), s % 60.0)
    } else {
        format!("{:.1} h", s / 3600.0)
    }
}

/// At most `width` characters, the end replaced by an ellipsis.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// As [`cut`], but keeps the end: of a path that is what tells.
pub(super) fn cut_left(text: &str, width: usize) -> String {
    let n = text.chars().count();
    if n <= width {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(n + 1 - width)).collect()
}

/// Words of `text` in lines of at most [`WIDTH`] columns; a word longer than a
/// line is cut.
pub fn wrapped(out: &mut String, text: &str, first: &str, rest: &str) {
    let mut current = first.to_owned();
    let mut empty = true;
    for word in text.split(' ') {
        let room = WIDTH - visible(if empty { &current } else { rest });
        let word = if visible(word) > room { cut(word, room) } else { word.to_owned() };
        if !empty && visible(&current) + 1 + visible(&word) > WIDTH {
            line!(out, "{current}");
            current = rest.to_owned();
            empty = true;
        }
        if !empty {
            current.push(' ');
        }
        current.push_str(&word);
        empty = false;
    }
    line!(out, "{current}");
}

/// Characters of `text` that take a column: colour sequences do not.
fn visible(text: &str) -> usize {
    let mut inside = false;
    text.chars()
        .filter(|c| {
            let was = inside;
            inside = if *c == '\x1b' { true } else { inside && *c != 'm' };
            !was && !inside
        })
        .count()
}
