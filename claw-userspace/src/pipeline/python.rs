//! One live CPython target: its memory is read, and only while a window is open
//! is anything attached to it.
//!
//! Each interval the kernel is asked what it uses, which costs it nothing.
//! When that has changed, or enough time has passed, a census follows. When
//! those show growth, a window opens (`pywindow`).

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    Options,
    clock::{monotonic_ns, thread_cpu_ns},
    crowd::Crowd,
    duty::Duty,
    holders::Looks,
    owner::Owner,
    pywindow::{self, NoWindow, On, Open, Over, Seen, Watch},
    remote::{self, Collections},
    resident::{cpython, memory},
};
use crate::{
    probe::{HitCost, PyWindows},
    report::clean::clean,
    stream::{Blocked, CensusItem, FlowKind, Grown, Item, TargetInfo, TypeCount},
    target::{
        cpython::{
            census::{Census, Container},
            live::{LiveError, LivePython},
        },
        process::Process,
    },
    tenant::Rule,
};

/// Change of anonymous memory that calls for a census, bytes: an arena of the
/// older versions.
const CHANGED: u64 = 256 << 10;
/// Intervals after which there is one without: a leak may fill free pools.
const AT_LEAST_EVERY: u32 = 3;
/// Share of one CPU that the agent may spend on censuses of all processes.
const SHARE: f64 = 0.05;
/// Types of a census that are passed on, those with the most bytes.
const MOST_TYPES: usize = 512;
/// Growing containers whose place is looked for, the fastest.
const MOST_PLACES: usize = 8;
/// Objects with a known writer after which a type needs no more windows for a
/// while, and the time until the next, ns.
const ENOUGH: u64 = 200;
const REST_NS: u64 = 300_000_000_000;
/// Until it is tried again where a window could not be opened, ns.
const AGAIN_NS: u64 = 15_000_000_000;
/// Windows of one process, at most: what they cannot see they never will.
const MOST_WINDOWS: u32 = 60;
/// Censuses in a row in which a container has grown, for what it holds to be
/// taken for what stays.
const IN_A_ROW: u32 = 3;
/// Censuses in a row that may miss one.
const MOST_MISSED: u32 = 2;
/// Growth of a container between two censuses below which it is left aside.
const FEW: u64 = 4;

#[derive(Debug)]
pub struct WatchedPython {
    live: LivePython,
    anon_bytes: u64,
    skipped: u32,
    not_before_ns: u64,
    /// Elements of the containers of the last census, by address.
    elements: FxHashMap<u64, u64>,
    /// Those that grow.
    growing: FxHashMap<u64, Streak>,
    windows: Windows,
    holders: Looks,
    collections: Collections,
    threads: Crowd,
    tasks: Crowd,
    rules: Vec<(u8, Rule)>,
}

/// Censuses in a row in which a container has grown, and those since that have
/// not seen it: its pool may just have changed.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    grown: u32,
    missed: u32,
    /// Elements, since the last census that saw it.
    by: u64,
}

/// The windows of one process.
#[derive(Debug)]
struct Windows {
    /// `None` while one is open, and when none can be opened.
    duty: Option<Duty>,
    open: Option<(On, Open)>,
    max_overhead: f64,
    /// Containers alone do not tell who makes what stays.
    allocators: bool,
    rules: Vec<(u8, Rule)>,
    /// Objects with a known writer, by type, since the last rest.
    known: FxHashMap<String, u64>,
    rest_until_ns: u64,
    opened: u32,
    /// Why the last one could not be opened, for now.
    refused: Option<String>,
    native: OnAllocator,
}

/// Those on its C allocator.
#[derive(Debug, Default)]
struct OnAllocator {
    /// Allocations that stayed, since the last rest.
    known: u64,
    rest_until_ns: u64,
    opened: u32,
    /// None can be opened.
    blocked: bool,
}

