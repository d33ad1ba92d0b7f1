//! Exact mode of one target: from what its windows saw to items of the stream.

use std::sync::{Arc, atomic::AtomicU64};

use claw_common::ExactKey;
use rustc_hash::FxHashMap;

use super::{
    Options,
    windows::{Paused, Said, Seen, Watch, Windows},
};
use crate::{
    decode::{Event, Label, What, label},
    probe::{EveryPlan, Exact, HitCost, Probes},
    report::{clean::clean, text::seconds},
    stream::{Item, SeenCount, Window},
    symbol::{Origin, Symbolizer},
    target::go::{
        binary::GoBinary,
        types::{self, Untyped},
    },
};

/// Begins the names of the functions that are probed for allocations.
const ALLOCATORS: &str = "runtime.mallocgc";
/// Sites that are told apart.
const MOST_SITES: usize = 1 << 16;
/// Functions that hand out arrays: the type they are given is the element's.
const ARRAYS: [&str; 5] = [
    "runtime.makeslice",
    "runtime.growslice",
    "runtime.makeslicecopy",
    "runtime.newarray",
    "reflect.unsafe_NewArray",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SiteKey {
    stack: i32,
    typ: u64,
    caller: u64,
    goroutine: bool,
}

/// Changes of pace that are logged, at most.
const MOST_NOTES: u32 = 20;

/// What a streamed allocation is shown with.
struct Described {
    type_name: Option<String>,
    function: String,
    file: String,
    line: u32,
}

/// What the log was told of the windows.
#[derive(Default)]
struct Told {
    period_ns: f64,
    open_since_ns: u64,
    whole: bool,
    notes: u32,
    windows: u64,
    covered_ns: u64,
    lost_ns: f64,
    from_ns: u64,
    to_ns: u64,
}

pub struct Every {
    pid: u32,
    budget: f64,
    interval_ns: u64,
    told: Told,
    described: Vec<Described>,
    bias: u64,
    exact: Arc<Exact>,
    windows: Windows,
    sites: FxHashMap<SiteKey, u32>,
}

impl std::fmt::Debug for Every {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Every").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Every {
    /// `interval_ns` is the time between two reports.
    pub fn start(watch: Watch, interval_ns: u64) -> Self {
        Self {
            pid: watch.pid,
            budget: watch.budget,
            interval_ns,
            told: Told::default(),
            described: Vec::new(),
            bias: watch.bias,
            exact: Arc::clone(&watch.exact),
            windows: Windows::start(watch),
            sites: FxHashMap::default(),
        }
    }

    /// Close the window for good; what it saw last comes with the next
    /// [`Self::take`].
    pub fn stop(&mut self) {
        self.windows.stop();
    }

    /// Keep windows closed as long as what this gives lives.
    pub fn pause(&self) -> Option<Paused<'_>> {
        self.windows.pause()
    }

    /// Send what was seen since the last call; gives lines for the log, errors
    /// as such.
    pub fn take(
        &mut self,
        symbolizer: &mut Symbolizer,
        put: &mut impl FnMut(Item),
    ) -> Vec<Result<String, String>> {
        let mut notes = Vec::new();
        for said in self.windows.take() {
            match said {
                Said::Failed(why) => notes.push(Err(why)),
                Said::Seen(seen) => {
                    notes.extend(self.note(&seen).map(Ok));
                    self.seen(seen, symbolizer, put);
                }
            }
        }
        notes
    }

    /// A line for the log when the pace of the windows has changed.
    fn note(&mut self, seen: &Seen) -> Option<String> {
        let (told, budget) = (&mut self.told, self.budget * 100.0);
        if told.from_ns == 0 {
            told.from_ns = seen.from_ns;
        }
        if seen.opened {
            told.open_since_ns = seen.from_ns;
            told.windows += 1;
        }
        told.to_ns = seen.to_ns;
        told.covered_ns += seen.to_ns.saturating_sub(seen.from_ns);
        told.lost_ns += seen.lost_ns;
        if told.notes >= MOST_NOTES {
            return None;
        }
        let pid = self.pid;
        if !seen.closed {
            let news = !told.whole;
            told.whole = true;
            told.period_ns = 0.0;
            told.notes += u32::from(news);
            let cost = seen.lost_ns / seen.to_ns.saturating_sub(seen.from_ns).max(1) as f64;
            return news.then(|| {
                format!(
                    "process {pid}: every allocation is counted without a gap: {} hits a second \
                     cost {:.2} % of its time where --max-overhead allows {budget:.2} %",
                    seen.stat.cost.hits * 1_000_000_000
                        / seen.to_ns.saturating_sub(seen.from_ns).max(1),
                    cost * 100.0
                )
            });
        }
        let changed =
            seen.period_ns > told.period_ns * 2.0 || seen.period_ns * 2.0 < told.period_ns;
        if !changed {
            return None;
        }
        (told.period_ns, told.whole) = (seen.period_ns, false);
        told.notes += 1;
        let every = seen.period_ns / 1e9;
        let wide = if seen.period_ns > self.interval_ns as f64 {
            ", less often than the interval: figures hold over several"
        } else {
            ""
        };
        Some(format!(
            "process {pid}: a window of {:.1} ms cost it {:.1} ms of work; for {budget:.2} % one \
             opens every {every:.2} s{wide}",
            seen.to_ns.saturating_sub(told.open_since_ns) as f64 / 1e6,
            seen.lost_ns / 1e6
        ))
    }

    /// What was done in all; `None` when no window opened.
    pub fn summary(&self) -> Option<String> {
        let t = &self.told;
        let span = t.to_ns.saturating_sub(t.from_ns);
        (t.windows > 0 && span > 0).then(|| {
            format!(
                "process {}: {} windows covered {:.3} s of {} and cost it {:.2} % of its time \
                 (estimate) where --max-overhead allows {:.2} %",
                self.pid,
                t.windows,
                t.covered_ns as f64 / 1e9,
                seconds(span as f64 / 1e9),
                t.lost_ns / span as f64 * 100.0,
                self.budget * 100.0
            )
        })
    }

    /// One streamed allocation as a JSON line.
    pub fn line(
        &mut self,
        event: &Event,
        tenant: impl Fn(Option<&Label>) -> String,
        symbolizer: &mut Symbolizer,
        put: &mut impl FnMut(Item),
    ) -> Option<String> {
        let What::EveryAlloc { stack, size, typ, caller, label } = &event.what else { return None };
        let key = SiteKey { stack: *stack, typ: *typ, caller: *caller, goroutine: false };
        let id = self.site(key, 0, symbolizer, put)?;
        let d = self.described.get(id as usize)?;
        let line = serde_json::json!({
            "t_ns": event.t_ns, "pid": event.pid, "tid": event.tid,
            "tenant": tenant(label.as_ref()), "bytes": size, "type": d.type_name,
            "function": d.function, "file": d.file, "line": d.line,
        });
        Some(line.to_string())
    }

    fn seen(&mut self, seen: Seen, symbolizer: &mut Symbolizer, put: &mut impl FnMut(Item)) {
        let mut unnamed = 0;
        let mut counts = Vec::new();
        for (key, value) in &seen.counts {
            let label = label(&key.label).ok().flatten();
            let goroutine = key.class == ExactKey::GOROUTINE;
            let typ = if goroutine { 0 } else { key.typ };
            let site = SiteKey { stack: key.stack, typ, caller: key.caller, goroutine };
            let start = if goroutine { key.typ } else { 0 };
            let site = self.site(site, start, symbolizer, put).unwrap_or_else(|| {
                unnamed += value.count;
                u32::MAX
            });
            counts.push(SeenCount { site, label, count: value.count, bytes: value.bytes });
        }
        let lost = [
            ("exact_keys_full", seen.stat.overflow),
            ("exact_stacks_lost", seen.stat.stack_lost),
            ("exact_sites_full", unnamed),
            ("exact_goroutine_unreadable", seen.stat.goroutine_unreadable),
            ("stream_ring_full", seen.stat.stream_lost),
        ];
        put(Item::Window(Window {
            pid: self.pid,
            from_ns: seen.from_ns,
            to_ns: seen.to_ns,
            opened: seen.opened,
            closed: seen.closed,
            hits: seen.stat.cost.hits,
            lost_work_ns: seen.lost_ns,
            period_ns: seen.period_ns,
            lost: lost.into_iter().map(|(name, n)| (name.to_owned(), n)).collect(),
            counts,
        }));
    }

    /// `start` is the function that a goroutine runs.
    fn site(
        &mut self,
        key: SiteKey,
        start: u64,
        symbolizer: &mut Symbolizer,
        put: &mut impl FnMut(Item),
    ) -> Option<u32> {
        let goroutine = key.goroutine;
        if let Some(id) = self.sites.get(&key) {
            return Some(*id);
        }
        if self.sites.len() >= MOST_SITES {
            return None;
        }
        let id = u32::try_from(self.sites.len()).ok()?;
        self.sites.insert(key, id);
        let stack = if goroutine {
            vec![key.caller]
        } else {
            let is_leaf = |pc: u64| allocates(symbolizer.binary(), pc.wrapping_sub(self.bias));
            with_caller(self.exact.stack(key.stack), key.caller, is_leaf)
        };
        let type_name = if goroutine {
            symbolizer.binary().function_at(start.wrapping_sub(self.bias)).map(|(name, _)| name)
        } else {
            self.type_name(key.typ, &stack, symbolizer)
        };
        let type_name = type_name.map(|t| clean(&t));
        let pid = self.pid;
        let mut described = None;
        for pc in stack.iter().copied().filter(|pc| *pc != 0) {
            let frames = symbolizer.frames(pc);
            if described.is_none() {
                described = frames.iter().find(|f| f.origin != Origin::Runtime).cloned();
            }
            put(Item::Frames { pid, pc, frames });
        }
        let at = described.as_ref();
        self.described.push(Described {
            type_name: type_name.clone(),
            function: at.map(|f| clean(&f.function)).unwrap_or_default(),
            file: at.map(|f| clean(&f.file)).unwrap_or_default(),
            line: at.map_or(0, |f| f.line),
        });
        put(Item::ExactSite { pid, id, goroutine, type_name, stack });
        Some(id)
    }

    /// By the type register, else by what the allocator's callers are for.
    fn type_name(&self, typ: u64, stack: &[u64], symbolizer: &Symbolizer) -> Option<String> {
        let binary = symbolizer.binary();
        // The allocator's caller, and where that returns to.
        let at = stack.iter().map(|pc| pc.wrapping_sub(self.bias));
        let mut callers = at.skip_while(|at| allocates(binary, at.wrapping_sub(1)));
        let (by, _) = binary.function_at(callers.next()?.wrapping_sub(1))?;
        let called_at = callers.next();
        if typ != 0 {
            let name = types::name(binary, typ.wrapping_sub(self.bias))?;
            let array = ARRAYS.contains(&by.as_str());
            return Some(if array { format!("[]{name}") } else { name });
        }
        let of_call = || types::name(binary, types::of_call(binary, called_at?)?);
        match types::of_runtime(&by)? {
            Untyped::Named(name) => Some(name.to_owned()),
            Untyped::SliceOf => Some(format!("[]{}", of_call()?)),
            Untyped::Same => of_call(),
        }
    }
}

