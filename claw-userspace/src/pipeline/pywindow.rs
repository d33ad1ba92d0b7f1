//! One window on a CPython process, from the census before it to the look that
//! tells what stayed. Runs on a thread of its own: it waits, and reads much.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use claw_common::{
    PyLocal, PyStat, PyTarget,
    python::{MAX_VARIABLES, PyVariable, type_word},
};
use rustc_hash::FxHashSet;

use super::{
    clock::monotonic_ns,
    duty::{Duty, lost_ns},
    nativewindow,
    pygain::{Fresh, Held, carried, gains, net},
    pystacks::Stacks,
    pystores::Stores,
    windows::{INDIRECT, Usage},
};
use crate::{
    probe::{HitCost, Passes, ProbeError, PyPlan, PyWindows},
    report::clean::clean,
    stream::{NativeWindow, PyWindow},
    target::{
        cpython::{
            census::Census,
            graph::owned,
            layout::{self, flags},
            live::{Inside, LiveError, LivePython},
            members::{self, Members, Wanted},
        },
        memory::Memory,
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
const ALL_CLASSES: u32 = u32::MAX;

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

/// A window that is open, or about to be.
#[derive(Debug)]
pub struct Open {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Duty, Result<Seen, NoWindow>)>,
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
                On::Objects => window(&watch, &mut duty, &stopped).map(Seen::Objects),
                On::Native => nativewindow::window(&watch, &mut duty, &stopped).map(Seen::Native),
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
    pub fn end(self, now: bool) -> Option<(Duty, Result<Seen, NoWindow>)> {
        if now {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.thread().unpark();
        }
        // A thread that panicked has closed its window by that.
        self.thread.join().ok()
    }
}

/// Everything that has to be known before it opens.
struct Ready {
    live: LivePython,
    inside: Inside,
    names: Vec<String>,
    wanted: Vec<Wanted>,
    /// An entry is that of the very object.
    exact: Vec<bool>,
    /// Size classes of their objects.
    classes: u32,
    plan: PyPlan,
    target: PyTarget,
    types: Vec<(u64, u32)>,
}

fn window(watch: &Watch, duty: &mut Duty, stopped: &AtomicBool) -> Result<PyWindow, NoWindow> {
    let pid = watch.process.pid;
    let ready = prepare(watch)?;
    let refused = |e: ProbeError| NoWindow::Lasting(e.to_string());
    let full = |e: ProbeError| NoWindow::Passing(e.to_string());
    let (mut on, off) = (ready.target, ready.target);
    on.active = 1;
    let mut usage = Usage::new(pid, monotonic_ns());
    let mut stacks = Stacks::new(&ready.live, &ready.inside, &watch.rules);
    let trap = if ready.plan.stepped == 0 { watch.cost.emulated } else { watch.cost.stepped };
    let mut account = Account { trap, program: f64::MAX, paid: PyStat::default(), lost_ns: 0.0 };
    let links = watch.windows.open(pid, off, &ready.types, &ready.plan).map_err(refused)?;
    watch.windows.set(pid, on).map_err(full)?;
    let mut stores = Stores::of(&watch.windows, pid, &ready.live, &watch.containers);
    let unwatched = stores.set().err();
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
        account.pay(watch, duty, usage.used);
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
    let held = owned(&ready.live.objects(), &watch.containers);
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
    duty.advance(monotonic_ns(), 0.0);
    let tail = account.pay(watch, duty, usage.used);
    duty.closed(account.lost_ns, tail, false);
    let stat = account.paid;
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
    Ok(PyWindow {
        pid,
        from_ns,
        to_ns,
        checked_ns,
        functions: functions(&ready.plan, watched),
        hits: stat.hits,
        lost_work_ns: account.lost_ns,
        lost: lost.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
        gains,
        stacks,
    })
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

struct Account {
    trap: f64,
    /// Of the program, ns, at its best: on a busy machine others run meanwhile.
    program: f64,
    paid: PyStat,
    lost_ns: f64,
}

impl Account {
    /// Pay for what was hit since the last time; gives its price, ns of lost
    /// work.
    fn pay(&mut self, watch: &Watch, duty: &mut Duty, cpus: f64) -> f64 {
        let stat = watch.windows.stat(watch.process.pid);
        let old = std::mem::replace(&mut self.paid, stat);
        let hits = stat.hits.saturating_sub(old.hits);
        let since = if old.last_ns == 0 { stat.first_ns } else { old.last_ns };
        if hits == 0 {
            return 0.0;
        }
        self.program = self.program.min(stat.ns.saturating_sub(old.ns) as f64 / hits as f64);
        let each = (self.trap + self.program) * INDIRECT;
        let lost = lost_ns(hits, stat.last_ns.saturating_sub(since), each, cpus);
        duty.spend(lost);
        self.lost_ns += lost;
        lost
    }
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

fn prepare(watch: &Watch) -> Result<Ready, NoWindow> {
    let live = LivePython::open(watch.process.clone()).map_err(gone)?;
    let inside = live.inside().map_err(NoWindow::Passing)?;
    let objects = live.objects();
    let census = live.census().map_err(gone)?.census;
    let rows = || census.rows.iter().filter(|r| watch.types.contains(&clean(&r.type_name)));
    let (mut names, mut wanted) = (Vec::new(), Vec::new());
    for row in rows() {
        if let Some(w) = Wanted::at(&objects, inside.layout, row.type_at) {
            names.push(clean(&row.type_name));
            wanted.push(w);
        }
    }
    let regions = live.regions().map_err(gone)?;
    let before = members::find(&objects, &regions, &wanted, ALL_CLASSES);
    let passes: FxHashSet<Passes> = wanted
        .iter()
        .filter_map(|w| objects.type_at(w.address))
        .flat_map(|t| passes(&live, t.address, t.flags))
        .copied()
        .collect();
    let passes: Vec<Passes> = Passes::ALL.into_iter().filter(|p| passes.contains(p)).collect();
    if passes.is_empty() {
        return Err(NoWindow::Passing("of the types that grow no object is left".into()));
    }
    let dealloc = |w: &Wanted| live.word(w.address + layout::TP_DEALLOC).unwrap_or(0);
    let of = |w: &Wanted| {
        objects.type_at(w.address).map_or(&[][..], |t| self::passes(&live, t.address, t.flags))
    };
    // Without this the next object at an address would be taken for the one
    // whose allocation was seen: freed ones are kept for reuse.
    let kept = wanted.iter().filter(|w| of(w).contains(&Passes::Collected));
    let deallocs: BTreeSet<u64> = kept.map(dealloc).collect();
    let plan = PyPlan::of(&live.python, &passes, &deallocs).map_err(NoWindow::Lasting)?;
    let exact =
        wanted.iter().map(|w| of(w) == [Passes::Instances] || plan.sees_end(dealloc(w))).collect();
    let types = wanted
        .iter()
        .enumerate()
        .filter_map(|(i, w)| Some((w.address, type_word(before.class(i)?, w.before as u32))))
        .collect();
    let target = target(watch, &live, &inside, &census, &before);
    let classes = before.all_classes();
    Ok(Ready { live, inside, names, wanted, exact, classes, plan, target, types })
}

/// Which allocators the objects of a type come from.
fn passes(live: &LivePython, at: u64, type_flags: u64) -> &'static [Passes] {
    let of_any_size = live.word(at + layout::TP_ITEMSIZE).is_some_and(|s| s != 0);
    if type_flags & flags::HEAPTYPE != 0 && !of_any_size {
        &[Passes::Instances]
    } else if type_flags & flags::HAVE_GC != 0 && !of_any_size {
        &[Passes::Instances, Passes::Collected]
    } else {
        &[Passes::Blocks]
    }
}

pub(super) fn target(
    watch: &Watch,
    live: &LivePython,
    inside: &Inside,
    census: &Census,
    before: &Members,
) -> PyTarget {
    let r = inside.running;
    let named = |name: &str| {
        census.rows.iter().find(|row| row.type_name == name).map_or(0, |row| row.type_at)
    };
    let rank = |wanted: fn(&Rule) -> bool| {
        watch.rules.iter().find(|(_, r)| wanted(r)).map(|(rank, _)| u32::from(*rank))
    };
    let mut target = PyTarget {
        tstate_at: inside.thread_at,
        used_pools: inside.used_pools,
        type_str: live.python.types.str_,
        type_int: live.python.types.int,
        type_bitmap: named("hamt_bitmap_node"),
        type_array: named("hamt_array_node"),
        ts_frame: r.ts_frame,
        cframe_frame: r.cframe_frame.unwrap_or(u32::MAX),
        f_code: r.f_code,
        f_previous: r.f_previous,
        f_instruction: r.f_instruction,
        f_locals: r.f_locals,
        f_owner: r.f_owner.unwrap_or(r.f_instruction),
        owner_mask: r.f_owner.map_or(0, |_| 0xff),
        ts_context: r.ts_context,
        str_ascii: inside.layout.ascii_size as u32,
        str_compact: inside.layout.compact_size as u32,
        int_tag: u32::from(inside.layout.minor >= 12),
        classes: before.all_classes(),
        thread_rank: rank(|r| *r == Rule::ThreadName).unwrap_or(u32::MAX),
        locals: u32::from(rank(|r| matches!(r, Rule::Local(_))).is_some()),
        ..PyTarget::default()
    };
    for (slot, variable) in target.variables.iter_mut().zip(variables(watch, live, census)) {
        *slot = variable;
    }
    target
}

/// The types of a context's nodes are found where they are met: a context may
/// live too shortly for a census. Gives whether `target` has changed.
pub(super) fn learn_node(live: &LivePython, met: u64, target: &mut PyTarget) -> bool {
    if met == 0 || met == target.type_bitmap || met == target.type_array {
        return false;
    }
    let slot = match live.objects().type_at(met).map(|t| t.name).as_deref() {
        Some("hamt_bitmap_node") => &mut target.type_bitmap,
        Some("hamt_array_node") => &mut target.type_array,
        _ => return false,
    };
    *slot = met;
    true
}

/// The context variables that rules name, best first.
fn variables(watch: &Watch, live: &LivePython, census: &Census) -> Vec<PyVariable> {
    let objects = live.objects();
    let types: Vec<Wanted> = census
        .rows
        .iter()
        .filter(|r| matches!(r.type_name.as_str(), "ContextVar" | "_contextvars.ContextVar"))
        .filter_map(|r| Wanted::at(&objects, objects.layout, r.type_at))
        .collect();
    let Ok(regions) = live.regions() else { return Vec::new() };
    let all = members::find(&objects, &regions, &types, ALL_CLASSES);
    let mut found: Vec<PyVariable> = all
        .objects
        .keys()
        .filter_map(|at| {
            let name = objects.string(live.word(at + layout::CV_NAME)?)?;
            let rule = Rule::ContextVar(name);
            let (rank, _) = watch.rules.iter().find(|(_, r)| *r == rule)?;
            let hash = hamt_hash(live.word(at + layout::CV_HASH)?);
            Some(PyVariable { address: *at, hash, rank: u32::from(*rank) })
        })
        .collect();
    found.sort_by_key(|v| (v.rank, v.address));
    found.truncate(MAX_VARIABLES);
    found
}

/// `hamt_hash` (`Python/hamt.c`): a `Py_hash_t` folded to 32 bits.
fn hamt_hash(hash: u64) -> u32 {
    let folded = (hash as u32) ^ ((hash >> 32) as u32);
    if folded == u32::MAX { u32::MAX - 1 } else { folded }
}

/// What a local variable is to the BPF side.
pub fn local(rules: &[(u8, Rule)], names: &[(String, u16, bool)]) -> PyLocal {
    let best = rules.iter().find_map(|(rank, rule)| {
        let Rule::Local(wanted) = rule else { return None };
        let (_, index, cell) = names.iter().find(|(name, _, _)| name == wanted)?;
        Some(PyLocal { index: *index, cell: u16::from(*cell), rank: u32::from(*rank) })
    });
    best.unwrap_or(PyLocal { index: PyLocal::NONE, cell: 0, rank: 0 })
}

impl LivePython {
    fn word(&self, at: u64) -> Option<u64> {
        self.objects().memory.u64_at(at).ok()
    }
}
