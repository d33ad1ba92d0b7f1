//! When a CPython process is stopped for a moment to see who holds what grows
//! in it: with `--max-pause` alone, when something is found to grow, and then
//! less and less often.

use std::{collections::BTreeMap, time::Instant};

use super::{
    Options,
    clock::monotonic_ns,
    python::WatchedPython,
    sink::Sink,
    steps::{make_step, step},
};
use crate::{
    report::clean::clean,
    stream::{HoldersItem, Item, StepStatus},
    target::cpython::{graph::paths::cleaned, live::Holders},
};

/// Between the first look and the second, ns; each further one takes twice as
/// long. Two tell what grows from what was there.
const APART_NS: u64 = 15_000_000_000;
/// Looks at one process.
const MOST_LOOKS: u32 = 8;

/// The looks at one process.
#[derive(Debug, Default)]
pub struct Looks {
    taken: u32,
    types: Vec<String>,
    not_before_ns: u64,
    refused: Option<String>,
}

/// Look at the processes of which something grows.
pub fn look(pythons: &mut BTreeMap<u32, WatchedPython>, sink: &mut Sink, options: &Options) {
    if options.max_pause.is_zero() {
        return;
    }
    for (pid, python) in pythons {
        let types = sink.growing_types(*pid);
        let now = monotonic_ns();
        let (live, looks) = python.for_holders();
        if !looks.is_due(&types, now) {
            continue;
        }
        let began = Instant::now();
        let wanted = |name: &str| types.binary_search(&clean(name)).is_ok();
        match live.holders(options.max_pause, &wanted) {
            Ok(held) => {
                looks.taken(types.clone(), now);
                let p = held.pause;
                let detail = format!(
                    "process {pid} stood {:.1} ms while {} MiB were copied (attempt {})",
                    p.took.as_secs_f64() * 1e3,
                    p.bytes >> 20,
                    p.attempts
                );
                sink.put(step("Pausing", detail, began));
                sink.put(Item::Holders(item(*pid, now, held)));
            }
            Err(e) => {
                looks.taken(types.clone(), now);
                let why = e.to_string();
                if looks.refused.as_ref() != Some(&why) {
                    let mut s = make_step("Pausing", format!("process {pid}: {why}"), began);
                    s.status = StepStatus::Blocked;
                    sink.put(Item::Step(s));
                    looks.refused = Some(why);
                }
            }
        }
    }
}

impl Looks {
    fn is_due(&self, types: &[String], now_ns: u64) -> bool {
        let news = types.iter().any(|t| self.types.binary_search(t).is_err());
        !types.is_empty() && self.taken < MOST_LOOKS && (now_ns >= self.not_before_ns || news)
    }

    fn taken(&mut self, types: Vec<String>, now_ns: u64) {
        self.not_before_ns = now_ns.saturating_add(APART_NS << self.taken.min(16));
        self.taken += 1;
        self.types.extend(types);
        self.types.sort();
        self.types.dedup();
    }
}

fn item(pid: u32, t_ns: u64, held: Holders) -> HoldersItem {
    HoldersItem {
        pid,
        t_ns,
        pause_ns: u64::try_from(held.pause.took.as_nanos()).unwrap_or(u64::MAX),
        bytes: held.pause.bytes,
        took_ns: held.took_ns,
        whole: held.found.whole,
        gc_off: held.found.gc_off,
        types: held.found.types.into_iter().map(cleaned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_and_less_often_but_at_once_for_what_is_new() {
        let mut looks = Looks::default();
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert!(!looks.is_due(&[], 0) && looks.is_due(&names(&["A"]), 0));
        looks.taken(names(&["A"]), 0);
        assert!(!looks.is_due(&names(&["A"]), APART_NS - 1));
        assert!(looks.is_due(&names(&["A", "B"]), 1) && looks.is_due(&names(&["A"]), APART_NS));
        looks.taken(names(&["A", "B"]), 1);
        assert!(!looks.is_due(&names(&["A"]), APART_NS + 2));
        assert!(looks.is_due(&names(&["B"]), 2 * APART_NS + 1));
        for i in 0..MOST_LOOKS.into() {
            looks.taken(names(&["A"]), i);
        }
        assert!(!looks.is_due(&names(&["C"]), u64::MAX));
    }
}
