//! The report of `detect`: findings over series, in the shape of the other
//! report (an unknown value is null), with times in the series' own time
//! (`schema/detect-1.json`).

use serde::{Deserialize, Serialize};

use super::{
    clean::clean,
    model::{self, EvidenceKind, Kind, Severity, Verdict},
    text::{bytes, seconds},
};
use crate::detect::{
    fleet::{Fleet, Found, Seen},
    trend::{Standing, State, Why},
    verdict,
};

pub const SCHEMA: &str = "claw-ebpf/detect/1";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeriesReport {
    pub schema: String,
    pub agent: String,
    pub task: String,
    pub findings: Vec<SeriesFinding>,
    /// With `--explain`: what each series did.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub series: Vec<Explained>,
    pub summary: SeriesSummary,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeriesFinding {
    pub id: String,
    pub kind: Kind,
    pub verdict: Verdict,
    pub severity: Severity,
    /// 0 to 1.
    pub confidence: f64,
    pub pid: Option<u32>,
    pub process: String,
    pub tenant: String,
    pub site: model::Site,
    pub growth: model::Growth,
    pub live: model::Live,
    /// s, in the series' own time: when the growth began, and when it was
    /// found.
    pub since: f64,
    pub detected_at: f64,
    /// From the beginning of the series.
    pub detected_after_s: f64,
    /// s until the limit at this rate, where there is one.
    pub limit_reached_in_s: Option<f64>,
    pub evidence: Vec<model::Evidence>,
    pub holder: Option<model::Holder>,
    pub remedy: Option<model::Remedy>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    pub process: String,
    pub tenant: String,
    pub site: String,
    pub points: u64,
    pub duration_s: f64,
    pub verdict: String,
    pub seen: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeriesSummary {
    pub series: u64,
    pub points: u64,
    /// Rows without a value.
    pub missing: u64,
    pub leaks_detected: u32,
    pub suspects: u32,
    pub severity: Option<Severity>,
    /// Series that the baseline knows.
    pub with_baseline: u64,
    pub enough_evidence: bool,
    pub why_not_enough: Option<String>,
}

/// What the report says beyond the series.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Percent per minute from which a leak is of severity high.
    pub threshold: f64,
    /// Memory limit of each process, bytes.
    pub limit: Option<f64>,
    pub explain: bool,
    pub missing: u64,
}

pub fn report(fleet: &Fleet, terms: &Terms) -> SeriesReport {
    let found = fleet.found();
    let findings: Vec<SeriesFinding> = found.iter().map(|f| finding(f, terms)).collect();
    let seen = fleet.seen();
    let judged = seen.iter().filter(|s| s.judged).count();
    let count = |v| findings.iter().filter(|f| f.verdict == v).count() as u32;
    let why = (judged == 0).then(|| {
        format!(
            "none of {} series has 12 values over 4 minutes or more: a longer run would do",
            seen.len()
        )
    });
    let summary = SeriesSummary {
        series: seen.len() as u64,
        points: seen.iter().map(|s| s.points).sum(),
        missing: terms.missing,
        leaks_detected: count(Verdict::Leak),
        suspects: count(Verdict::Suspect),
        severity: findings.iter().map(|f| f.severity).max(),
        with_baseline: seen.iter().filter(|s| s.baseline).count() as u64,
        enough_evidence: why.is_none(),
        why_not_enough: why,
    };
    let explain = |s: &Seen<'_>| explained(s, &found);
    SeriesReport {
        schema: SCHEMA.into(),
        agent: model::AGENT.into(),
        task: model::TASK.into(),
        series: if terms.explain { seen.iter().map(explain).collect() } else { Vec::new() },
        findings,
        summary,
    }
}

fn explained(s: &Seen<'_>, found: &[Found<'_>]) -> Explained {
    let verdict = match found.iter().find(|f| f.subject == s.subject) {
        Some(f) if f.state == State::Leak => "leak",
        Some(_) => "suspect",
        None if s.judged => "no leak",
        None => "unknown: too few values",
    };
    let mut seen = s.notes.words();
    if verdict != "no leak" {
        seen.retain(|w| !w.starts_with("flat"));
    }
    Explained {
        process: clean(&s.subject.process),
        tenant: clean(&s.subject.tenant),
        site: clean(&s.subject.site),
        points: s.points,
        duration_s: s.to - s.from,
        verdict: verdict.into(),
        seen,
    }
}

