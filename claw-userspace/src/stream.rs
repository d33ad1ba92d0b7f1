//! What flows from the live half (probes, symbols, process facts) to the pure
//! half (`engine`), in order. A recording is this stream in a file, which is
//! why `replay` finds what `watch` found.

mod census;
mod flows;
mod holders;
mod native;
mod python;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use census::{CensusItem, Grown, TypeCount};
pub use flows::{FlowGroup, FlowKind, FlowLine, PyFlows};
pub use holders::HoldersItem;
pub use native::{NativeWindow, NativeWriter};
pub use python::{Placed, PyGain, PyWindow, PyWriter, is_unclear};

use crate::decode::{Event, Label};
use crate::symbol::Frame;

/// One step of the stream. Everything the engine knows arrives as one of
/// these; time is the `t_ns` in them (`CLOCK_MONOTONIC`, ns), never a clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Item {
    /// Always first.
    Session(Session),
    /// A process is watched from now on (also again after an exec).
    Target(TargetInfo),
    /// Names of one address, sent before the first event that uses it.
    /// Innermost inlined frame first; empty when the address has no name.
    Frames {
        pid: u32,
        pc: u64,
        frames: Vec<Frame>,
    },
    /// Return addresses of a runtime profile bucket (leaf first), sent before
    /// the first `Free` that names it.
    Bucket {
        pid: u32,
        bucket: u64,
        stack: Vec<u64>,
    },
    Event(Event),
    /// Cumulative counters of the BPF side since attach, all targets together.
    Counters(Counters),
    /// What is now known about one process from /proc.
    Memory {
        pid: u32,
        t_ns: u64,
        rss_bytes: u64,
        anon_bytes: u64,
        threads: u32,
    },
    /// End of an interval: time to judge, and to take stock.
    Tick {
        t_ns: u64,
    },
    /// The process ended, was replaced or could no longer be watched.
    TargetGone {
        pid: u32,
        t_ns: u64,
        why: String,
    },
    /// A part of a target can no longer be seen from `t_ns` on; what was known
    /// of it is void.
    Blind {
        pid: u32,
        t_ns: u64,
        part: Part,
        why: String,
    },
    /// A line of the execution log.
    Step(Step),
    /// Always last, unless the recording was cut.
    End {
        t_ns: u64,
    },
    /// A part of a target is seen in another way from `t_ns` on; what was
    /// known of it is void.
    Restart {
        pid: u32,
        t_ns: u64,
        part: Part,
    },
    /// `samples` objects of `size` bytes each, allocated at the stack of
    /// `bucket`, were in use when watching began; one was taken per `rate`
    /// bytes.
    Before {
        pid: u32,
        bucket: u64,
        size: u64,
        samples: u64,
        rate: u64,
    },
    /// Stack (leaf first) and type of what windows count under `id`, sent
    /// before the first that does. Of goroutines: the `go` statement, and the
    /// function that was started in place of the type.
    ExactSite {
        pid: u32,
        id: u32,
        goroutine: bool,
        type_name: Option<String>,
        stack: Vec<u64>,
    },
    /// What exact mode saw while a window was open.
    Window(Window),
    /// A goroutine stands still; sent when it was found so twice.
    Still(Still),
    /// One that stood still has moved or ended.
    Moved {
        pid: u32,
        id: u64,
        t_ns: u64,
    },
    /// What a CPython heap held at one moment.
    Census(CensusItem),
    /// Within an interval: time to judge by age, so that a verdict need not
    /// wait for the interval's end.
    Judge {
        t_ns: u64,
    },
    /// Who allocated what grows in a CPython heap.
    PyWindow(PyWindow),
    /// Who holds what grows in a CPython heap.
    Holders(HoldersItem),
    /// Threads or asyncio tasks of a CPython process.
    Flows(PyFlows),
    /// Who allocates what grows outside the pools of a CPython process.
    NativeWindow(NativeWindow),
    /// Garbage collections of a CPython process since it began, of each
    /// generation.
    Collections {
        pid: u32,
        t_ns: u64,
        generations: [u64; 3],
        /// Whether it runs by itself, in all interpreters.
        enabled: bool,
    },
    /// How much memory a process may use.
    Limit {
        pid: u32,
        t_ns: u64,
        limit: Limit,
    },
    /// When a window was open on a CPython process.
    Placed(Placed),
}

/// A window of exact mode, or a part of one that stays open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub pid: u32,
    /// Everything that happened from here to there was counted.
    pub from_ns: u64,
    pub to_ns: u64,
    pub opened: bool,
    pub closed: bool,
    pub hits: u64,
    /// The target's work that was lost to it, ns (estimate).
    pub lost_work_ns: f64,
    /// ns from one window to the next that the budget allows.
    pub period_ns: f64,
    /// What was not counted, or not in full, by reason.
    pub lost: BTreeMap<String, u64>,
    pub counts: Vec<SeenCount>,
}

