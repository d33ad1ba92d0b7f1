//! What a person sees while a watch goes on.

use super::{
    model::{Report, Verdict},
    text::{Style, bytes, overview, seconds},
};

/// Everything at a glance, for a terminal.
pub fn view(r: &Report, style: Style) -> String {
    overview(r, style) + "\n Ctrl-C ends the watch and prints the report\n"
}

/// One line: how far it is and what it knows so far.
pub fn progress(r: &Report) -> String {
    let received: u64 = r.targets.iter().map(|t| t.events.received).sum();
    let cycles: Vec<u64> = r.targets.iter().filter_map(|t| t.gc_cycles).collect();
    let gc = if cycles.is_empty() {
        String::new()
    } else {
        format!(", {} GC cycles", cycles.iter().sum::<u64>())
    };
    let holding = match r.tenants.len() {
        0 => known(r.targets.iter().map(|t| t.live_bytes))
            .map_or("heap not seen".to_owned(), |live| format!("{live} in use")),
        n => {
            let tenants = if n == 1 { "tenant" } else { "tenants" };
            let live = known(r.tenants.iter().map(|t| t.live_bytes));
            format!("{n} {tenants}{}", live.map(|b| format!(" holding {b}")).unwrap_or_default())
        }
    };
    let state = match (r.summary.leaks_detected, r.summary.suspects, &r.summary.why_not_enough) {
        (0, 0, Some(_)) => "collecting evidence".to_owned(),
        (0, 0, None) => "no leak so far".to_owned(),
        (0, s, _) => format!("{s} suspected"),
        (n, _, _) => {
            let worst = r.findings.iter().find(|f| f.verdict == Verdict::Leak);
            let tenant = worst.map(|f| format!(", worst: {}", f.tenant)).unwrap_or_default();
            format!("{n} leak{}{tenant}", if n == 1 { "" } else { "s" })
        }
    };
    let lost = match r.summary.lost_events {
        0 => String::new(),
        n => format!(", {n} lost"),
    };
    format!("{:>7}  {received} events{lost}{gc}, {holding}: {state}", seconds(r.duration_s),)
}

/// The sum of those that are known, if any is.
fn known(all: impl Iterator<Item = Option<f64>>) -> Option<String> {
    all.flatten().reduce(|sum, b| sum + b).map(bytes)
}

#[cfg(test)]
mod tests {
    use super::known;

    #[test]
    fn what_is_not_known_is_not_nothing() {
        assert_eq!(known([None, None].into_iter()), None);
        assert_eq!(known([None, Some(0.0)].into_iter()).as_deref(), Some("0 B"));
    }
}
