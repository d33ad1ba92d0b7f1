//! One window on a CPython process, from the census before it to the look that
//! tells what stayed. Runs on a thread of its own: it waits, and reads much.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    account::Account,
    clock::monotonic_ns,
    duty::Duty,
    nativewindow,
    pygain::{Fresh, Held, carried, gains, net},
    pyready::{Ready, learn_node, prepare},
    pystacks::Stacks,
    pystores::Stores,
    windows::Usage,
};
use crate::{
    probe::{HitCost, ProbeError, PyPlan, PyWindows},
    stream::{NativeWindow, Placed, PyWindow},
    target::{
        cpython::{
            graph::owned,
            live::LiveError,
            members::{self, Members},
        },
        process::Process,
    },
    tenant::Rule,
};

/// A window is closed after this long at the latest, ns.
const LONGEST_NS: u64 = 10_000_000_000;
/// Between two looks at its cost: at first a new function comes with each, whose
/// local variables have to be looked up.
pub(super) const LOOK: Duration = Duration::from_millis(5);
/// Looks before it counts.
const WARM_UP: u32 = 20;
/// From its end to the look that tells what stayed.
const SETTLE: Duration = Duration::from_secs(5);
/// Budget that is saved up for one, as if it were spent over this long, ns.
pub(super) const SAVED_NS: f64 = 10e9;

/// Why a window could not be opened.
#[derive(Debug)]
pub enum NoWindow {
    /// Now: it may be tried again.
    Passing(String),
    /// In this build, or on this kernel.
    Lasting(String),
}

/// What a window is to see, and may cost.
pub struct Watch {
    pub process: Process,
    pub windows: Arc<PyWindows>,
    /// Names of the types that grow.
    pub types: Vec<String>,
    /// Containers that grow, the fastest first.
    pub containers: Vec<u64>,
    /// Look at the allocators of the interpreter's own types as well where
    /// containers are watched.
    pub allocators: bool,
    /// With their rank.
    pub rules: Vec<(u8, Rule)>,
    pub cost: HitCost,
    /// Share of the target's time that windows may cost.
    pub max_overhead: f64,
}

/// What a window is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Objects,
    /// The C allocator.
    Native,
}

#[derive(Debug)]
pub enum Seen {
    Objects(PyWindow),
    Native(NativeWindow),
}

/// What a window has seen, and when its probes were in place.
pub type Over = (Seen, Placed);

/// A window that is open, or about to be.
#[derive(Debug)]
pub struct Open {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Duty, Result<Over, NoWindow>)>,
}

/// The budget of a process's windows.
pub fn budget(max_overhead: f64, pid: u32) -> Duty {
    let now = monotonic_ns();
    Duty::saving(max_overhead, now, u64::from(pid) ^ now, max_overhead * SAVED_NS)
}

impl Open {
    pub fn start(watch: Watch, on: On, mut duty: Duty) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let seen = match on {
                On::Objects => window(&watch, &mut duty, &stopped)
                    .map(|(seen, placed)| (Seen::Objects(seen), placed)),
                On::Native => nativewindow::window(&watch, &mut duty, &stopped)
                    .map(|(seen, placed)| (Seen::Native(seen), placed)),
            };
            watch.windows.remove(watch.process.pid);
            (duty, seen)
        });
        Self { stop, thread }
    }

    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Wait for its end, which comes soon when `now`: then what it has seen so
    /// far is what it gives.
    pub fn end(self, now: bool) -> Option<(Duty, Result<Over, NoWindow>)> {
        if now {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.thread().unpark();
        }
        // A thread that panicked has closed its window by that.
        self.thread.join().ok()
    }
}

