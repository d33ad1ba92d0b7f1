//! `--allow-remote-exec`: garbage is collected in a CPython process in which
//! something grows, before a census counts it.

use std::{
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use super::{
    clock::monotonic_ns,
    steps::{failed, step},
};
use crate::{
    stream::{Blocked, Item},
    target::{
        cpython::{
            live::LivePython,
            remote::{Door, LONGEST_COLLECTION, RemoteError},
        },
        process::Process,
    },
};

/// Longest that a census waits for a collection.
const WAIT: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(5);
/// Until a process that ran nothing is asked again, ns.
const AGAIN_NS: u64 = 30_000_000_000;

type Collected = Result<(u64, Duration), RemoteError>;

/// The collections of one process.
#[derive(Debug)]
pub struct Collections {
    allowed: bool,
    /// Share of the target's time that they may take.
    share: f64,
    not_before_ns: u64,
    under_way: Option<JoinHandle<Collected>>,
}

impl Collections {
    pub fn new(asked_for: bool, share: f64, door: &Result<Door, RemoteError>) -> Self {
        let allowed = asked_for && door.is_ok();
        Self { allowed, share, not_before_ns: 0, under_way: None }
    }

    /// Have one run, when that is allowed and called for; says how the last one
    /// went.
    pub fn run(&mut self, process: &Process) -> Option<Item> {
        let now = monotonic_ns();
        if self.under_way.is_none() && self.allowed && now >= self.not_before_ns {
            let process = process.clone();
            self.under_way = Some(thread::spawn(move || {
                let live =
                    LivePython::open(process).map_err(|e| RemoteError::Failed(e.to_string()))?;
                live.collect(LONGEST_COLLECTION)
            }));
        }
        let thread = self.under_way.take()?;
        let began = Instant::now();
        while !thread.is_finished() && began.elapsed() < WAIT {
            sleep(LOOK);
        }
        if !thread.is_finished() {
            self.under_way = Some(thread);
            return None;
        }
        let done = thread.join().ok()?;
        Some(self.told(process.pid, done, began))
    }

    fn told(&mut self, pid: u32, done: Collected, began: Instant) -> Item {
        let now = monotonic_ns();
        let what = "Collecting garbage in the target";
        match done {
            Ok((found, took)) => {
                let pause = took.as_nanos() as f64 / self.share;
                self.not_before_ns = now.saturating_add(pause as u64);
                let ms = took.as_secs_f64() * 1e3;
                step(
                    what,
                    format!("process {pid}: {found} objects found unreachable, {ms:.1} ms"),
                    began,
                )
            }
            Err(e) => {
                self.not_before_ns = now.saturating_add(AGAIN_NS);
                self.allowed = matches!(e, RemoteError::Idle(_) | RemoteError::Busy);
                failed(what, format!("process {pid}: {e}"))
            }
        }
    }
}

/// Where it was asked for and cannot be.
pub fn blocked(asked_for: bool, door: &Result<Door, RemoteError>) -> Option<Blocked> {
    let why = door.as_ref().err().filter(|_| asked_for)?.to_string();
    Some(Blocked { what: "garbage collection from inside (--allow-remote-exec)".into(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::StepStatus;

    fn status(item: &Item) -> StepStatus {
        match item {
            Item::Step(s) => s.status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_asked_no_more_often_than_it_may_cost() {
        let mut c = Collections { allowed: true, share: 0.01, not_before_ns: 0, under_way: None };
        let now = monotonic_ns();
        let said = c.told(1, Ok((7, Duration::from_millis(20))), Instant::now());
        assert_eq!(status(&said), StepStatus::Success);
        assert!(c.not_before_ns >= now + 2_000_000_000, "20 ms are 1 % of 2 s");
        let said = c.told(1, Err(RemoteError::Idle(WAIT)), Instant::now());
        assert!(status(&said) == StepStatus::Error && c.allowed, "it may wake up");
        c.told(1, Err(RemoteError::Failed("no".into())), Instant::now());
        assert!(!c.allowed);
    }

    #[test]
    fn refusals_are_said_when_it_was_asked_for() {
        let shut = Err(RemoteError::Forbidden);
        assert!(blocked(true, &shut).unwrap().why.contains("PYTHON_DISABLE_REMOTE_DEBUG"));
        assert!(blocked(false, &shut).is_none());
        assert!(!Collections::new(true, 0.01, &shut).allowed);
    }
}