/// Allocations (or new goroutines) of one site, tenant and size class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeenCount {
    /// See [`Item::ExactSite`]; `u32::MAX` when it is not known.
    pub site: u32,
    pub label: Option<Label>,
    pub count: u64,
    /// As requested.
    pub bytes: u64,
}

/// A goroutine in the same place in two looks at it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Still {
    pub pid: u32,
    pub id: u64,
    /// Return address of the `go` statement.
    pub gopc: u64,
    /// When it was first found there.
    pub since_ns: u64,
    /// It stood there when watching began.
    pub before: bool,
    /// In the runtime's words.
    pub reason: String,
    pub label: Option<Label>,
    /// Return addresses, leaf first.
    pub stack: Vec<u64>,
}

/// What can be watched in a process, each by its own probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Part {
    Heap,
    Goroutines,
}

impl Part {
    /// As it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Heap => "in-use heap",
            Self::Goroutines => "goroutines",
        }
    }

    /// Whether it is among what cannot be seen.
    pub fn is_blocked(self, blocked: &[Blocked]) -> bool {
        blocked.iter().any(|b| b.what == self.name())
    }
}

/// The limit of memory that is nearest to being reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub bytes: u64,
    /// Of it in use by all that share it, without what the kernel takes back.
    pub used_bytes: u64,
    pub of: LimitOf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitOf {
    Cgroup,
    Machine,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    pub execution_id: String,
    pub host: String,
    pub environment: Option<String>,
    /// Wall clock at `t_ns`, ns since the Unix epoch.
    pub wall_ns: u64,
    pub t_ns: u64,
    pub interval_ns: u64,
    /// Percent per minute from which growth is of severity *high*.
    pub threshold: f64,
}

impl Session {
    /// Seconds since the Unix epoch.
    pub fn unix_s(&self, t_ns: u64) -> f64 {
        let since = t_ns as f64 - self.t_ns as f64;
        self.wall_ns as f64 / 1e9 + since / 1e9
    }
}

/// [`TargetInfo::mode`] of a process of which only its memory use is known.
pub const MEMORY_MODE: &str = "memory";

/// … and of a Go process of which only goroutines are looked at, without probes.
pub const GOROUTINES_MODE: &str = "goroutines";

/// Facts about a watched process, fixed at attach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetInfo {
    pub pid: u32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot: with the pid it
    /// identifies a process even if the pid is reused.
    pub start_ticks: u64,
    /// Age of the process at attach.
    pub uptime_ns: u64,
    pub t_ns: u64,
    pub name: String,
    pub exe: String,
    /// `go` or `cpython`.
    pub runtime: String,
    /// As the runtime calls itself, e.g. `go1.26.6`.
    pub version: String,
    pub stripped: bool,
    pub container: Option<Container>,
    /// `sampled`, `exact`, `census`, [`MEMORY_MODE`] or [`GOROUTINES_MODE`].
    pub mode: String,
    /// Mean bytes between two samples; `None` when unknown (then nothing can
    /// be unsampled), `Some(0)` when the runtime does not sample.
    pub sample_rate: Option<u64>,
    /// In-use heap at attach, bytes: the fixed denominator of growth in
    /// percent. `None` when it could not be read.
    pub heap_bytes: Option<u64>,
    /// The tenant of every event of this process when no label matches
    /// (`--tenant env:`, `--tenant cgroup`), already cleaned.
    pub default_tenant: Option<String>,
    /// How many of the label keys come before the rule that gave
    /// `default_tenant`: a label with one of those keys wins over it.
    pub labels_before_default: u8,
    pub blocked: Vec<Blocked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    pub image: Option<String>,
    pub pod_uid: Option<String>,
}

/// Something that cannot be seen, why, and what would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    pub what: String,
    pub why: String,
}

/// See [`claw_common::Counter`]. Cumulative since attach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    pub t_ns: u64,
    /// Events written by BPF, and what is missing, by reason.
    pub sent: u64,
    pub lost: BTreeMap<String, u64>,
    /// Probe hits and the ns the targets spent in them (estimate).
    pub hits: u64,
    pub probe_ns: u64,
}

impl Counters {
    /// Share of all events that were lost before they could be read, 0 to 1.
    pub fn lost_share(&self) -> f64 {
        let lost = self.lost.get("ring_full").copied().unwrap_or(0) as f64;
        let all = self.sent as f64 + lost;
        if all > 0.0 { lost / all } else { 0.0 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub t_ns: u64,
    pub action: String,
    pub detail: String,
    pub status: StepStatus,
    pub elapsed_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepStatus {
    #[serde(rename = "success")]
    Success,
    #[serde(rename = "ALERT")]
    Alert,
    #[serde(rename = "blocked")]
    Blocked,
    #[serde(rename = "error")]
    Error,
}
