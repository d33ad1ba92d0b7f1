//! The thread that keeps one target's windows: opens them, watches what they
//! cost, closes them, and reports what they saw. A thread, since a window is
//! shorter than the live loop's step and closing one blocks.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use claw_common::{ExactKey, ExactValue, WindowCost, WindowStat, exact::MAX_KEYS};
use rustc_hash::FxHashMap;

use super::{account::Since, clock::monotonic_ns, duty::Duty};
use crate::{
    probe::{EveryPlan, Exact, exact::Counts},
    target::process::threads,
};

/// How long a window stays open at least, and between two looks at its cost.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const NEXT_LOOK: Duration = Duration::from_millis(4);
/// Longest nap while no window is open.
const NAP: Duration = Duration::from_millis(50);
/// A window that stays open is reported this often, ns.
const REPORT_NS: u64 = 1_000_000_000;
/// Time over which the CPUs that the target uses are averaged, ns.
const USAGE_NS: u64 = 500_000_000;
/// Threads that are looked at for it.
const MOST_TASKS: usize = 512;

/// What a window, or the latest part of one that stays open, has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// All probes were in place from here to there, `CLOCK_MONOTONIC` ns.
    pub from_ns: u64,
    pub to_ns: u64,
    pub opened: bool,
    pub closed: bool,
    /// Hits and losses since the last report.
    pub stat: WindowStat,
    /// The target's work that was lost, ns.
    pub lost_ns: f64,
    /// From one window to the next, as the budget allows, ns.
    pub period_ns: f64,
    pub counts: Counts,
}

#[derive(Debug)]
pub enum Said {
    Seen(Seen),
    /// No window can be opened, and none will be.
    Failed(String),
}

/// Ends with its target, or when dropped.
#[derive(Debug)]
pub struct Windows {
    stop: Arc<AtomicBool>,
    pause: Arc<Pause>,
    thread: Option<JoinHandle<()>>,
    said: Receiver<Said>,
}

/// Keeps windows closed for a while.
#[derive(Debug, Default)]
struct Pause {
    wanted: AtomicBool,
    /// Locked while a window is open, and during a pause.
    open: Mutex<()>,
}

/// No window is open as long as this lives.
#[derive(Debug)]
pub struct Paused<'a> {
    pause: &'a Pause,
    _open: MutexGuard<'a, ()>,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.pause.wanted.store(false, Ordering::Relaxed);
    }
}

/// What the thread needs to know.
pub struct Watch {
    pub pid: u32,
    pub exact: Arc<Exact>,
    pub plan: EveryPlan,
    pub bias: u64,
    /// Share of the target's time that windows may cost.
    pub budget: f64,
    /// Of a hit without the program, ns.
    pub trap_ns: f64,
    pub stream: bool,
    /// CPU time that other probes have cost the target so far, ns.
    pub beside_ns: Arc<AtomicU64>,
}

impl Windows {
    pub fn start(watch: Watch) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (say, said) = channel();
        let pause = Arc::new(Pause::default());
        let (stopped, paused) = (Arc::clone(&stop), Arc::clone(&pause));
        let thread = thread::spawn(move || Keeper::new(watch, say, stopped, paused).run());
        Self { stop, pause, thread: Some(thread), said }
    }

    /// Close the window that is open. `None` when no window opens any more.
    pub fn pause(&self) -> Option<Paused<'_>> {
        let thread = self.thread.as_ref()?;
        self.pause.wanted.store(true, Ordering::Relaxed);
        thread.thread().unpark();
        // Poisoned by a thread that panicked, and has closed its window by that.
        let open = self.pause.open.lock().ok()?;
        Some(Paused { pause: &self.pause, _open: open })
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Vec<Said> {
        self.said.try_iter().collect()
    }

    /// Close; what was seen last can then be taken.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A thread that panicked has closed its window by that.
            let _ = thread.join();
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Keeper {
    watch: Watch,
    say: Sender<Said>,
    stopped: Arc<AtomicBool>,
    pause: Arc<Pause>,
    duty: Duty,
    cpus: Usage,
    known: FxHashMap<ExactKey, ExactValue>,
    /// The part of the current window's account that was reported.
    told: WindowStat,
    /// … and what was paid for, and its price that was not reported yet.
    paid: WindowCost,
    unreported_ns: f64,
    beside_ns: u64,
}

