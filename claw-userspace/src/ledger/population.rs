//! Things that are born, live and die: sampled heap objects or goroutines of
//! one process, grouped by tenant and site.

use rustc_hash::FxHashMap;

use super::{
    cycles::Cycles,
    foreign::{Died, Foreign},
    lifetimes::Lifetimes,
    site::SiteId,
};
use crate::{
    detect::{Evidence, Survivor},
    tenant::TenantId,
};

/// When something still alive has proven that it stays.
#[derive(Clone, Copy, Debug)]
pub struct Proof {
    /// Least age, ns.
    pub age_ns: u64,
    /// … and this multiple of the lifetime that this share of its dead peers
    /// reached.
    pub times: u64,
    pub quantile: f64,
    /// GC cycles that must have ended since its birth. After two, one whole
    /// cycle has looked at it: it is not garbage that awaits collection.
    pub gc_cycles: u32,
}

/// Dead peers from which their lifetimes mean something.
const ENOUGH_DEATHS: u64 = 5;

/// What one sample stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    pub objects: f64,
    pub bytes: f64,
    /// Variance of `bytes`, from sampling.
    pub variance: f64,
}

impl Amount {
    /// `sign` 1 adds, -1 takes away.
    pub(super) fn add(&mut self, other: &Self, sign: f64) {
        self.objects += sign * other.objects;
        self.bytes += sign * other.bytes;
        self.variance += sign * other.variance;
    }
}

#[derive(Clone, Copy, Debug)]
struct Member {
    group: u32,
    born_ns: u64,
    gc: u32,
    amount: Amount,
}

/// What is known of one (tenant, site).
#[derive(Clone, Debug)]
pub struct Group {
    pub tenant: TenantId,
    pub site: SiteId,
    pub first_ns: u64,
    pub births: u64,
    pub born: Amount,
    pub deaths: u64,
    /// Deaths of those that had proven to stay: what a leak does not have.
    pub proven_deaths: u64,
    pub live: Amount,
    pub live_samples: u64,
    pub lifetimes: Lifetimes,
    /// Set by whoever judges it: a finding at the last look.
    pub standing: bool,
}

#[derive(Debug)]
pub struct Population {
    proof: Proof,
    since_ns: u64,
    /// Since then.
    cycles: Cycles,
    live: FxHashMap<u64, Member>,
    groups: Vec<Group>,
    by_key: FxHashMap<(TenantId, SiteId), u32>,
    /// By site; the tenant of those is not known.
    foreign: FxHashMap<SiteId, Foreign>,
    most_live: usize,
    most_groups: usize,
    /// Births that were not kept for want of room.
    pub forgotten: u64,
    /// Births with an identity that was still alive: a missed death.
    pub missed_deaths: u64,
}

impl Population {
    /// `since_ns` is when births and deaths began to be seen.
    pub fn new(proof: Proof, most_live: usize, most_groups: usize, since_ns: u64) -> Self {
        Self {
            proof,
            since_ns,
            cycles: Cycles::default(),
            live: FxHashMap::default(),
            groups: Vec::new(),
            by_key: FxHashMap::default(),
            foreign: FxHashMap::default(),
            most_live,
            most_groups,
            forgotten: 0,
            missed_deaths: 0,
        }
    }

    /// A garbage collection has ended.
    pub fn collected(&mut self, t_ns: u64) {
        self.cycles.end(t_ns);
    }

    pub fn birth(
        &mut self,
        id: u64,
        (tenant, site): (TenantId, SiteId),
        t_ns: u64,
        amount: Amount,
    ) {
        if self.live.contains_key(&id) {
            self.missed_deaths += 1;
            self.death(id, t_ns);
        }
        let Some(group) = self.group(tenant, site, t_ns) else {
            self.forgotten += 1;
            return;
        };
        let g = &mut self.groups[group as usize];
        g.births += 1;
        g.born.add(&amount, 1.0);
        if self.live.len() >= self.most_live {
            self.forgotten += 1;
            return;
        }
        g.live.add(&amount, 1.0);
        g.live_samples += 1;
        self.live.insert(id, Member { group, born_ns: t_ns, gc: self.cycles.ended(), amount });
    }