fn allocates(binary: &GoBinary, address: u64) -> bool {
    binary.function_at(address).is_some_and(|(name, _)| name.starts_with(ALLOCATORS))
}

/// A stack as the kernel walked it, with the allocator's caller in its place.
/// The kernel leaves the caller out where the allocator has not pushed its frame
/// pointer yet: older ones always do, all do up to Go 1.20, which pushes it later.
/// Where a stack's place was taken the leaf is left out (`go_exact`).
fn with_caller(mut stack: Vec<u64>, caller: u64, is_leaf: impl Fn(u64) -> bool) -> Vec<u64> {
    let at = usize::from(stack.first().is_some_and(|pc| is_leaf(*pc)));
    if caller != 0 && stack.get(at) != Some(&caller) {
        stack.insert(at, caller);
    }
    stack
}

/// Begin exact mode where it is wanted; gives a line for the log, or why not.
pub fn start_every(
    pid: u32,
    binary: &GoBinary,
    bias: u64,
    probes: &Probes,
    cost: HitCost,
    beside_ns: &Arc<AtomicU64>,
    options: &Options,
) -> Option<Result<(Every, String), String>> {
    let (wanted, exact) = (options.exact.as_ref()?, probes.exact()?);
    let plan = match EveryPlan::of(binary) {
        Ok(plan) => plan,
        Err(why) => return Some(Err(why)),
    };
    let stepped = plan.points.iter().filter(|p| !p.emulated).count();
    let detail = format!(
        "exact mode on process {pid}: {} probes in windows ({}mallocgc and newproc), {}, {}",
        plan.points.len(),
        match plan.specialised {
            0 => String::new(),
            n => format!("{n} size-specialised functions, "),
        },
        if stepped == 0 {
            "all where the kernel emulates the instruction".to_owned()
        } else {
            format!("{stepped} at an instruction that the kernel has to step")
        },
        if exact.one_link() { "one link for all" } else { "a perf event each" }
    );
    let watch = Watch {
        pid,
        exact: Arc::clone(exact),
        plan,
        bias,
        budget: options.max_overhead,
        trap_ns: if stepped == 0 { cost.emulated } else { cost.stepped },
        stream: wanted.stream.is_some(),
        beside_ns: Arc::clone(beside_ns),
    };
    let interval_ns = u64::try_from(options.interval.as_nanos()).unwrap_or(u64::MAX);
    Some(Ok((Every::start(watch, interval_ns), detail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_put_where_the_kernel_left_it_out() {
        const LEAF: u64 = 1;
        let whole = vec![LEAF, 2, 3, 4];
        for walked in [&whole[..], &[LEAF, 3, 4]] {
            assert_eq!(with_caller(walked.to_vec(), 2, |pc| pc == LEAF), whole);
        }
        // Without the leaf.
        for walked in [&whole[1..], &[3, 4]] {
            assert_eq!(with_caller(walked.to_vec(), 2, |pc| pc == LEAF), whole[1..]);
        }
        assert_eq!(with_caller(Vec::new(), 2, |pc| pc == LEAF), [2], "the stack was lost");
        assert_eq!(with_caller(whole.clone(), 0, |pc| pc == LEAF), whole, "it was not read");
    }
}
