//! What was in use when watching began, by site: Go's own profile at attach.
//! It only shrinks, by the frees of what was born before.

use rustc_hash::FxHashMap;

use super::{Amount, SiteId};
use crate::tenant::TenantId;

#[derive(Clone, Debug)]
pub struct Before {
    /// Whose it is: unknown, unless the whole process belongs to one.
    pub tenant: TenantId,
    /// Mean bytes between two samples when they were taken; `None` when
    /// nothing is known of the time before.
    pub rate: Option<u64>,
    sites: FxHashMap<SiteId, Amount>,
}

impl Before {
    /// Nothing is known yet.
    pub fn new(tenant: TenantId) -> Self {
        Self { tenant, rate: None, sites: FxHashMap::default() }
    }

    /// The number of sites is bounded by whoever made them.
    pub fn add(&mut self, site: SiteId, amount: &Amount) {
        self.sites.entry(site).or_default().add(amount, 1.0);
    }

    /// A free of something born before. More may be freed than was known: what
    /// was allocated while the profile was read.
    pub fn freed(&mut self, site: SiteId, amount: &Amount) {
        if let Some(a) = self.sites.get_mut(&site) {
            a.add(amount, -1.0);
            if a.objects < 0.5 || a.bytes < 0.5 {
                self.sites.remove(&site);
            }
        }
    }

    /// Still in use of one site; `None` when nothing is known.
    pub fn at(&self, site: SiteId) -> Option<Amount> {
        self.rate?;
        Some(self.sites.get(&site).copied().unwrap_or_default())
    }

    /// All that is still in use; `None` when nothing is known.
    pub fn total(&self) -> Option<Amount> {
        self.rate?;
        let mut total = Amount::default();
        for (_, a) in self.largest() {
            total.add(&a, 1.0);
        }
        Some(total)
    }

    /// By bytes, the largest first.
    pub fn largest(&self) -> Vec<(SiteId, Amount)> {
        let mut all: Vec<_> = self.sites.iter().map(|(s, a)| (*s, *a)).collect();
        all.sort_unstable_by(|a, b| b.1.bytes.total_cmp(&a.1.bytes).then(a.0.cmp(&b.0)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shrinks_and_never_below_nothing() {
        let amount = |bytes| Amount { objects: bytes / 64.0, bytes, variance: bytes };
        let mut b = Before::new(TenantId(0));
        assert_eq!((b.at(SiteId(1)), b.total()), (None, None));
        b.rate = Some(1);
        b.add(SiteId(1), &amount(640.0));
        b.add(SiteId(2), &amount(6400.0));
        b.freed(SiteId(1), &amount(64.0));
        b.freed(SiteId(3), &amount(64.0));
        assert_eq!(b.at(SiteId(1)).map(|a| a.bytes), Some(576.0));
        assert_eq!(b.largest()[0].0, SiteId(2));
        b.freed(SiteId(2), &amount(9999.0));
        assert_eq!(b.total().map(|a| a.bytes), Some(576.0));
    }
}
