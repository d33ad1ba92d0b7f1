//! A CPython process whose objects cannot be read, since its version or its
//! build is not known: what the kernel counts of it is all that is watched.

use super::{Options, clock::monotonic_ns, owner::Owner};
use crate::{
    report::clean::clean,
    stream::{Blocked, Item, MEMORY_MODE, TargetInfo},
    target::{
        cpython::{binary::Python, live::LiveError},
        limit,
        process::{MemoryUse, Process},
    },
};

#[derive(Debug)]
pub struct WatchedMemory {
    process: Process,
}

impl WatchedMemory {
    /// Gives what the stream has to know about it; `why` nothing else is seen.
    pub fn start(process: Process, why: &LiveError, options: &Options) -> (Self, TargetInfo) {
        let owner = Owner::of(&process, &options.tenants);
        let python = Python::of(&process).ok();
        let blocked = vec![Blocked {
            what: "objects, holders, threads, tasks and allocation sites".into(),
            why: format!("{}; its resident memory is watched", clean(&why.to_string())),
        }];
        let info = cpython(&process, owner, python.as_ref(), MEMORY_MODE, blocked);
        (Self { process }, info)
    }

    /// Why it can no longer be watched, if so.
    pub fn gone(&self) -> Option<&'static str> {
        if !self.process.is_alive() {
            return Some("it ended");
        }
        let now = Process::open(self.process.pid).ok()?;
        (now.exe != self.process.exe).then_some("it replaced its program (exec)")
    }

    /// What it uses now; nothing when it is gone, which is found out elsewhere.
    pub fn look(&self) -> Vec<Item> {
        memory(&self.process).map_or(Vec::new(), |(_, items)| items)
    }
}

/// What the stream has to know about a CPython process.
pub fn cpython(
    process: &Process,
    owner: Owner,
    python: Option<&Python>,
    mode: &str,
    blocked: Vec<Blocked>,
) -> TargetInfo {
    TargetInfo {
        pid: process.pid,
        start_ticks: process.start_ticks,
        uptime_ns: process.uptime_ns().unwrap_or(0),
        t_ns: monotonic_ns(),
        name: clean(&process.name),
        exe: clean(&process.exe),
        runtime: "cpython".into(),
        version: python.map_or_else(String::new, |p| p.version.to_string()),
        stripped: python.is_some_and(|p| p.stripped),
        container: owner.container,
        mode: mode.into(),
        sample_rate: None,
        heap_bytes: process.memory_use().ok().map(|m| m.anon_bytes).filter(|b| *b > 0),
        default_tenant: owner.tenant,
        labels_before_default: 0,
        blocked,
    }
}

/// What the kernel counts of a process now, and of what it may use; `None` when
/// it is gone.
pub fn memory(process: &Process) -> Option<(MemoryUse, Vec<Item>)> {
    let m = process.memory_use().ok()?;
    let (pid, t_ns) = (process.pid, monotonic_ns());
    let MemoryUse { rss_bytes, anon_bytes, threads } = m;
    let mut items = vec![Item::Memory { pid, t_ns, rss_bytes, anon_bytes, threads }];
    let limit = process.cgroup().and_then(|cgroup| limit::of_process(&cgroup));
    items.extend(limit.map(|limit| Item::Limit { pid, t_ns, limit }));
    Some((m, items))
}