fn finding(f: &Found<'_>, terms: &Terms) -> SeriesFinding {
    let s = f.standing;
    let per_minute = |slope: f64| round(slope * 60.0);
    let percent = s.slope * 60.0 / s.base() * 100.0;
    let site = clean(&f.subject.site);
    let left = terms.limit.map(|l| ((l - f.live) / s.slope).max(0.0));
    let state = f.state;
    SeriesFinding {
        id: model::finding_id(&f.subject.process, Kind::Heap, &f.subject.tenant, &f.subject.site),
        kind: Kind::Heap,
        verdict: if state == State::Leak { Verdict::Leak } else { Verdict::Suspect },
        severity: verdict::severity(percent, terms.threshold),
        confidence: model::rounded(confidence(f)),
        pid: None,
        process: clean(&f.subject.process),
        tenant: clean(&f.subject.tenant),
        site: model::Site {
            id: site.clone(),
            function: site,
            file: None,
            line: None,
            stack: Vec::new(),
        },
        growth: model::Growth {
            percent_per_minute: Some((percent * 1e4).round() / 1e4),
            bytes_per_minute: Some(per_minute(s.slope)),
            count_per_minute: None,
            interval95: Some(s.interval.map(|v| per_minute(v.into()))),
        },
        live: model::Live {
            before_attach_bytes: None,
            bytes: Some(f.live),
            objects: None,
            oldest_s: None,
            age_s: None,
            freed_lifetime_s: None,
        },
        since: f.t0 + f64::from(s.since_s),
        detected_at: f.detected_at,
        detected_after_s: f.detected_at - f.t0,
        limit_reached_in_s: left.map(f64::round),
        evidence: evidence(f, left),
        holder: None,
        remedy: None,
    }
}

/// A leak that the company of others makes doubtful is no surer than a suspect.
fn confidence(f: &Found<'_>) -> f64 {
    let sure = verdict::confidence(f.standing);
    if f.state == State::Suspect { sure.min(verdict::SUSPECT) } else { sure }
}

fn round(v: f64) -> f64 {
    (v * 10.0).round() / 10.0
}

fn evidence(f: &Found<'_>, left: Option<f64>) -> Vec<model::Evidence> {
    let s = f.standing;
    let say = |kind, detail, value| model::Evidence { kind, detail, value: Some(value) };
    let [low, high] = s.interval.map(|v| bytes(f64::from(v) * 60.0));
    let mut all = vec![say(
        EvidenceKind::Trend,
        format!(
            "the envelope grew by {:.0} % of {} without coming back, {} a minute (95 %: {low} to \
             {high}), without a step and without slowing down; chance would show that in one of \
             {:.0} days",
            s.grew() / s.base() * 100.0,
            bytes(s.base()),
            bytes(s.slope * 60.0),
            (1.0 / f64::from(s.p)).min(1e9),
        ),
        round(s.slope * 60.0),
    )];
    if s.with_baseline {
        let detail = "beyond what the baseline's warm-up, load, rises and falls account for";
        all.push(say(EvidenceKind::Baseline, detail.to_owned(), s.base().round()));
    }
    if let Some([allocated, freed]) = f.kept {
        let detail = format!(
            "of {allocated:.0} objects {freed:.0} were freed since they no longer die as they did"
        );
        all.push(say(EvidenceKind::Age, detail, f64::from(allocated - freed)));
    }
    if f.series > 1 && f.state == State::Leak {
        let detail = format!("held against chance among the {} series of its process", f.series);
        all.push(say(EvidenceKind::Trend, detail, f.series as f64));
    }
    if s.restarts > 0 {
        let detail = format!("the process began anew since, {} times", s.restarts);
        all.push(say(EvidenceKind::Trend, detail, f64::from(s.restarts)));
    }
    let doubt = doubt(f.state, s);
    if let Some(detail) = doubt {
        all.push(model::Evidence { kind: EvidenceKind::Trend, detail, value: None });
    }
    if let Some(left) = left {
        let detail = format!("reaches the memory limit in {}", seconds(left));
        all.push(say(EvidenceKind::Trend, detail, left.round()));
    }
    all
}