impl Keeper {
    fn new(watch: Watch, say: Sender<Said>, stopped: Arc<AtomicBool>, pause: Arc<Pause>) -> Self {
        let now = monotonic_ns();
        Self {
            duty: Duty::new(watch.budget, now, u64::from(watch.pid) ^ now),
            cpus: Usage::new(watch.pid, now),
            known: FxHashMap::default(),
            told: WindowStat::default(),
            paid: WindowCost::default(),
            unreported_ns: 0.0,
            beside_ns: 0,
            watch,
            say,
            stopped,
            pause,
        }
    }

    fn run(mut self) {
        while !self.stopped.load(Ordering::Relaxed) {
            let now = self.advance();
            self.cpus.look(now);
            if self.pause.wanted.load(Ordering::Relaxed) {
                thread::park_timeout(NAP);
                continue;
            }
            match self.duty.wait_ns() {
                0 => {
                    if let Err(why) = self.window() {
                        let _ = self.say.send(Said::Failed(why));
                        break;
                    }
                }
                wait => thread::park_timeout(NAP.min(Duration::from_nanos(wait))),
            }
        }
        self.watch.exact.remove(self.watch.pid);
    }

    /// One window, from opening to closed.
    fn window(&mut self) -> Result<(), String> {
        let Watch { pid, bias, stream, .. } = self.watch;
        let target = |active| self.watch.plan.target(bias, active, stream);
        let (on, off) = (target(true), target(false));
        let exact = Arc::clone(&self.watch.exact);
        let text = |e: crate::probe::ProbeError| e.to_string();
        (self.told, self.paid) = (WindowStat::default(), WindowCost::default());
        let pause = Arc::clone(&self.pause);
        let open = pause.open.lock();
        let links = exact.open(pid, off, &self.watch.plan.points).map_err(text)?;
        exact.set(pid, on).map_err(text)?;
        let mut seen = Seen { from_ns: monotonic_ns(), opened: true, ..Seen::default() };
        let (mut cost, mut looks, mut stayed) = (0.0, 0, false);
        let stopped = loop {
            thread::park_timeout(if looks == 0 { FIRST_LOOK } else { NEXT_LOOK });
            looks += 1;
            let now = self.advance();
            cost += self.pay();
            let full = self.known.len() > MAX_KEYS as usize * 3 / 4;
            let stopped = self.stopped.load(Ordering::Relaxed);
            let paused = pause.wanted.load(Ordering::Relaxed);
            if self.duty.must_close() || full || stopped || paused {
                break stopped;
            }
            if now.saturating_sub(seen.from_ns) >= REPORT_NS {
                seen.to_ns = now;
                self.cpus.look(now);
                let next = Seen { from_ns: now, ..Seen::default() };
                self.report(std::mem::replace(&mut seen, next));
                stayed = true;
            }
        };
        exact.set(pid, off).map_err(text)?;
        seen.to_ns = monotonic_ns();
        // Blocks, but the probes are out of the code soon after it begins.
        drop((links, open));
        self.advance();
        let tail = self.pay();
        self.duty.closed(cost + tail, tail, looks == 1);
        // One that stayed open to the end was never closed.
        seen.closed = !(stopped && stayed);
        self.report(seen);
        if self.known.len() > MAX_KEYS as usize / 2 {
            exact.forget(&exact.counts(pid));
            self.known.clear();
        }
        Ok(())
    }

    /// Time goes on, and so do the other probes; gives the time.
    fn advance(&mut self) -> u64 {
        let now = monotonic_ns();
        let beside = self.watch.beside_ns.load(Ordering::Relaxed);
        let more = beside.saturating_sub(std::mem::replace(&mut self.beside_ns, beside));
        self.duty.advance(now, more as f64 / self.cpus.used.max(0.01));
        now
    }

    /// Pay for what was hit since the last time; gives its price, ns of lost
    /// work.
    fn pay(&mut self) -> f64 {
        let cost = self.watch.exact.stat(self.watch.pid).cost;
        let old = std::mem::replace(&mut self.paid, cost);
        let Some(since) = Since::of(cost, old) else { return 0.0 };
        let lost = since.lost_ns(self.watch.trap_ns + since.program_ns, self.cpus.used);
        self.duty.spend(lost);
        self.unreported_ns += lost;
        lost
    }

