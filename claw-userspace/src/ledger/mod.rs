//! What is in use by whom: live samples and goroutines of every watched
//! process, by tenant and site. It counts, it does not judge.
//!
//! Its memory is bounded: what finds no room is counted in
//! [`Ledger::forgotten`].

mod before;
mod census;
mod collector;
mod cycles;
mod exact;
mod flows;
mod foreign;
mod holders;
mod lifetimes;
mod natives;
mod places;
mod population;
mod recent;
mod site;
mod writers;

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

pub use before::Before;
pub use census::{Censuses, Held, Series, TypeHistory};
pub use collector::Collector;
pub use exact::{Estimate, Exact, Scale, Subject};
pub use flows::{FlowHistories, FlowHistory};
pub use holders::{HeldBy, Holders};
pub use lifetimes::Lifetimes;
pub use natives::{NativeSite, Natives};
pub use places::{Place, Places};
pub use population::{Amount, Group, Population, Proof};
pub use recent::{Opened, Recent};
pub use site::{Site, SiteId, Sites};
pub use writers::{Writer, Writers, Written};

use crate::{
    decode::{Event, Label, What},
    stream::{Blocked, FlowKind, Limit, Part, Still, TargetInfo, Window},
    target::go::memprofile::sampled_share,
    tenant::{TenantId, TenantTable},
};

/// Bounds on the ledger's memory.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub tenants: usize,
    /// Per process.
    pub sites: usize,
    pub groups: usize,
    pub live: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { tenants: 1000, sites: 8192, groups: 16_384, live: 1 << 20 }
    }
}

const SECOND: u64 = 1_000_000_000;
/// A heap sample: its age speaks once the GC has looked at it.
const HEAP_PROOF: Proof = Proof { age_ns: 10 * SECOND, times: 3, quantile: 0.5, gc_cycles: 2 };
/// A goroutine lives as long as its work takes, so its peers say more.
const GOROUTINE_PROOF: Proof = Proof { age_ns: 20 * SECOND, times: 3, quantile: 0.9, gc_cycles: 0 };

/// One watched process.
#[derive(Debug)]
pub struct Process {
    pub info: TargetInfo,
    pub sites: Sites,
    pub heap: Population,
    pub goroutines: Population,
    pub before: Before,
    /// Goroutines that stand still.
    pub places: Places,
    pub gc_cycles: u32,
    pub events: u64,
    pub rss_bytes: Option<u64>,
    pub threads: Option<u32>,
    /// Of memory.
    pub limit: Option<Limit>,
    /// Of CPython: collections of each generation when they were first looked
    /// at, and now.
    pub collections: Option<([u64; 3], [u64; 3])>,
    pub collector: Collector,
    /// Of a CPython heap.
    pub censuses: Censuses,
    /// When windows were open on it.
    pub recent: Recent,
    /// Who allocated what grows in it.
    pub writers: Writers,
    pub natives: Natives,
    /// … and who holds it.
    pub holders: Holders,
    /// Its threads and tasks.
    pub flows: BTreeMap<FlowKind, FlowHistories>,
    /// Bucket address → site, for frees of what was sampled before attaching.
    buckets: FxHashMap<u64, SiteId>,
    /// What exact mode counted.
    pub exact: Option<Exact>,
}

impl Process {
    /// Whether a part is seen: not blocked when watching began, nor since.
    pub fn sees(&self, part: Part) -> bool {
        !part.is_blocked(&self.info.blocked)
    }

    /// Whether in-use bytes mean anything: the runtime samples and it is seen.
    pub fn heap_known(&self) -> bool {
        self.info.sample_rate.is_some_and(|r| r > 0) && self.sees(Part::Heap)
    }
}

#[derive(Debug)]
pub struct Ledger {
    bounds: Bounds,
    pub tenants: TenantTable,
    processes: BTreeMap<u32, Process>,
}

impl Ledger {
    pub fn new(bounds: Bounds) -> Self {
        Self { tenants: TenantTable::new(bounds.tenants), bounds, processes: BTreeMap::new() }
    }

    /// Start a process afresh, forgetting what its pid held before.
    pub fn target(&mut self, info: TargetInfo) {
        let b = &self.bounds;
        let process = Process {
            sites: Sites::new(b.sites),
            heap: heap(b, info.t_ns),
            goroutines: goroutines(b, info.t_ns),
            before: Before::new(owner(&mut self.tenants, &info)),
            places: Places::new(GOROUTINE_PROOF, b.live, b.groups, info.t_ns),
            gc_cycles: 0,
            events: 0,
            rss_bytes: None,
            threads: None,
            limit: None,
            collections: None,
            recent: Recent::default(),
            collector: Collector::default(),
            censuses: Censuses::default(),
            writers: Writers::default(),
            natives: Natives::default(),
            holders: Holders::default(),
            flows: BTreeMap::new(),
            buckets: FxHashMap::default(),
            exact: None,
            info,
        };
        self.processes.insert(process.info.pid, process);
    }

