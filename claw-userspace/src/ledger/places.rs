//! Where goroutines stand still: pairs of a creation site and a place that
//! they wait at, and how many stand there, by tenant.

use rustc_hash::FxHashMap;

use super::{ONE, Population, Proof, SiteId, creation_site, site::Sites};
use crate::{explain::waits_on, stream::Still, tenant::TenantId};

/// Created here, waiting there, for this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub creation: SiteId,
    pub blocked: SiteId,
    /// In words: `chan send`, `sync.WaitGroup.Wait`, `cgo call`.
    pub reason: String,
}

#[derive(Debug)]
pub struct Places {
    places: Vec<Place>,
    by_place: FxHashMap<Place, SiteId>,
    /// A member stands still; its site is an index into the places.
    pub population: Population,
    /// Those that stood there before watching began.
    before: FxHashMap<u64, SiteId>,
    most: usize,
}

impl Places {
    pub fn new(proof: Proof, most_live: usize, most: usize, since_ns: u64) -> Self {
        Self {
            places: Vec::new(),
            by_place: FxHashMap::default(),
            population: Population::new(proof, most_live, most, since_ns),
            before: FxHashMap::default(),
            most,
        }
    }

    pub fn get(&self, id: SiteId) -> Option<&Place> {
        self.places.get(id.0 as usize)
    }

    pub fn still(&mut self, s: &Still, tenant: TenantId, sites: &mut Sites) {
        let blocked = sites.of_stack(&s.stack);
        let creation = creation_site(sites, s.gopc, &s.stack);
        let reason = match sites.get(blocked) {
            Some(site) => waits_on(&s.reason, site),
            None => s.reason.clone(),
        };
        let place = Place { creation, blocked, reason };
        let id = match self.by_place.get(&place) {
            Some(id) => *id,
            None if self.places.len() < self.most => {
                let id = SiteId(u32::try_from(self.places.len()).unwrap_or(u32::MAX));
                self.places.push(place.clone());
                self.by_place.insert(place, id);
                id
            }
            None => {
                self.population.forgotten += 1;
                return;
            }
        };
        if s.before {
            self.before.insert(s.id, id);
        } else {
            self.population.birth(s.id, (tenant, id), s.since_ns, ONE);
        }
    }

    pub fn moved(&mut self, id: u64, t_ns: u64) {
        match self.before.remove(&id) {
            Some(place) => self.population.foreign_death(place, ONE, t_ns),
            None => {
                self.population.death(id, t_ns);
            }
        }
    }

    /// Where most of those stand that were created at `creation` for `tenant`.
    pub fn of(&self, tenant: TenantId, creation: SiteId) -> Option<&Place> {
        let mut counts: FxHashMap<SiteId, u64> = FxHashMap::default();
        for g in self.population.groups().iter().filter(|g| g.tenant == tenant) {
            if self.get(g.site).is_some_and(|p| p.creation == creation) {
                *counts.entry(g.site).or_default() += g.live_samples;
            }
        }
        let most = counts.into_iter().filter(|(_, n)| *n > 0).max_by_key(|(id, n)| (*n, *id))?;
        self.get(most.0)
    }
}
