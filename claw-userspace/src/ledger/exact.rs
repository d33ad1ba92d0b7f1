//! What exact mode's windows saw of one process, and what that says of the
//! whole time.
//!
//! A target runs slower while a window is open, so time alone says too little
//! about how much it allocates otherwise. The runtime's own sampler, which
//! runs all the time, knows the total without bias; the windows know the
//! shares. What is reported is share × total (a ratio estimate; Cochran,
//! *Sampling Techniques*, ch. 6), with the variance between windows and that
//! of the sampler. A window that never closed needs none of it: it is a count.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use super::{population::Population, site::SiteId};
use crate::{detect::trend::student_quantile, stream::Window, tenant::TenantId};

/// Samples of the runtime from which its total is believed.
const ENOUGH_SAMPLES: u64 = 100;
/// Windows of one size from which on there is an interval.
const FEWEST_WINDOWS: f64 = 2.0;
/// Kinds of allocations that are kept.
const MOST_GROUPS: usize = 16_384;

/// What one key of a window becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    pub tenant: TenantId,
    pub site: SiteId,
    /// Index into [`Exact::types`].
    pub type_index: u32,
    pub goroutine: bool,
}

/// Sums over windows of a subject's count x, its bytes, and the slot bytes y
/// of all subjects.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    pub count: f64,
    pub bytes: f64,
    count_squared: f64,
    count_by_slots: f64,
}

/// A total over the whole time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub count: f64,
    pub bytes: f64,
    /// Relative half-width of the 95 % interval; `None` when too little was
    /// seen to give one.
    pub spread: Option<f64>,
}

/// How counts become totals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// The window never closed.
    Complete,
    /// By the runtime's sampler: the factor, and its relative variance.
    Sampler(f64, f64),
    /// By the time that was covered.
    Time(f64),
}

#[derive(Debug, Default)]
pub struct Exact {
    /// When the first window opened, and until when the latest was reported.
    pub since_ns: u64,
    pub until_ns: u64,
    pub covered_ns: u64,
    pub windows: u64,
    pub hits: u64,
    pub lost_ns: f64,
    pub period_ns: f64,
    /// What is missing, by reason.
    pub lost: BTreeMap<String, u64>,
    pub types: Vec<String>,
    sites: FxHashMap<u32, (SiteId, u32, bool)>,
    groups: FxHashMap<Subject, Sums>,
    tenants: FxHashMap<TenantId, Sums>,
    /// Of all objects together.
    objects: Sums,
    slots: f64,
    slots_squared: f64,
    /// The latest window is still open.
    pub open: bool,
    /// The sampler's totals when the first window was reported, and now.
    before: Sampled,
    latest: Sampled,
}

/// What the sampler has counted until a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sampled {
    bytes: f64,
    samples: u64,
    t_ns: u64,
}

impl Sampled {
    fn of(heap: &Population, t_ns: u64) -> Self {
        let none = Self { t_ns, ..Self::default() };
        heap.groups().iter().fold(none, |sum, g| Self {
            bytes: sum.bytes + g.born.bytes,
            samples: sum.samples + g.births,
            t_ns,
        })
    }
}

impl Exact {
    /// Name the stacks and types that counts refer to by `id`.
    pub fn site(&mut self, id: u32, site: SiteId, goroutine: bool, type_name: Option<String>) {
        let name = type_name.unwrap_or_default();
        let index = self.types.iter().position(|t| *t == name).unwrap_or_else(|| {
            self.types.push(name);
            self.types.len() - 1
        });
        self.sites.insert(id, (site, u32::try_from(index).unwrap_or(0), goroutine));
    }

    pub fn known(&self, id: u32) -> Option<(SiteId, u32, bool)> {
        self.sites.get(&id).copied()
    }

    /// A window, or a part of one that stays open.
    pub fn saw(&mut self, w: &Window) {
        self.open = !w.closed;
        self.windows += u64::from(w.opened);
        self.hits += w.hits;
        self.lost_ns += w.lost_work_ns;
        self.period_ns = w.period_ns;
        for (reason, n) in &w.lost {
            *self.lost.entry(reason.clone()).or_default() += n;
        }
    }