    /// Deaths are no longer seen, so nothing can be said of the living, nor of
    /// what was there before watching began: that much is said.
    pub fn blind(&mut self, pid: u32, part: Part, t_ns: u64, mut why: String) {
        let Some(p) = self.processes.get(&pid) else { return };
        if part == Part::Heap
            && let Some(lost) = p.before.total().filter(|b| b.bytes >= 1.0)
        {
            let mib = lost.bytes / f64::from(1 << 20);
            why += &format!(
                "; {mib:.1} MiB in use from before watching began are no longer followed either \
                 (`claw-ebpf heap --pid {pid}` reads what is in use now)"
            );
        }
        self.restart(pid, part, t_ns);
        let Some(p) = self.processes.get_mut(&pid) else { return };
        p.info.blocked.push(Blocked { what: part.name().to_owned(), why });
    }

    /// Forget what is known of a part and begin anew at `t_ns`. Goroutines that
    /// stand still stay known: they never came from probes.
    pub fn restart(&mut self, pid: u32, part: Part, t_ns: u64) {
        let bounds = self.bounds;
        let Some(p) = self.processes.get_mut(&pid) else { return };
        match part {
            Part::Heap => {
                p.heap = heap(&bounds, t_ns);
                p.before = Before::new(p.before.tenant);
            }
            Part::Goroutines => p.goroutines = goroutines(&bounds, t_ns),
        }
    }

    pub fn remove(&mut self, pid: u32) -> Option<Process> {
        self.processes.remove(&pid)
    }

    pub fn process(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    pub fn process_mut(&mut self, pid: u32) -> Option<&mut Process> {
        self.processes.get_mut(&pid)
    }

    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    pub fn bucket(&mut self, pid: u32, bucket: u64, stack: &[u64]) {
        let most = self.bounds.sites * 4;
        if let Some(p) = self.processes.get_mut(&pid)
            && p.buckets.len() < most
        {
            let site = p.sites.of_stack(stack);
            p.buckets.insert(bucket, site);
        }
    }

    /// `samples` objects of `size` bytes of a bucket were in use when watching
    /// began; one sample was taken per `rate` bytes.
    pub fn before(&mut self, pid: u32, bucket: u64, size: u64, samples: u64, rate: u64) {
        let Some(p) = self.processes.get_mut(&pid) else { return };
        p.before.rate = Some(rate);
        let site = p.buckets.get(&bucket).copied().unwrap_or(SiteId(0));
        let one = heap_amount(size, Some(rate));
        let n = samples as f64;
        let all =
            Amount { objects: one.objects * n, bytes: one.bytes * n, variance: one.variance * n };
        p.before.add(site, &all);
    }

    pub fn event(&mut self, event: &Event) {
        let Some(p) = self.processes.get_mut(&event.pid) else { return };
        p.events += 1;
        let part = match &event.what {
            What::Alloc { .. } | What::Free { .. } => Some(Part::Heap),
            What::GoroutineNew { .. } | What::GoroutineExit { .. } => Some(Part::Goroutines),
            What::Gc | What::Exec | What::Exit | What::EveryAlloc { .. } => None,
        };
        // Stragglers of a part that was given up would look like leaks.
        if part.is_some_and(|part| !p.sees(part)) {
            return;
        }
        match &event.what {
            What::Alloc { addr, size, label, stack } => {
                let tenant = tenant(&mut self.tenants, &p.info, label.as_ref());
                let site = p.sites.of_stack(stack);
                let amount = heap_amount(*size, p.info.sample_rate);
                p.heap.birth(*addr, (tenant, site), event.t_ns, amount);
            }
            What::Free { addr, size, bucket } => {
                if !p.heap.death(*addr, event.t_ns)
                    && let Some(site) = p.buckets.get(bucket)
                {
                    let amount = heap_amount(*size, p.before.rate.or(p.info.sample_rate));
                    p.heap.foreign_death(*site, amount, event.t_ns);
                    p.before.freed(*site, &amount);
                }
            }
            What::GoroutineNew { id, gopc, label, stack, .. } => {
                let tenant = tenant(&mut self.tenants, &p.info, label.as_ref());
                let site = creation_site(&mut p.sites, *gopc, stack);
                p.goroutines.birth(*id, (tenant, site), event.t_ns, ONE);
            }
            What::GoroutineExit { id, gopc } => {
                if !p.goroutines.death(*id, event.t_ns) {
                    let site = creation_site(&mut p.sites, *gopc, &[]);
                    p.goroutines.foreign_death(site, ONE, event.t_ns);
                }
            }
            What::Gc => {
                p.gc_cycles += 1;
                p.heap.collected(event.t_ns);
            }
            What::Exec | What::Exit | What::EveryAlloc { .. } => {}
        }
    }

    /// A goroutine stands still.
    pub fn still(&mut self, s: &Still) {
        let Some(p) = self.processes.get_mut(&s.pid) else { return };
        let tenant = tenant(&mut self.tenants, &p.info, s.label.as_ref());
        p.places.still(s, tenant, &mut p.sites);
    }

    pub fn exact_site(
        &mut self,
        (pid, id): (u32, u32),
        goroutine: bool,
        type_name: Option<String>,
        stack: &[u64],
    ) {
        let most = self.bounds.sites * 8;
        let Some(p) = self.processes.get_mut(&pid) else { return };
        let exact = p.exact.get_or_insert_default();
        if (id as usize) < most {
            let site = p.sites.of_stack(stack);
            exact.site(id, site, goroutine, type_name);
        }
    }

    /// `now_ns` is the time of the latest item.
    pub fn window(&mut self, w: &Window, now_ns: u64) {
        let Some(p) = self.processes.get_mut(&w.pid) else { return };
        let exact = p.exact.get_or_insert_default();
        exact.covered(w.from_ns, w.to_ns, now_ns, &p.heap);
        exact.saw(w);
        let open = Opened { from_ns: w.from_ns, to_ns: w.to_ns, lost_ns: w.lost_work_ns };
        p.recent.add(open, w.opened);
        let mut counts = Vec::with_capacity(w.counts.len());
        for c in &w.counts {
            let tenant = tenant(&mut self.tenants, &p.info, c.label.as_ref());
            let (site, type_index, goroutine) =
                exact.known(c.site).unwrap_or((SiteId(0), u32::MAX, false));
            counts.push((Subject { tenant, site, type_index, goroutine }, c.count, c.bytes));
        }
        exact.add(counts.into_iter());
    }

    /// Time went on for exact mode, window or not.
    pub fn passed(&mut self, now_ns: u64) {
        for p in self.processes.values_mut() {
            if let Some(exact) = &mut p.exact {
                exact.passed(now_ns, &p.heap);
            }
        }
    }

    /// What found no room, by name.
    pub fn forgotten(&self) -> BTreeMap<&'static str, u64> {
        let sum = |f: fn(&Process) -> u64| self.processes.values().map(f).sum::<u64>();
        BTreeMap::from([
            ("ledger_samples", sum(|p| p.heap.forgotten)),
            ("ledger_goroutines", sum(|p| p.goroutines.forgotten + p.places.population.forgotten)),
            ("ledger_types", sum(|p| p.censuses.forgotten)),
            ("ledger_writers", sum(|p| p.writers.forgotten() + p.natives.forgotten)),
            ("ledger_sites", sum(|p| p.sites.forgotten)),
            ("missed_frees", sum(|p| p.heap.missed_deaths)),
            ("tenants_over_bound", self.tenants.overflowed),
            ("labels_cut", self.tenants.cut),
        ])
    }
}