/// Why it is no more than a suspicion.
fn doubt(state: State, s: &Standing) -> Option<String> {
    let why = match (state, s.why) {
        (State::Leak, _) => return None,
        (_, Some(Why::WarmUp)) => {
            "growing, unconfirmed: it began with the process and may be a warm-up or a cache that \
             fills; a baseline would tell"
        }
        (_, Some(Why::Daily)) => {
            "growing, unconfirmed: less than a day was seen and the load is not known, so it may be \
             the daily course; a baseline or the load would tell"
        }
        (_, Some(Why::Load)) => {
            "growing, unconfirmed: the load rose by as large a share meanwhile; a baseline or a \
             fall of the load would tell"
        }
        (_, None) => "growing, unconfirmed: among so many series it may be chance",
    };
    Some(why.to_owned())
}

pub fn render(r: &SeriesReport) -> String {
    let mut out = String::new();
    let s = &r.summary;
    let head = format!("{} series, {} values", s.series, s.points);
    let missing =
        if s.missing > 0 { format!(", {} without a value", s.missing) } else { String::new() };
    out += &format!("{head}{missing}, {} with a baseline\n\n", s.with_baseline);
    match &s.why_not_enough {
        Some(why) => out += &format!("Not enough evidence: {why}.\n"),
        None if r.findings.is_empty() => out += "No leak found.\n",
        None => {}
    }
    for (i, f) in r.findings.iter().enumerate() {
        let site = if f.site.id.is_empty() { String::new() } else { format!(" at {}", f.site.id) };
        out += &format!(
            "{}. {:?} ({:?}, confidence {:.2}): {}, tenant {}{site}\n   {:.3} %/min, since t={:.0}, \
             found at t={:.0}\n",
            i + 1,
            f.verdict,
            f.severity,
            f.confidence,
            f.process,
            f.tenant,
            f.growth.percent_per_minute.unwrap_or(0.0),
            f.since,
            f.detected_at,
        );
        for e in &f.evidence {
            out += &format!("   - {}\n", e.detail);
        }
    }
    for s in &r.series {
        let site = if s.site.is_empty() { String::new() } else { format!(" at {}", s.site) };
        out += &format!("\n{}, tenant {}{site}: {}\n", s.process, s.tenant, s.verdict);
        for seen in &s.seen {
            out += &format!("   - {seen}\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::series::{Point, Subject};

    #[test]
    fn report_follows_its_schema_and_names_the_leak() {
        let mut fleet = Fleet::default();
        let subject = |site: &str| Subject {
            process: "api".into(),
            tenant: "acme".into(),
            site: site.into(),
        };
        let (leak, fine) = (fleet.id(&subject("a.go:1")), fleet.id(&subject("b.go:2")));
        for i in 0..600 {
            let t = f64::from(i) * 10.0;
            let grown = 1.0 + 0.02 * (t / 60.0 - 30.0).max(0.0);
            fleet.put(leak, &Point::new(t, 1e8 * grown));
            fleet.put(fine, &Point::new(t, 1e8));
        }
        let terms = Terms { threshold: 5.2, limit: Some(1e9), explain: true, missing: 0 };
        let report = report(&fleet, &terms);
        assert_eq!(report.findings.len(), 1);
        let f = &report.findings[0];
        assert_eq!((f.site.id.as_str(), f.verdict), ("a.go:1", Verdict::Leak));
        assert!((f.growth.percent_per_minute.unwrap() - 2.0).abs() < 0.2, "{f:#?}");
        assert!(f.detected_at > 1800.0 && f.detected_at < 3000.0, "{f:#?}");
        let schema = serde_json::from_str(include_str!("../../schema/detect-1.json")).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let document = serde_json::to_value(&report).unwrap();
        let errors: Vec<String> = validator.iter_errors(&document).map(|e| e.to_string()).collect();
        assert_eq!(errors, [] as [String; 0]);
        assert!(render(&report).contains("a.go:1"));
    }
}