    /// Begin, or go on, at `from_ns`; `now_ns` is the time of what `heap` knows.
    pub fn covered(&mut self, from_ns: u64, to_ns: u64, now_ns: u64, heap: &Population) {
        let latest = Sampled::of(heap, now_ns);
        if self.since_ns == 0 {
            self.since_ns = from_ns;
            self.before = latest;
        }
        self.latest = latest;
        self.until_ns = self.until_ns.max(to_ns);
        self.covered_ns += to_ns.saturating_sub(from_ns);
    }

    /// Time went on without a window. Figures that ended with the last one would
    /// be of a time with more windows than there are, and of one window alone,
    /// in which the target hardly moved.
    pub fn passed(&mut self, now_ns: u64, heap: &Population) {
        if self.since_ns > 0 && !self.open {
            self.latest = Sampled::of(heap, now_ns);
            self.until_ns = self.until_ns.max(now_ns);
        }
    }

    /// Add what one window saw.
    pub fn add(&mut self, counts: impl Iterator<Item = (Subject, u64, u64)>) {
        let (mut by_group, mut by_tenant) = (BTreeMap::new(), BTreeMap::new());
        let (mut slots, mut objects) = (0.0, (0.0, 0.0));
        for (subject, count, bytes) in counts {
            let add = |sum: &mut (f64, f64)| {
                sum.0 += count as f64;
                sum.1 += bytes as f64;
            };
            add(by_group.entry(subject).or_default());
            if !subject.goroutine {
                add(by_tenant.entry(subject.tenant).or_default());
                add(&mut objects);
                slots += count as f64 * slot(bytes as f64 / count.max(1) as f64);
            }
        }
        self.slots += slots;
        self.slots_squared += slots * slots;
        self.objects.add(objects.0, objects.1, slots);
        for (subject, (count, bytes)) in by_group {
            if self.groups.len() >= MOST_GROUPS && !self.groups.contains_key(&subject) {
                *self.lost.entry("exact_groups".into()).or_default() += count as u64;
                continue;
            }
            self.groups.entry(subject).or_default().add(count, bytes, slots);
        }
        for (tenant, (count, bytes)) in by_tenant {
            self.tenants.entry(tenant).or_default().add(count, bytes, slots);
        }
    }

    pub fn span_ns(&self) -> u64 {
        self.until_ns.saturating_sub(self.since_ns)
    }

    /// Share of the time since the first window opened, 0 to 1.
    pub fn coverage(&self) -> f64 {
        if self.span_ns() == 0 { 0.0 } else { self.covered_ns as f64 / self.span_ns() as f64 }
    }

    pub fn scale(&self) -> Scale {
        if self.windows <= 1 && self.coverage() >= 0.999_999 {
            return Scale::Complete;
        }
        let samples = self.latest.samples.saturating_sub(self.before.samples);
        if samples >= ENOUGH_SAMPLES && self.slots > 0.0 {
            // Of a time that began a little later than the first window.
            let sampled_ns = self.latest.t_ns.saturating_sub(self.before.t_ns);
            let part = if sampled_ns > 0 { sampled_ns as f64 / self.span_ns() as f64 } else { 1.0 };
            let bytes = (self.latest.bytes - self.before.bytes) / part;
            return Scale::Sampler(bytes / self.slots, 1.0 / samples as f64);
        }
        // What the target lost in a window it would have done outside of one.
        let useful = (self.covered_ns as f64 - self.lost_ns).max(self.covered_ns as f64 * 0.02);
        Scale::Time(self.span_ns() as f64 / useful.max(1.0))
    }

    fn estimate(&self, s: &Sums, scale: Scale) -> Estimate {
        let (factor, spread) = match scale {
            Scale::Complete => (1.0, Some(0.0)),
            Scale::Sampler(factor, variance) => (factor, self.spread(s, variance)),
            Scale::Time(factor) => (factor, None),
        };
        Estimate { count: s.count * factor, bytes: s.bytes * factor, spread }
    }