fn heap(b: &Bounds, since_ns: u64) -> Population {
    Population::new(HEAP_PROOF, b.live, b.groups, since_ns)
}

fn goroutines(b: &Bounds, since_ns: u64) -> Population {
    Population::new(GOROUTINE_PROOF, b.live, b.groups, since_ns)
}

/// A goroutine is counted whole; its "bytes" are the count that growth is
/// measured in.
const ONE: Amount = Amount { objects: 1.0, bytes: 1.0, variance: 0.0 };

/// What one sampled object of `size` bytes stands for.
fn heap_amount(size: u64, rate: Option<u64>) -> Amount {
    let p = sampled_share(size.max(1), rate.unwrap_or(0));
    let bytes = size as f64;
    Amount { objects: 1.0 / p, bytes: bytes / p, variance: bytes * bytes * (1.0 - p) / (p * p) }
}

fn tenant(table: &mut TenantTable, info: &TargetInfo, label: Option<&Label>) -> TenantId {
    let first = |l: &&Label| info.default_tenant.is_none() || l.key < info.labels_before_default;
    match label.filter(first) {
        Some(l) => table.id(Some(&l.value), l.cut),
        None => match (&info.default_tenant, label) {
            (Some(name), _) => table.id(Some(name), false),
            (None, _) => table.id(None, false),
        },
    }
}

/// Whose all of a process is: unknown where labels may say otherwise.
fn owner(table: &mut TenantTable, info: &TargetInfo) -> TenantId {
    let whole = info.default_tenant.as_deref().filter(|_| info.labels_before_default == 0);
    table.id(whole, false)
}

/// Where a goroutine was created: the `go` statement, with its callers when
/// the creator's stack is known and the statement itself is library code.
fn creation_site(sites: &mut Sites, gopc: u64, stack: &[u64]) -> SiteId {
    use crate::symbol::Origin;
    let own =
        sites.frames(gopc).iter().any(|f| matches!(f.origin, Origin::Main | Origin::Dependency));
    if own || stack.is_empty() || gopc == 0 {
        sites.of_stack(&[gopc])
    } else {
        sites.of_stack(stack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_stands_for_what_was_not_sampled() {
        let a = heap_amount(64, Some(512 << 10));
        assert!((a.bytes / f64::from(512 << 10) - 1.0).abs() < 1e-3);
        let big = heap_amount(64 << 20, Some(512 << 10));
        assert!((big.objects - 1.0).abs() < 1e-9 && big.variance.abs() < 1e3);
    }
}
