//! The report's shape, exactly as the JSON schema publishes it
//! (`schema/report-1.json`). An unknown value is `null`, never 0. Strings are
//! already cleaned of control characters when they get here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

pub use crate::stream::{Blocked, LimitOf, StepStatus};

pub const SCHEMA: &str = "claw-ebpf/report/1";
pub const AGENT: &str = "Data Analyst";
pub const TASK: &str = "Runtime Memory Leak Detection";

/// RFC 3339 UTC, whole seconds, of ns since the Unix epoch.
pub fn timestamp(ns: i128) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(ns - ns.rem_euclid(1_000_000_000))
        .ok()
        .and_then(|t| t.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: String,
    pub execution_id: String,
    pub agent: String,
    /// RFC 3339, UTC.
    pub timestamp: String,
    pub task: String,
    pub host: String,
    pub environment: Option<String>,
    pub duration_s: f64,
    pub execution_log: Vec<LogEntry>,
    pub targets: Vec<Target>,
    pub tenants: Vec<Tenant>,
    /// Exact mode: what was allocated and started, most bytes first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<Allocation>,
    /// Worst first.
    pub findings: Vec<Finding>,
    pub summary: Summary,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// From 1.
    pub step: u32,
    pub action: String,
    pub detail: String,
    pub status: StepStatus,
    pub elapsed_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    pub pid: u32,
    pub name: String,
    pub runtime: String,
    pub version: String,
    pub mode: String,
    pub stripped: bool,
    /// Container id, or null on the host.
    pub container: Option<String>,
    pub image: Option<String>,
    pub events: Events,
    pub overhead: Overhead,
    pub blocked: Vec<Blocked>,
    /// In-use bytes sampled since attach, unsampled estimate, with its
    /// standard error.
    pub live_bytes: Option<f64>,
    pub live_bytes_se: Option<f64>,
    pub rss_bytes: Option<u64>,
    /// What it may use; null when that is not known.
    #[serde(default)]
    pub memory_limit: Option<MemoryLimit>,
    /// GC cycles seen since attach; null where they are not known.
    pub gc_cycles: Option<u64>,
    /// Of CPython: how many of them collected each generation, youngest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gc_generations: Option<[u64; 3]>,
    /// What was in use before watching began and still is, from the runtime's
    /// own profile; null when that could not be read. Not part of
    /// `live_bytes`.
    pub before_attach: Option<BeforeAttach>,
    /// Why it is no longer watched, or null.
    pub gone: Option<String>,
    /// The latest 64 windows, oldest first: what its slow moments can be held
    /// against. Only where there were any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latest_windows: Vec<Window>,
    /// What exact mode did; only there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact: Option<Exact>,
}

/// The limit of memory that is nearest to being reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryLimit {
    /// Whose it is.
    pub of: LimitOf,
    pub bytes: u64,
    /// Of it in use by all that share it, without what the kernel takes back.
    pub used_bytes: u64,
    /// At the latest, at the rate of the leaks of memory found in this process (of
    /// CPython's types the named ones alone); null where there are none.
    pub reached_in_s: Option<f64>,
}

/// When probes that are not there all the time were: of exact mode, and on what
/// grows in a CPython process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub from_unix_s: f64,
    /// Of exact mode: before the probes are taken out, which takes another 10 ms or
    /// so. Of CPython: after, and from before they were put in.
    pub to_unix_s: f64,
    /// Estimate.
    pub lost_work_s: f64,
}

/// Windows of exact mode in one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exact {
    pub windows: u64,
    /// From the first window's start to the latest count; seconds since the Unix
    /// epoch.
    pub from_unix_s: f64,
    pub to_unix_s: f64,
    pub span_s: f64,
    /// All allocations together, in the span.
    pub objects_per_s: f64,
    /// 95 % interval of `objects_per_s`; null when too little was seen.
    pub interval95: Option<[f64; 2]>,
    pub covered_s: f64,
    /// Share of the span, 0 to 1; at 1 the figures are counts.
    pub coverage: f64,
    /// How counts became totals: `complete`, `sampler` or `time`.
    pub scaled_by: String,
    pub hits: u64,
    /// Share of the target's work lost to windows, estimate.
    pub estimated_ratio: f64,
    /// From one window to the next, s; null while one stays open.
    pub window_every_s: Option<f64>,
    /// What was not counted, or not in full, by reason.
    pub lost: BTreeMap<String, u64>,
}

