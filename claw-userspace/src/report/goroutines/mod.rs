//! The goroutines of one process at one moment, grouped by stack: the model
//! and the formats it is written in.

mod debug2;
mod pprof;
mod text;

use std::{collections::BTreeMap, io, sync::Arc};

use serde::Serialize;

use super::{
    json,
    model::{JsonLine, Report},
};

pub use debug2::render as debug2;
pub use pprof::encode as pprof;
pub use text::render as text;

pub const SCHEMA: &str = "claw-ebpf/goroutines/1";

/// Unknown values are `null`; strings are cleaned of control characters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dump {
    pub schema: &'static str,
    /// RFC 3339, UTC; null for a core dump.
    pub timestamp: Option<String>,
    pub pid: u32,
    pub process: String,
    pub version: String,
    /// The core dump that it was read from; null for a live process.
    pub core: Option<String>,
    /// All that are in `groups`.
    pub goroutines: usize,
    /// Distinct stacks.
    pub stacks: usize,
    pub unseen: Unseen,
    pub elapsed_ms: f64,
    /// Largest first.
    pub groups: Vec<Group>,
    /// What several looks made of them; null when there was one only.
    pub report: Option<Box<Report>>,
    #[serde(skip)]
    pub mapping: (u64, u64, u64, String),
    #[serde(skip)]
    pub time_nanos: i64,
}

pub type Labels = BTreeMap<String, String>;

/// What is not shown, or not as fact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unseen {
    /// The runtime's own goroutines, left out.
    pub system: usize,
    /// Running while they were read: their stacks are not known.
    pub running: usize,
    /// Changed whenever they were read: their stacks are not known.
    pub torn: usize,
    /// Stacks that could not be followed to their outermost function.
    pub partial: usize,
    /// Slots of `runtime.allgs` that held no goroutine in any known state.
    pub torn_slots: usize,
    /// Reads done again because a goroutine had moved.
    pub retried: usize,
    /// Goroutines whose labels could not be read.
    pub labels: usize,
    /// Bytes that a core dump promises and does not hold.
    pub core_missing_bytes: u64,
}

/// Goroutines with the same stack, state, wait reason, creator and labels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    pub count: usize,
    pub state: &'static str,
    /// In the runtime's words; null when they do not wait.
    pub wait_reason: Option<&'static str>,
    /// The collector proved that nothing can wake them (Go ≥ 1.26).
    pub leaked: bool,
    /// `complete`, or why it is not all of the stack.
    pub stack_is: &'static str,
    /// Leaf first.
    pub stack: Vec<Frame>,
    pub created_by: Option<Frame>,
    pub start_function: Option<Arc<str>>,
    pub labels: Arc<Labels>,
    pub members: Vec<Member>,
}

/// Shares its names with all other frames of the same address.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Frame {
    pub function: Arc<str>,
    pub file: Option<Arc<str>>,
    pub line: Option<u32>,
    pub inlined: bool,
    #[serde(skip)]
    pub address: u64,
    /// From the start of the function, bytes.
    #[serde(skip)]
    pub offset: u64,
    #[serde(skip)]
    pub start_line: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    pub id: u64,
    /// The goroutine that created it; null where the runtime does not keep it.
    pub parent: Option<u64>,
    /// The runtime dates a wait to the end of the collection before the one
    /// that first found it, so it began later than that, or during that
    /// collection's marking. Null when no second collection has found it.
    pub waiting_at_most_s: Option<f64>,
    pub locked_to_thread: bool,
}

impl Group {
    /// As the runtime names it in brackets.
    pub fn status(&self) -> String {
        let word = self.wait_reason.filter(|r| !r.is_empty()).unwrap_or(self.state);
        if self.leaked { format!("{word} (leaked)") } else { word.to_owned() }
    }

    /// Longest of the upper bounds, seconds.
    pub fn longest_s(&self) -> Option<f64> {
        self.members.iter().filter_map(|m| m.waiting_at_most_s).max_by(f64::total_cmp)
    }
}

/// One line per goroutine.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    member: &'a Member,
    state: &'static str,
    wait_reason: Option<&'static str>,
    leaked: bool,
    stack_is: &'static str,
    stack: &'a [Frame],
    created_by: &'a Option<Frame>,
    start_function: &'a Option<Arc<str>>,
    labels: &'a Labels,
}

impl Dump {
    /// # Errors
    /// When it cannot be encoded.
    pub fn json(&self) -> io::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// One object per goroutine, and the report as `watch` writes it.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn json_lines(&self) -> io::Result<String> {
        let mut out = String::new();
        for g in &self.groups {
            for member in &g.members {
                out += &serde_json::to_string(&Line {
                    member,
                    state: g.state,
                    wait_reason: g.wait_reason,
                    leaked: g.leaked,
                    stack_is: g.stack_is,
                    stack: &g.stack,
                    created_by: &g.created_by,
                    start_function: &g.start_function,
                    labels: &g.labels,
                })?;
                out.push('\n');
            }
        }
        if let Some(report) = &self.report {
            out += &json::line(&JsonLine::Report(report.clone()))?;
        }
        Ok(out)
    }

    /// Collapsed stacks: root first, the number of goroutines as the weight.
    pub fn folded(&self) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for g in &self.groups {
            let mut names: Vec<String> =
                g.stack.iter().rev().map(|f| f.function.replace(';', ":")).collect();
            if names.is_empty() {
                names.push(format!("({}: stack not known)", g.status()));
            }
            *counts.entry(names.join(";")).or_default() += g.count;
        }
        counts.iter().map(|(stack, n)| format!("{stack} {n}\n")).collect()
    }
}