fn window(
    watch: &Watch,
    duty: &mut Duty,
    stopped: &AtomicBool,
) -> Result<(PyWindow, Placed), NoWindow> {
    let pid = watch.process.pid;
    let ready = prepare(watch)?;
    let refused = |e: ProbeError| NoWindow::Lasting(e.to_string());
    let full = |e: ProbeError| NoWindow::Passing(e.to_string());
    let (mut on, off) = (ready.target, ready.target);
    on.active = 1;
    let mut usage = Usage::new(pid, monotonic_ns());
    let mut stacks = Stacks::new(&ready.live, &ready.inside, &watch.rules);
    let trap = if ready.plan.stepped == 0 { watch.cost.emulated } else { watch.cost.stepped };
    let mut account = Account::new(trap);
    let mut placed = Placed { pid, from_ns: monotonic_ns(), ..Placed::default() };
    let links = watch.windows.open(pid, off, &ready.types, &ready.plan).map_err(refused)?;
    watch.windows.set(pid, on).map_err(full)?;
    let mut stores = Stores::new(&watch.windows, pid, &ready.containers);
    let unwatched = stores.set().err();
    if let Some(why) = unwatched.as_ref().filter(|_| ready.plan.places.is_empty()) {
        return Err(NoWindow::Passing(why.to_string()));
    }
    // Long enough to learn where most functions keep their tenant.
    for _ in 0..WARM_UP {
        thread::park_timeout(LOOK);
        stacks.look(&watch.windows, pid);
        if learn_node(&ready.live, watch.windows.stat(pid).unknown_node, &mut on) {
            watch.windows.set(pid, on).map_err(full)?;
        }
    }
    let from_ns = monotonic_ns();
    // Taken while it is open, as the one at its end: every object that is in
    // the second and not in the first was allocated meanwhile.
    let before = find(&ready)?;
    let walk = monotonic_ns().saturating_sub(from_ns) as f64;
    let mut to_ns;
    loop {
        thread::park_timeout(LOOK);
        to_ns = monotonic_ns();
        duty.advance(to_ns, 0.0);
        usage.look(to_ns);
        account.pay(watch.windows.stat(pid).cost, duty, usage.used);
        stacks.look(&watch.windows, pid);
        let over = to_ns.saturating_sub(from_ns) >= LONGEST_NS;
        if over || duty.must_close() || stopped.load(Ordering::Relaxed) {
            break;
        }
        let rate = account.lost_ns / to_ns.saturating_sub(from_ns).max(1) as f64;
        duty.expect_tail(rate * walk);
    }
    let after = find(&ready)?;
    // Later than the walk, so that what came to a container since is not among
    // them; and while it is open: a block that goes from a full cache to a list
    // that grows would bear the mark of the cache.
    let held = owned(&ready.live.objects(), &watch.containers, &stores.came_to_sets());
    let last = stores.last(&ready.live);
    let mut fresh: Vec<Fresh> = Vec::new();
    for (at, typ) in &after.objects {
        let block = ready.wanted.get(*typ as usize).and_then(|w| at.checked_sub(w.before as u64));
        let entry = block.and_then(|block| watch.windows.entry(pid, block));
        let entry = entry.filter(|e| e.time_ns >= from_ns);
        let element = held.get(at);
        let put = element.and_then(|e| stores.entry(&last, *e)).filter(|e| e.time_ns >= from_ns);
        // One whose block was handed out, or that was put there, after the walk
        // had begun may be another than the one that the walk saw.
        let late = entry.iter().chain(&put).any(|e| e.time_ns > to_ns);
        // What is kept for reuse looks as if it were there all the time.
        let again = put.is_some() && element == Some(at);
        let came = || !before.objects.contains_key(at) && before.knows(*at, ready.inside.layout);
        if !late && (entry.is_some() || again || came()) {
            // Where the end of objects is not seen the maker may be another's.
            let made = entry.is_some() && ready.exact.get(*typ as usize) == Some(&true);
            let stored = put.is_some() && !made;
            let entry = if stored { put } else { entry };
            fresh.push(Fresh { at: *at, typ: *typ, entry, stored });
        }
    }
    watch.windows.set(pid, off).map_err(full)?;
    stacks.look(&watch.windows, pid);
    stacks.count(&watch.windows, pid);
    let watched = stores.watched();
    drop((links, stores));
    placed.to_ns = monotonic_ns();
    duty.advance(placed.to_ns, 0.0);
    let stat = watch.windows.stat(pid);
    let tail = account.pay(stat.cost, duty, usage.used);
    duty.closed(account.lost_ns, tail, false);
    placed.lost_work_ns = account.lost_ns;
    let checked = settle(stopped).then(|| find(&ready).ok()).flatten();
    let checked_ns = checked.as_ref().map_or(0, |_| monotonic_ns());
    if let Some(checked) = &checked {
        fresh.retain(|f| checked.objects.get(&f.at) == Some(&f.typ));
    }
    let count = |m: &Members| (0..ready.names.len()).map(|t| m.count(t)).collect::<Vec<_>>();
    let open = (to_ns - from_ns) as f64;
    let later = checked.as_ref().map(|m| (count(m), open / (checked_ns - from_ns) as f64));
    let net = net(&count(&before), &count(&after), later.as_ref().map(|(n, s)| (&n[..], *s)));
    let half = from_ns + (to_ns - from_ns) / 2;
    let held = Held { objects: held, settled: checked.is_some() };
    let mut gains = gains(&ready.names, &ready.exact, &fresh, &held, &net, half, &stacks);
    let lost = [
        ("python_new_pool", stat.no_block),
        ("python_no_stack", stat.no_stack),
        ("python_tenant_unreadable", stat.label_unreadable),
        ("python_objects_cut", u64::from(after.cut || before.cut)),
        ("python_code_unreadable", stacks.unreadable),
        ("python_not_watched", u64::from(unwatched.is_some())),
    ];
    let stacks = carried(&mut gains, stacks.frames());
    let seen = PyWindow {
        pid,
        from_ns,
        to_ns,
        checked_ns,
        functions: functions(&ready.plan, watched),
        hits: stat.cost.hits,
        lost_work_ns: account.lost_ns,
        lost: lost.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
        gains,
        stacks,
    };
    Ok((seen, placed))
}

/// What was probed, and how many containers were watched, in words.
fn functions(plan: &PyPlan, watched: usize) -> Vec<String> {
    let mut all: Vec<String> = plan.functions.iter().map(|f| (*f).to_owned()).collect();
    match watched {
        0 => {}
        1 => all.push("a container".to_owned()),
        n => all.push(format!("{n} containers")),
    }
    all
}

/// Wait until what is at work is done; false when there is no time for that.
fn settle(stopped: &AtomicBool) -> bool {
    let end = monotonic_ns() + u64::try_from(SETTLE.as_nanos()).unwrap_or(0);
    while !stopped.load(Ordering::Relaxed) {
        let left = end.saturating_sub(monotonic_ns());
        if left == 0 {
            return true;
        }
        thread::park_timeout(Duration::from_nanos(left));
    }
    false
}

fn find(ready: &Ready) -> Result<Members, NoWindow> {
    let regions = ready.live.regions().map_err(gone)?;
    Ok(members::find(&ready.live.objects(), &regions, &ready.wanted, ready.classes))
}

pub(super) fn gone(e: LiveError) -> NoWindow {
    NoWindow::Passing(e.to_string())
}
