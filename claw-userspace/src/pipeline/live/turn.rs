//! What the loop does at each turn: keep the probes within the budget, judge,
//! and take stock.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use claw_common::EventKind;

use super::{JUDGE, JUDGE_SHARE, Live};
use crate::{
    pipeline::{
        clock::monotonic_ns,
        governor::EventCost,
        holders, nativegain,
        pace::pause,
        pygain,
        python::WatchedPython,
        pywindow::Seen,
        resident::WatchedMemory,
        steps::{failed, make_step, say, step},
        watched::Watched,
    },
    probe::PyWindows,
    stream::{Counters, Item, StepStatus},
};

impl Live<'_> {
    pub(super) fn govern(&mut self) {
        let program_ns = match self.probes.counters() {
            Ok(c) => EventCost {
                heap: c.mean_ns(&[EventKind::GoAlloc, EventKind::GoFree]),
                goroutines: c.mean_ns(&[EventKind::GoroutineNew, EventKind::GoroutineExit]),
                happened: self.flow.happened(c.sent, c.no_room()),
            },
            Err(_) => EventCost::default(),
        };
        let budget = (self.options.max_overhead, self.cpus);
        for target in self.targets.values_mut() {
            if let Some((item, detail)) = target.govern(&mut self.probes, budget, program_ns) {
                let mut s = make_step("Governing overhead", detail, self.started);
                if matches!(item, Item::Blind { .. }) {
                    s.status = StepStatus::Blocked;
                }
                self.sink.put(Item::Step(s));
                self.sink.put(item);
            }
            let sink = &mut self.sink;
            target.look(&mut |item| sink.put(item));
            target.look_for_still(&mut |item| sink.put(item));
            let notes = target.windows(&mut |item| sink.put(item));
            say(sink, notes, self.started);
        }
    }

    pub(super) fn close_windows(&mut self, target: &mut Watched) {
        let notes = target.close_windows(&mut |item| self.sink.put(item));
        say(&mut self.sink, notes, self.started);
    }

    pub(super) fn tick(&mut self) {
        self.collect();
        self.sink.put(Item::Tick { t_ns: monotonic_ns() });
        self.open_python_windows();
        holders::look(&mut self.pythons, &mut self.sink, self.options);
    }

    /// A window on each CPython process of which something is found to grow.
    pub(super) fn open_python_windows(&mut self) {
        let (windows, sink, cost) = (&mut self.py_windows, &mut self.sink, self.cost);
        for (pid, python) in &mut self.pythons {
            let types = sink.growing_types(*pid);
            let native = sink.grows_outside(*pid);
            let mut load = || {
                windows
                    .get_or_insert_with(|| {
                        let loading = Instant::now();
                        match PyWindows::load() {
                            Ok(windows) => {
                                let detail = "for windows on CPython".to_owned();
                                sink.put(step("Loading BPF programs", detail, loading));
                                Some(Arc::new(windows))
                            }
                            Err(e) => {
                                sink.put(failed("Loading BPF programs", e.to_string()));
                                None
                            }
                        }
                    })
                    .clone()
            };
            // The second finds no budget when the first has opened.
            if native && python.native_is_behind() {
                python.open_native(cost, &mut load);
                python.open(types, cost, &mut load);
            } else {
                python.open(types, cost, &mut load);
                if native {
                    python.open_native(cost, &mut load);
                }
            }
        }
    }

    pub(super) fn python_windows(&mut self, now: bool) {
        let mut pythons = std::mem::take(&mut self.pythons);
        for (pid, python) in &mut pythons {
            self.python_window(*pid, python, now);
        }
        self.pythons = pythons;
    }

    pub(super) fn python_window(&mut self, pid: u32, python: &mut WatchedPython, now: bool) {
        let Some(over) = python.window(now) else { return };
        let (seen, placed) = match over {
            Ok(over) => over,
            Err(why) => {
                self.sink.put(failed("Window", format!("process {pid}: {why}")));
                return;
            }
        };
        self.sink.put(Item::Placed(placed));
        match seen {
            Seen::Objects(seen) => {
                self.sink.put(step("Window", pygain::describe(&seen), self.started));
                self.sink.put(Item::PyWindow(seen));
            }
            Seen::Native(seen) => {
                self.sink.put(step("Window", nativegain::describe(&seen), self.started));
                self.sink.put(Item::NativeWindow(seen));
            }
        }
    }

    /// Judge before the interval is over; gives the time to the next time.
    pub(super) fn judge(&mut self) -> Duration {
        self.drain();
        let began = Instant::now();
        self.sink.put(Item::Judge { t_ns: monotonic_ns() });
        pause(JUDGE, JUDGE_SHARE, began.elapsed())
    }

    pub(super) fn collect(&mut self) {
        self.drain();
        self.counters();
        for target in self.targets.values() {
            for item in target.memory() {
                self.sink.put(item);
            }
        }
        for item in self.residents.values().flat_map(WatchedMemory::look) {
            self.sink.put(item);
        }
        let watched = self.pythons.len();
        for (pid, python) in &mut self.pythons {
            let grows = self.sink.grows_outside(*pid) || !self.sink.growing_types(*pid).is_empty();
            for item in python.look(grows, watched) {
                self.sink.put(item);
            }
        }
    }

    fn counters(&mut self) {
        match self.probes.counters() {
            Ok(c) => {
                let hits = c.hits();
                // The trap, and what the programs themselves took.
                let probe_ns = c.ns() + (hits as f64 * self.cost.emulated) as u64;
                self.sink.put(Item::Counters(Counters {
                    t_ns: monotonic_ns(),
                    sent: c.sent,
                    lost: c.lost.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
                    hits,
                    probe_ns,
                }));
            }
            Err(e) => self.sink.put(failed("Reading counters", e.to_string())),
        }
    }
}