    fn group(&mut self, tenant: TenantId, site: SiteId, t_ns: u64) -> Option<u32> {
        if let Some(i) = self.by_key.get(&(tenant, site)) {
            return Some(*i);
        }
        if self.groups.len() >= self.most_groups {
            return None;
        }
        let i = u32::try_from(self.groups.len()).ok()?;
        self.groups.push(Group {
            tenant,
            site,
            first_ns: t_ns,
            births: 0,
            born: Amount::default(),
            deaths: 0,
            proven_deaths: 0,
            live: Amount::default(),
            live_samples: 0,
            lifetimes: Lifetimes::default(),
            standing: false,
        });
        self.by_key.insert((tenant, site), i);
        Some(i)
    }

    /// False when nothing with this identity was known to be alive.
    pub fn death(&mut self, id: u64, t_ns: u64) -> bool {
        let Some(m) = self.live.remove(&id) else { return false };
        let needed = self.needed_age(m.group);
        let g = &mut self.groups[m.group as usize];
        let age = t_ns.saturating_sub(m.born_ns);
        g.deaths += 1;
        let cycles = self.cycles.ended().saturating_sub(m.gc);
        g.proven_deaths += u64::from(age > needed && cycles >= self.proof.gc_cycles);
        g.live.add(&m.amount, -1.0);
        g.live_samples = g.live_samples.saturating_sub(1);
        if g.live_samples == 0 {
            // What rounding left.
            g.live = Amount::default();
        }
        g.lifetimes.record(age);
        true
    }

    /// A death of something born before the agent attached.
    pub fn foreign_death(&mut self, site: SiteId, amount: Amount, t_ns: u64) {
        if self.foreign.len() < self.most_groups || self.foreign.contains_key(&site) {
            let gc = self.cycles.ended();
            self.foreign.entry(site).or_default().death(t_ns, gc, amount.bytes);
        } else {
            self.forgotten += 1;
        }
    }

    /// Age from which a member of `group` has proven to stay, ns.
    fn needed_age(&self, group: u32) -> u64 {
        let Some(g) = self.groups.get(group as usize) else { return self.proof.age_ns };
        if g.lifetimes.count() < ENOUGH_DEATHS {
            return self.proof.age_ns;
        }
        let typical = g.lifetimes.quantile_ns(self.proof.quantile).unwrap_or(0);
        self.proof.age_ns.max(typical.saturating_mul(self.proof.times))
    }

    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Bytes that each group gained since watching began, what died of the time
    /// before set off; in the order of [`Population::groups`].
    pub fn changes(&self) -> Vec<f64> {
        let mut site_births: FxHashMap<SiteId, f64> = FxHashMap::default();
        for g in &self.groups {
            *site_births.entry(g.site).or_default() += g.born.bytes;
        }
        let change = |g: &Group| {
            let total = site_births.get(&g.site).copied().unwrap_or(0.0);
            let share = if total > 0.0 { g.born.bytes / total } else { 0.0 };
            g.live.bytes - self.foreign.get(&g.site).map_or(0.0, |f| f.all().bytes) * share
        };
        self.groups.iter().map(change).collect()
    }

    /// Remember which groups are findings.
    pub fn stand(&mut self, found: &[u32]) {
        for g in &mut self.groups {
            g.standing = false;
        }
        for i in found {
            if let Some(g) = self.groups.get_mut(*i as usize) {
                g.standing = true;
            }
        }
    }