    fn report(&mut self, mut seen: Seen) {
        let stat = self.watch.exact.stat(self.watch.pid);
        let old = std::mem::replace(&mut self.told, stat);
        let since = |f: fn(&WindowStat) -> u64| f(&stat).saturating_sub(f(&old));
        seen.stat = WindowStat {
            cost: WindowCost { hits: since(|s| s.cost.hits), ..stat.cost },
            overflow: since(|s| s.overflow),
            stack_lost: since(|s| s.stack_lost),
            goroutine_unreadable: since(|s| s.goroutine_unreadable),
            stream_lost: since(|s| s.stream_lost),
        };
        seen.lost_ns = std::mem::take(&mut self.unreported_ns);
        seen.period_ns = self.duty.period_ns();
        for (key, value) in self.watch.exact.counts(self.watch.pid) {
            let old = self.known.insert(key, value).unwrap_or_default();
            if value.count > old.count {
                let more = ExactValue {
                    count: value.count - old.count,
                    bytes: value.bytes.saturating_sub(old.bytes),
                };
                seen.counts.push((key, more));
            }
        }
        // Nobody listens any more: then this is about to be stopped.
        let _ = self.say.send(Said::Seen(seen));
    }
}

/// CPUs that a process uses, on average.
pub(super) struct Usage {
    pid: u32,
    at_ns: u64,
    times: Option<Times>,
    pub(super) used: f64,
}

/// ns that all threads have run, and have waited for a CPU.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    run: u64,
    wait: u64,
}

impl Usage {
    pub(super) fn new(pid: u32, now_ns: u64) -> Self {
        Self { pid, at_ns: now_ns, times: Times::read(pid), used: 1.0 }
    }

    pub(super) fn look(&mut self, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.at_ns);
        if elapsed < USAGE_NS {
            return;
        }
        let times = Times::read(self.pid);
        if let (Some(old), Some(new)) = (self.times, times) {
            self.used = used(old, new, elapsed as f64);
        }
        (self.times, self.at_ns) = (times, now_ns);
    }
}

/// What a ns of lost CPU time is divided by to give the share of the work that
/// is lost: the CPUs that a target has which wants more, one for a target that
/// idles and so loses nothing by working a little longer.
fn used(old: Times, new: Times, elapsed_ns: f64) -> f64 {
    let share = |old: u64, new: u64| new.saturating_sub(old) as f64 / elapsed_ns;
    let (run, wait) = (share(old.run, new.run), share(old.wait, new.wait));
    let wanted = run + wait;
    if wanted <= 0.0 { 1.0 } else { (run / wanted.min(1.0)).max(0.05) }
}

impl Times {
    /// `/proc/PID/task/TID/schedstat`: ns run, ns waited, slices.
    fn read(pid: u32) -> Option<Self> {
        let mut sum = Self { run: 0, wait: 0 };
        for tid in threads(pid).ok()?.take(MOST_TASKS) {
            let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat"));
            // A thread that just ended.
            let Ok(text) = text else { continue };
            let mut numbers = text.split_ascii_whitespace().map_while(|n| n.parse::<u64>().ok());
            sum.run = sum.run.saturating_add(numbers.next()?);
            sum.wait = sum.wait.saturating_add(numbers.next()?);
        }
        Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_starved_target_loses_more_than_an_idle_one() {
        let from = Times { run: 0, wait: 0 };
        let of = |run: u64, wait: u64| used(from, Times { run, wait }, 1000.0);
        assert!((of(10, 0) - 1.0).abs() < 1e-9, "it idles");
        assert!((of(2000, 0) - 2.0).abs() < 1e-9, "two CPUs");
        assert!((of(400, 700) - 0.4).abs() < 1e-9, "it gets less than one of what it wants");
        assert!((of(0, 0) - 1.0).abs() < 1e-9 && of(0, 5000) > 0.0);
        assert!(Times::read(std::process::id()).is_some_and(|t| t.run > 0));
    }
}