    fn spread(&self, s: &Sums, variance: f64) -> Option<f64> {
        // So many windows of one size know as much (Kish, *Survey Sampling*,
        // 11.7): a few long ones pull the ratio towards themselves, and their
        // residuals with it.
        let n = self.slots * self.slots / self.slots_squared;
        if !(n >= FEWEST_WINDOWS && s.count > 0.0) {
            return None;
        }
        let r = s.count / self.slots;
        let residual = s.count_squared - 2.0 * r * s.count_by_slots + r * r * self.slots_squared;
        // Never surer than that many independent events make one.
        let between = (residual.max(0.0) * n / (n - 1.0)).max(s.count);
        // Of few windows the variance between them is itself not well known.
        let within = student_quantile(1.96, n - 1.0);
        Some(within * (between / (s.count * s.count) + variance).sqrt())
    }

    pub fn groups(&self) -> impl Iterator<Item = (&Subject, Estimate)> {
        let scale = self.scale();
        self.groups.iter().map(move |(k, s)| (k, self.estimate(s, scale)))
    }

    pub fn tenant(&self, tenant: TenantId) -> Option<Estimate> {
        Some(self.estimate(self.tenants.get(&tenant)?, self.scale()))
    }

    /// All objects together.
    pub fn objects(&self) -> Estimate {
        self.estimate(&self.objects, self.scale())
    }

    /// Tenants that allocated while a window was open.
    pub fn tenants(&self) -> impl Iterator<Item = TenantId> {
        self.tenants.keys().copied()
    }
}

impl Sums {
    fn add(&mut self, count: f64, bytes: f64, slots: f64) {
        self.count += count;
        self.bytes += bytes;
        self.count_squared += count * count;
        self.count_by_slots += count * slots;
    }
}

/// Size classes of the allocator above its tiny one (`runtime/sizeclasses.go`,
/// Go 1.16–1.27).
const CLASSES: [u32; 66] = [
    16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320, 352,
    384, 416, 448, 480, 512, 576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792, 2048,
    2304, 2688, 3072, 3200, 3456, 4096, 4864, 5120, 5376, 6144, 6528, 6784, 6912, 8192, 9472, 9728,
    10240, 10880, 12288, 13568, 14336, 16384, 18432, 19072, 20480, 21760, 24576, 27264, 28672,
];