impl WatchedPython {
    /// Gives what the stream has to know about it.
    ///
    /// # Errors
    /// In one line, why it cannot be watched.
    pub fn start(process: Process, options: &Options) -> Result<(Self, TargetInfo), LiveError> {
        let live = LivePython::open(process)?;
        let process = &live.process;
        let owner = Owner::of(process, &options.tenants);
        let (mut duty, mut blocked) = (None, Vec::new());
        match live.inside() {
            Ok(_) if options.max_overhead > 0.0 => {
                duty = Some(pywindow::budget(options.max_overhead, process.pid));
            }
            inside => blocked.push(Blocked {
                what: "allocation sites and tenants within the process".into(),
                why: inside.err().unwrap_or_else(|| "--max-overhead allows no probes".into()),
            }),
        }
        if let Err(why) = live.knows_flows() {
            blocked.push(Blocked { what: "threads and asyncio tasks".into(), why });
        }
        if live.collections().is_none() {
            blocked.push(Blocked {
                what: "garbage collections".into(),
                why: format!("where CPython {} counts them is not known", live.python.version),
            });
        }
        let door = live.door();
        blocked.extend(remote::blocked(options.remote_exec, &door));
        if live.interpreters() > 1 {
            blocked.push(Blocked {
                what: "allocation sites and tenants in sub-interpreters".into(),
                why: "windows follow the main interpreter; censuses, holders, threads and tasks \
                      are those of all"
                    .into(),
            });
        }
        let rules = owner.inside.clone();
        let info = cpython(process, owner, Some(&live.python), "census", blocked);
        let watched = Self {
            live,
            anon_bytes: 0,
            skipped: 0,
            not_before_ns: 0,
            elements: FxHashMap::default(),
            growing: FxHashMap::default(),
            holders: Looks::default(),
            collections: Collections::new(options.remote_exec, options.max_overhead, &door),
            threads: Crowd::default(),
            tasks: Crowd::default(),
            rules: rules.clone(),
            windows: Windows {
                duty,
                open: None,
                max_overhead: options.max_overhead,
                allocators: false,
                rules,
                known: FxHashMap::default(),
                rest_until_ns: 0,
                opened: 0,
                refused: None,
                native: OnAllocator::default(),
            },
        };
        Ok((watched, info))
    }

    /// What looks at its holders need.
    pub fn for_holders(&mut self) -> (&LivePython, &mut Looks) {
        (&self.live, &mut self.holders)
    }