    /// Ages of the living members of each group: oldest, and their histogram.
    pub fn ages(&self, now_ns: u64) -> FxHashMap<u32, (u64, Lifetimes)> {
        let mut ages: FxHashMap<u32, (u64, Lifetimes)> = FxHashMap::default();
        for m in self.live.values() {
            let age = now_ns.saturating_sub(m.born_ns);
            let (oldest, histogram) = ages.entry(m.group).or_default();
            *oldest = age.max(*oldest);
            histogram.record(age);
        }
        ages
    }

    /// What is known for and against each group being a leak, for those with
    /// at least `least` living members. `lost` is the share of events that did
    /// not arrive.
    pub fn evidence(&self, now_ns: u64, lost: f64, least: u64) -> Vec<(u32, Evidence)> {
        let since_ns = self.since_ns;
        let cycles = self.proof.gc_cycles;
        let swept = self.cycles.swept(now_ns);
        // Born before this, a member has seen enough GC cycles.
        let gc_limit = match (cycles, swept.checked_sub(cycles)) {
            (0, _) => now_ns,
            (_, Some(earlier)) => self.cycles.end_of(earlier + 1).unwrap_or(0),
            (_, None) => 0,
        };
        // As what is born while watching has to prove that it stays, so has what
        // was there before: only then is it like the survivors. The garbage that
        // lay there at the start is not. It died between these two.
        let before_from = cycles.checked_sub(1).and_then(|n| self.cycles.end_of(n)).unwrap_or(0);
        let before_until =
            if cycles == 0 { now_ns } else { self.cycles.end_of(swept).unwrap_or(0) };
        let mut site_births: FxHashMap<SiteId, f64> = FxHashMap::default();
        for g in &self.groups {
            *site_births.entry(g.site).or_default() += g.born.bytes;
        }
        let mut found: FxHashMap<u32, Evidence> = FxHashMap::default();
        for (i, g) in (0u32..).zip(&self.groups).filter(|(_, g)| g.live_samples >= least) {
            let until = gc_limit.min(now_ns.saturating_sub(self.needed_age(i)));
            let Some(window) = until.checked_sub(since_ns).filter(|w| *w > 0) else { continue };
            let total = site_births.get(&g.site).copied().unwrap_or(0.0);
            let share = if total > 0.0 { g.born.bytes / total } else { 0.0 };
            let proven_ns = since_ns.saturating_add(self.needed_age(i));
            let seen_ns = before_until.saturating_sub(before_from.max(proven_ns));
            let seen_s = seen_ns.max(1) as f64 / 1e9;
            let died = match self.foreign.get(&g.site) {
                Some(f) if seen_ns > 0 => f.since(proven_ns, cycles..=swept),
                _ => Died::default(),
            };
            found.insert(
                i,
                Evidence {
                    window_s: window as f64 / 1e9,
                    watched_s: now_ns.saturating_sub(since_ns) as f64 / 1e9,
                    survivors: Vec::new(),
                    proven_deaths: g.proven_deaths,
                    offset_per_s: died.bytes * share / seen_s,
                    // A random share of the deaths: its variance shrinks with it.
                    offset_sd_per_s: (died.squares * share).sqrt() / seen_s,
                    missed: g.births as f64 * lost,
                    standing: g.standing,
                },
            );
        }
        for m in self.live.values() {
            let Some(e) = found.get_mut(&m.group) else { continue };
            let at = m.born_ns.saturating_sub(since_ns) as f64 / 1e9 / e.window_s;
            if at <= 1.0 {
                e.survivors.push(Survivor {
                    at,
                    amount: m.amount.bytes,
                    objects: m.amount.objects,
                });
            }
        }
        let mut found: Vec<_> = found.into_iter().collect();
        found.sort_unstable_by_key(|(i, _)| *i);
        for (_, e) in &mut found {
            // The map's order must not reach the floating-point sums.
            e.survivors
                .sort_unstable_by(|a, b| a.at.total_cmp(&b.at).then(a.amount.total_cmp(&b.amount)));
        }
        found
    }
}