/// Bytes that the allocator takes for an object, as the sampler counts them.
fn slot(size: f64) -> f64 {
    if size < 16.0 {
        // Tiny ones share a slot.
        return size;
    }
    let class = CLASSES.partition_point(|c| f64::from(*c) < size);
    match CLASSES.get(class) {
        Some(c) => f64::from(*c),
        None if size <= 32768.0 => 32768.0,
        None => (size / 8192.0).ceil() * 8192.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Amount, Proof};

    const PROOF: Proof = Proof { age_ns: 1, times: 1, quantile: 0.5, gc_cycles: 0 };

    fn subject(n: u32) -> Subject {
        Subject { tenant: TenantId(n), site: SiteId(n), type_index: 0, goroutine: false }
    }

    fn heap(samples: u64, each: f64) -> Population {
        let mut p = Population::new(PROOF, 1 << 16, 100, 0);
        for i in 0..samples {
            let amount = Amount { objects: 1.0, bytes: each, variance: 0.0 };
            p.birth(i, (TenantId(1), SiteId(1)), i, amount);
        }
        p
    }

    #[test]
    fn a_window_that_never_closed_is_a_count() {
        let mut e = Exact { windows: 1, ..Exact::default() };
        let none = heap(0, 0.0);
        for t in 1..5 {
            e.covered(t * 1000, t * 1000 + 1000, t * 1000 + 1000, &none);
            e.add([(subject(1), 10, 640), (subject(2), 1, 8)].into_iter());
        }
        assert_eq!(e.scale(), Scale::Complete);
        let all: BTreeMap<_, _> = e.groups().map(|(k, v)| (*k, v)).collect();
        assert_eq!(all[&subject(1)], Estimate { count: 40.0, bytes: 2560.0, spread: Some(0.0) });
        assert!(e.tenant(TenantId(2)).is_some_and(|t| (t.bytes - 32.0).abs() < 1e-9));
    }

    #[test]
    fn one_window_that_closed_is_no_count_of_all_the_time() {
        let mut e = Exact { windows: 1, open: true, ..Exact::default() };
        e.covered(1_000, 6_000, 6_000, &heap(0, 0.0));
        e.add([(subject(1), 10, 640)].into_iter());
        e.passed(9_000, &heap(50, 1.0));
        assert_eq!((e.scale(), e.span_ns()), (Scale::Complete, 5_000), "it is open still");
        e.open = false;
        e.passed(1_001_000, &heap(200, 64_000.0));
        assert!(matches!(e.scale(), Scale::Sampler(..)), "{:?}", e.scale());
        let all = e.objects();
        // The sampler was asked first when the window had been open for 5 µs.
        let expected = 200.0 * 64_000.0 / 64.0 * 1_000_000.0 / 995_000.0;
        assert!((all.count / expected - 1.0).abs() < 1e-9, "{all:?}");
        assert_eq!(all.spread, None, "of one window nothing is known but the total");
        assert!((e.coverage() - 0.005).abs() < 1e-9);
    }

    #[test]
    fn shares_of_the_samplers_total() {
        let mut e = Exact::default();
        e.covered(1, 2, 2, &heap(0, 0.0));
        for w in 0..50u64 {
            e.windows += 1;
            // The sampler goes on between the windows, and after the last.
            let t = w * 1_000_000;
            e.covered(t, t + 1000, t + 1000, &heap(w * 8 + 8, 500_000.0));
            // A third of the bytes, give or take.
            let n = 95 + w % 11;
            e.add([(subject(1), n, n * 64), (subject(2), 200, 200 * 64)].into_iter());
        }
        let Scale::Sampler(..) = e.scale() else { panic!("{:?}", e.scale()) };
        let t = e.tenant(TenantId(1)).unwrap();
        assert!((t.bytes / (2e8 / 3.0) - 1.0).abs() < 0.01, "{t:?}");
        assert!(t.spread.is_some_and(|s| s > 0.09 && s < 0.2), "{t:?}");
        // Without a sampler, by time, and then without an interval.
        e.covered(49_000_000, 49_001_000, 49_001_000, &heap(3, 1.0));
        assert!(matches!(e.scale(), Scale::Time(f) if f > 900.0));
    }

    /// Windows of very different length, as the governor opens them, in a process
    /// whose tenants take turns.
    #[test]
    fn the_interval_holds_the_truth_of_few_windows() {
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as f64 / f64::from(1u32 << 31)
        };
        for (windows, usual) in [(3, 2.5), (6, 0.9), (20, 0.4)] {
            let (mut held, mut given, mut wide) = (0, 0, 0);
            for _ in 0..400 {
                let mut e = Exact::default();
                e.covered(1, 2, 2, &heap(0, 0.0));
                e.latest = Sampled { bytes: 1e9, samples: 1_000_000, t_ns: 2 };
                for _ in 0..windows {
                    let all = 200.0 + 2000.0 * random();
                    // A quarter in the mean.
                    let one = (all * 0.5 * random()).round();
                    let counts = [(subject(1), one), (subject(2), all - one)];
                    e.add(counts.map(|(s, n)| (s, n as u64, n as u64 * 64)).into_iter());
                }
                e.windows = windows;
                let t = e.tenant(TenantId(1)).unwrap();
                let Some(spread) = t.spread else { continue };
                given += 1;
                held += u32::from((t.bytes - 2.5e8).abs() <= spread * t.bytes);
                wide += u32::from(spread > usual);
            }
            assert!(given >= 300, "{windows} windows: {given} of 400");
            assert!(held * 100 >= given * 91, "{windows} windows: {held} of {given}");
            assert!(wide * 2 < given, "{windows} windows: {wide} of {given} say nothing");
        }
    }

    #[test]
    fn sizes_are_rounded_as_the_allocator_does() {
        for (size, want) in
            [(8.0, 8.0), (17.0, 24.0), (64.0, 64.0), (30_000.0, 32768.0), (40_000.0, 40960.0)]
        {
            assert!((slot(size) - want).abs() < 1e-9, "{size}");
        }
    }
}