    /// Why it can no longer be watched, if so.
    pub fn gone(&self) -> Option<&'static str> {
        if !self.live.process.is_alive() {
            return Some("it ended");
        }
        (!self.live.is_same_program()).then_some("it replaced its program (exec)")
    }

    /// What it uses now, and a census when one is called for. `grows`: something
    /// is found to. `watched`: processes that share the agent's time.
    pub fn look(&mut self, grows: bool, watched: usize) -> Vec<Item> {
        let pid = self.live.process.pid;
        let Some((m, mut items)) = memory(&self.live.process) else { return Vec::new() };
        let t_ns = monotonic_ns();
        // What is not known is said at the start.
        if let Some((generations, enabled)) = self.live.collections() {
            items.push(Item::Collections { pid, t_ns, generations, enabled });
        }
        if let Ok(threads) = self.live.threads(&self.rules) {
            items.push(Item::Flows(self.threads.look(pid, t_ns, FlowKind::Thread, threads)));
        }
        let changed = m.anon_bytes.abs_diff(self.anon_bytes) >= CHANGED;
        if t_ns < self.not_before_ns || !(changed || self.skipped + 1 >= AT_LEAST_EVERY) {
            self.skipped += 1;
            return items;
        }
        if grows {
            items.extend(self.collections.run(&self.live.process));
        }
        let began_ns = thread_cpu_ns();
        // A process that is gone is found out elsewhere.
        if let Ok(taken) = self.live.census() {
            self.skipped = 0;
            self.anon_bytes = m.anon_bytes;
            // Not the time that passed: where targets keep all processors busy
            // that is a multiple, and censuses would become rare.
            let spent_ns = thread_cpu_ns().saturating_sub(began_ns);
            let pause = spent_ns as f64 * watched as f64 / SHARE;
            self.not_before_ns = t_ns.saturating_add(pause as u64);
            let grown = self.grown(&taken.census);
            if let Ok(tasks) = self.live.tasks(&self.rules, &taken.census.tasks) {
                items.push(Item::Flows(self.tasks.look(pid, t_ns, FlowKind::Task, tasks)));
            }
            let c = taken.census;
            items.push(Item::Census(CensusItem {
                pid,
                t_ns,
                blocks: c.blocks(),
                bytes: c.bytes(),
                untyped_bytes: c.untyped.1,
                torn_bytes: c.torn.1,
                outside_bytes: taken.outside,
                swapped_bytes: taken.swapped,
                took_ns: taken.took_ns,
                types: c
                    .rows
                    .iter()
                    .take(MOST_TYPES)
                    .map(|r| TypeCount {
                        name: clean(&r.type_name),
                        objects: r.objects,
                        bytes: r.bytes,
                    })
                    .collect(),
                grown,
            }));
        }
        items
    }

    /// Open a window on the types that grow, when one is called for and can be
    /// paid. `load` gives what opens it.
    pub fn open(
        &mut self,
        types: Vec<String>,
        cost: HitCost,
        load: impl FnOnce() -> Option<Arc<PyWindows>>,
    ) {
        let (now, w) = (monotonic_ns(), &mut self.windows);
        if types.is_empty() || now < w.rest_until_ns || w.opened >= MOST_WINDOWS {
            return;
        }
        let known = |t: &String| w.known.get(t).is_some_and(|n| *n >= ENOUGH);
        if types.iter().all(known) {
            w.rest_until_ns = now + REST_NS;
            w.known.clear();
            return;
        }
        let Some(duty) = w.saved(now) else { return };
        let Some(windows) = load() else { return };
        w.opened += 1;
        let grown = self.growing.iter().filter(|(_, s)| s.grown >= IN_A_ROW);
        let mut fastest: Vec<(u64, u64)> = grown.map(|(at, s)| (s.by, *at)).collect();
        fastest.sort_unstable_by(|a, b| b.cmp(a));
        let containers = fastest.into_iter().map(|(_, at)| at).collect();
        let (process, rules) = (self.live.process.clone(), w.rules.clone());
        let watch = Watch {
            process,
            windows,
            types,
            containers,
            allocators: w.allocators,
            rules,
            cost,
            max_overhead: w.max_overhead,
        };
        w.open = Some((On::Objects, Open::start(watch, On::Objects, duty)));
    }

    /// Open one on its C allocator, when it can be paid. `load` gives what opens
    /// it.
    pub fn open_native(&mut self, cost: HitCost, load: impl FnOnce() -> Option<Arc<PyWindows>>) {
        let (now, w) = (monotonic_ns(), &mut self.windows);
        let n = &mut w.native;
        if n.blocked || now < n.rest_until_ns || n.opened >= MOST_WINDOWS {
            return;
        }
        if n.known >= ENOUGH {
            (n.known, n.rest_until_ns) = (0, now + REST_NS);
            return;
        }
        let Some(duty) = w.saved(now) else { return };
        let Some(windows) = load() else { return };
        w.native.opened += 1;
        let (process, rules) = (self.live.process.clone(), w.rules.clone());
        let watch = Watch {
            process,
            windows,
            types: Vec::new(),
            containers: Vec::new(),
            allocators: false,
            rules,
            cost,
            max_overhead: w.max_overhead,
        };
        w.open = Some((On::Native, Open::start(watch, On::Native, duty)));
    }

    /// Whether the C allocator's turn is next, where both are called for.
    pub fn native_is_behind(&self) -> bool {
        let w = &self.windows;
        !w.native.blocked && w.native.opened <= w.opened
    }

    /// What a window saw that is over, or has to be `now`; an error in words
    /// when it could not be opened.
    pub fn window(&mut self, now: bool) -> Option<Result<Over, String>> {
        let w = &mut self.windows;
        let (on, open) = w.open.take_if(|(_, open)| now || open.is_over())?;
        let (duty, seen) = open.end(now)?;
        match seen {
            Ok(over) => {
                (w.duty, w.refused) = (Some(duty), None);
                match &over.0 {
                    Seen::Objects(seen) => {
                        w.allocators |= seen.gains.iter().any(|g| !g.held || g.is_unclear());
                        for gain in &seen.gains {
                            *w.known.entry(gain.type_name.clone()).or_default() += gain.entered;
                        }
                    }
                    Seen::Native(seen) => {
                        let of = seen.by.iter().filter(|by| by.kept_bytes > 0.0);
                        w.native.known += of.map(|by| by.early).sum::<u64>();
                    }
                }
                Some(Ok(over))
            }
            Err(NoWindow::Lasting(why)) if on == On::Native => {
                (w.duty, w.native.blocked) = (Some(duty), true);
                Some(Err(format!("its C allocator: {why}")))
            }
            Err(NoWindow::Lasting(why)) => Some(Err(why)),
            Err(NoWindow::Passing(why)) => {
                w.duty = Some(duty);
                let again = monotonic_ns() + AGAIN_NS;
                match on {
                    On::Objects => {
                        (w.rest_until_ns, w.opened) = (again, w.opened - 1);
                        w.allocators = true;
                    }
                    On::Native => {
                        (w.native.rest_until_ns, w.native.opened) = (again, w.native.opened - 1);
                    }
                }
                let news = w.refused.as_ref() != Some(&why);
                w.refused = Some(why.clone());
                news.then_some(Err(why))
            }
        }
    }

    /// Containers that have grown since the last census and have a name.
    fn grown(&mut self, census: &Census) -> Vec<Grown> {
        let mut now: FxHashMap<u64, u64> =
            census.containers.iter().map(|c| (c.address, c.elements)).collect();
        let again = std::mem::take(&mut self.growing);
        let longer = |c: &Container| {
            let by =
                c.elements.checked_sub(*self.elements.get(&c.address)?).filter(|by| *by > 0)?;
            let grown = again.get(&c.address).map_or(0, |s| s.grown) + 1;
            Some((c.address, Streak { grown, missed: 0, by }))
        };
        self.growing = census.containers.iter().filter_map(longer).collect();
        for (at, s) in &again {
            if s.missed < MOST_MISSED && !now.contains_key(at) {
                self.growing.insert(*at, Streak { missed: s.missed + 1, ..*s });
                now.insert(*at, self.elements.get(at).copied().unwrap_or(0));
            }
        }
        let before = std::mem::replace(&mut self.elements, now);
        let mut grown: Vec<(u64, usize)> = (0..)
            .zip(&census.containers)
            .filter_map(|(i, c)| Some((c.elements.checked_sub(*before.get(&c.address)?)?, i)))
            .filter(|(by, _)| *by >= FEW)
            .collect();
        grown.sort_unstable_by(|a, b| b.cmp(a));
        let cached = |function: &u64| Some((self.live.cache(*function)?, *function));
        let caches: FxHashMap<u64, (Option<u64>, u64)> = census
            .cached
            .iter()
            .filter_map(cached)
            .map(|((dict, most), function)| (dict, (most, function)))
            .collect();
        grown
            .into_iter()
            .take(MOST_PLACES)
            .filter_map(|(by, i)| {
                let c = census.containers.get(i)?;
                let cache = caches.get(&c.address);
                let named = cache.map_or(c.address, |(_, function)| *function);
                let place = self.live.place(&census.modules, named)?;
                let row = &census.rows.get(c.row as usize)?.type_name;
                let type_name = match (cache, row.as_str()) {
                    (Some((Some(most), _)), _) => format!("functools.lru_cache(maxsize={most})"),
                    (Some((None, _)), _) => "functools.lru_cache(maxsize=None)".to_owned(),
                    (None, "collections.deque") => match self.live.maxlen(c.address) {
                        Some(most) => format!("{row}(maxlen={most})"),
                        None => row.clone(),
                    },
                    _ => row.clone(),
                };
                let class = place.class.map(|c| format!("{c}.")).unwrap_or_default();
                Some(Grown {
                    place: clean(&format!("{}.{class}{}", place.module, place.name)),
                    on_class: !class.is_empty(),
                    type_name: clean(&type_name),
                    file: place.file.map(|f| clean(&f)),
                    elements: c.elements,
                    by,
                })
            })
            .collect()
    }
}

impl Windows {
    /// The budget, when enough of it is saved up for a window and none is open.
    fn saved(&mut self, now_ns: u64) -> Option<Duty> {
        let mut duty = self.duty.take()?;
        duty.advance(now_ns, 0.0);
        if duty.wait_ns() > 0 {
            self.duty = Some(duty);
            return None;
        }
        Some(duty)
    }
}