/// Allocations, or goroutines started, of one tenant, site and type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    pub pid: u32,
    /// `object` or `goroutine`.
    pub kind: String,
    pub tenant: String,
    /// Of the object, or the function that the goroutine runs; null when it
    /// could not be told.
    #[serde(rename = "type")]
    pub type_name: Option<String>,
    pub site: Site,
    /// Over the span, as requested from the allocator; null for goroutines.
    pub bytes: Option<f64>,
    pub count: f64,
    pub bytes_per_s: Option<f64>,
    pub count_per_s: f64,
    /// 95 % interval of `count_per_s`; null when too little was seen.
    pub interval95: Option<[f64; 2]>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeforeAttach {
    pub bytes: f64,
    pub objects: f64,
    /// The largest, at most ten.
    pub sites: Vec<HeldSite>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldSite {
    pub id: String,
    pub function: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub bytes: f64,
    pub objects: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Events {
    pub received: u64,
    /// By reason; reasons that never occurred are present with 0.
    pub lost: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Overhead {
    pub hits: u64,
    /// Share of one CPU spent in probes; null before the first interval.
    pub estimated_ratio: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    pub tenant: String,
    pub pid: u32,
    /// In-use bytes of what was sampled since attach, unsampled estimate.
    pub live_bytes: Option<f64>,
    pub live_bytes_se: Option<f64>,
    pub live_objects: Option<f64>,
    /// In use since before watching began, which is nobody's (`-`) unless the
    /// whole process is one tenant's; null when it is not known.
    pub before_attach_bytes: Option<f64>,
    pub alloc_bytes_per_s: Option<f64>,
    /// 95 % interval of `alloc_bytes_per_s`; only in exact mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alloc_interval95: Option<[f64; 2]>,
    /// Alive among those created since attach.
    pub goroutines: Option<u64>,
    /// In-use bytes per unit of the tenant's own work, normalised to its own
    /// rolling baseline; null until there is one.
    pub coefficient: Option<f64>,
    /// Of the isolation forest over all tenants, 0 to 1; null with fewer than 8.
    pub anomaly_score: Option<f64>,
    /// What makes the tenant odd; null when it is not.
    #[serde(default)]
    pub odd_feature: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Heap,
    Goroutine,
    Thread,
    Rss,
    /// Of asyncio.
    Task,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Unknown,
    Suspect,
    Leak,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Low,
    Medium,
    High,
}

impl Severity {
    /// Of growth, as a share of what is grave: high from there on, medium from a
    /// tenth of it.
    pub fn of(share: f64) -> Self {
        if share >= 1.0 {
            Self::High
        } else if share >= 0.1 {
            Self::Medium
        } else {
            Self::Low
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable across runs and builds for the same subject.
    pub id: String,
    pub kind: Kind,
    pub verdict: Verdict,
    pub severity: Severity,
    /// 0 to 1.
    pub confidence: f64,
    pub pid: u32,
    pub process: String,
    pub tenant: String,
    /// CPython: of the objects that grow, or null.
    #[serde(default, rename = "type")]
    pub type_name: Option<String>,
    pub site: Site,
    pub growth: Growth,
    pub live: Live,
    /// RFC 3339: when the first object or goroutine of the leak was seen.
    pub since: String,
    /// From the start of watching to the first `leak` or `suspect` verdict.
    pub detected_after_s: f64,
    pub blocked_on: Option<BlockedOn>,
    pub evidence: Vec<Evidence>,
    pub holder: Option<Holder>,
    pub remedy: Option<Remedy>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Site {
    pub id: String,
    /// The culprit: first frame outside the runtime and the standard library.
    pub function: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// Leaf first, runtime frames of the allocator left out.
    pub stack: Vec<StackFrame>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackFrame {
    pub function: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub inlined: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Growth {
    /// Of the heap in use at attach; null when that is unknown.
    pub percent_per_minute: Option<f64>,
    pub bytes_per_minute: Option<f64>,
    /// Objects or goroutines.
    pub count_per_minute: Option<f64>,
    /// 95 % interval of `bytes_per_minute` (heap) or `count_per_minute`
    /// (goroutines, threads).
    pub interval95: Option<[f64; 2]>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Live {
    pub bytes: Option<f64>,
    pub objects: Option<f64>,
    /// Of the same site, whoever's, in use since before watching began; not
    /// part of `bytes`. Null when it is not known.
    pub before_attach_bytes: Option<f64>,
    pub oldest_s: Option<f64>,
    /// 5th, 50th and 95th percentile of the ages of live samples, seconds.
    pub age_s: Option<[f64; 3]>,
    /// The same for lifetimes of what was freed; null when nothing was.
    pub freed_lifetime_s: Option<[f64; 3]>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockedOn {
    pub reason: String,
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EvidenceKind {
    Trend,
    Age,
    Baseline,
    Forest,
    Blocked,
    Proof,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub kind: EvidenceKind,
    pub detail: String,
    pub value: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Holder {
    pub root: String,
    pub path: Vec<HolderStep>,
    pub objects: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HolderStep {
    #[serde(rename = "type")]
    pub type_name: String,
    pub field: Option<String>,
    pub bytes: Option<u64>,
    /// Different objects at this step; null when not counted.
    pub count: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remedy {
    pub text: String,
    pub file: Option<String>,
    pub line: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub leaks_detected: u32,
    pub suspects: u32,
    /// Of the worst finding; null when there is none.
    pub severity: Option<Severity>,
    /// Of the first `leak`; null when there is none.
    pub time_to_detect_s: Option<f64>,
    pub lost_events: u64,
    /// False when too little was seen to say anything (no GC cycle, nothing
    /// watched): then an empty list of findings means nothing.
    pub enough_evidence: bool,
    pub why_not_enough: Option<String>,
}

/// One line of `--format jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum JsonLine {
    Step(LogEntry),
    Target(Box<Target>),
    /// Sent when a finding is new or its verdict or severity changed.
    Finding(Box<Finding>),
    /// Once per interval.
    Interval {
        duration_s: f64,
        tenants: Vec<Tenant>,
        events: Events,
    },
    Report(Box<Report>),
}

/// A confidence as reports give it: to a thousandth.
pub fn rounded(confidence: f64) -> f64 {
    (confidence * 1000.0).round() / 1000.0
}

/// The same subject has the same id in every run and build: FNV-1a.
pub fn finding_id(process: &str, kind: Kind, tenant: &str, site: &str) -> String {
    let text = format!("{process}\0{kind:?}\0{tenant}\0{site}");
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
