//! Samples put together by site or by type, largest first.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::{By, Sample};
use crate::{
    ledger::{Site, SiteId, Sites},
    symbol::Frame,
};

/// The four values of a Go heap profile, unsampled. What was allocated and is
/// gone is not known to every runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    pub alloc_objects: Option<i64>,
    pub alloc_space: Option<i64>,
    pub inuse_objects: i64,
    pub inuse_space: i64,
}

impl Values {
    /// No object at all.
    pub const ZERO: Self =
        Self { alloc_objects: Some(0), alloc_space: Some(0), inuse_objects: 0, inuse_space: 0 };

    pub fn plus(&self, other: &Self) -> Self {
        let sum = |a: Option<i64>, b: Option<i64>| Some(a?.saturating_add(b?));
        Self {
            alloc_objects: sum(self.alloc_objects, other.alloc_objects),
            alloc_space: sum(self.alloc_space, other.alloc_space),
            inuse_objects: self.inuse_objects.saturating_add(other.inuse_objects),
            inuse_space: self.inuse_space.saturating_add(other.inuse_space),
        }
    }

    pub fn negated(&self) -> Self {
        Self {
            alloc_objects: self.alloc_objects.map(i64::saturating_neg),
            alloc_space: self.alloc_space.map(i64::saturating_neg),
            inuse_objects: self.inuse_objects.saturating_neg(),
            inuse_space: self.inuse_space.saturating_neg(),
        }
    }

    /// Nothing to show: in a difference, nothing that changed.
    pub fn is_zero(&self) -> bool {
        let zero = |v: Option<i64>| v.is_none_or(|v| v == 0);
        zero(self.alloc_objects)
            && zero(self.alloc_space)
            && self.inuse_objects == 0
            && self.inuse_space == 0
    }

    pub fn total<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        all.fold(Self::ZERO, |sum, v| sum.plus(v))
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub site: Option<Site>,
    pub type_name: Option<String>,
    pub values: Values,
    /// Samples that it is made of: stacks and object sizes, or types.
    pub parts: usize,
}

/// Most sites told apart; far above what a program has.
const MOST_SITES: usize = 1 << 20;

/// All rows but those that are zero throughout. `By::Tenant` gives none: no
/// snapshot has tenants.
pub fn rows(samples: &[Sample], by: By) -> Vec<Row> {
    let mut rows = match by {
        By::Site => by_site(samples),
        By::Type => by_type(samples),
        By::Tenant => Vec::new(),
    };
    rows.retain(|r| !r.values.is_zero());
    let size = |r: &Row| {
        let v = &r.values;
        (v.inuse_space.unsigned_abs(), v.alloc_space.map_or(0, i64::unsigned_abs))
    };
    rows.sort_by_key(|r| std::cmp::Reverse(size(r)));
    rows
}

fn by_site(samples: &[Sample]) -> Vec<Row> {
    let mut sites = Sites::new(MOST_SITES);
    // Addresses of two programs may mean different frames; numbers do not.
    let mut numbers: HashMap<&[Frame], u64> = HashMap::new();
    let mut found: BTreeMap<SiteId, (Values, usize)> = BTreeMap::new();
    for s in samples {
        let mut stack = Vec::with_capacity(s.stack.len());
        for l in &s.stack {
            let next = numbers.len() as u64 + 1;
            let number = *numbers.entry(&l.frames).or_insert(next);
            if number == next {
                sites.learn(number, l.frames.clone());
            }
            stack.push(number);
        }
        let (values, parts) = found.entry(sites.of_stack(&stack)).or_insert((Values::ZERO, 0));
        *values = values.plus(&s.values);
        *parts += 1;
    }
    found
        .into_iter()
        .map(|(id, (values, parts))| Row {
            site: sites.get(id).cloned(),
            type_name: None,
            values,
            parts,
        })
        .collect()
}

fn by_type(samples: &[Sample]) -> Vec<Row> {
    let mut found: BTreeMap<Option<&str>, (Values, usize)> = BTreeMap::new();
    for s in samples {
        let (values, parts) = found.entry(s.type_name.as_deref()).or_insert((Values::ZERO, 0));
        *values = values.plus(&s.values);
        *parts += 1;
    }
    found
        .into_iter()
        .map(|(name, (values, parts))| Row {
            site: None,
            type_name: name.map(str::to_owned),
            values,
            parts,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbol::{Location, Origin};

    fn sample(address: u64, line: u32, inuse_space: i64) -> Sample {
        let frame = Frame {
            function: "main.grow".into(),
            file: "/a.go".into(),
            line,
            start_line: 1,
            inlined: false,
            origin: Origin::Main,
        };
        Sample {
            stack: vec![Location { return_address: address, frames: vec![frame] }],
            object_size: Some(64),
            type_name: Some(format!("T{line}")),
            values: Values { inuse_space, ..Values::ZERO },
        }
    }

    #[test]
    fn the_same_line_is_one_site_wherever_it_lies() {
        // Two builds: one address means two lines, one line has two addresses.
        let samples = [sample(1, 7, 10), sample(1, 8, 50), sample(2, 7, 20), sample(3, 9, 0)];
        let found = rows(&samples, By::Site);
        let seen: Vec<_> = found
            .iter()
            .map(|r| (r.site.as_ref().unwrap().frames[0].line, r.values.inuse_space, r.parts))
            .collect();
        assert_eq!(seen, [(8, 50, 1), (7, 30, 2)]);
        let types: Vec<_> = rows(&samples, By::Type).into_iter().map(|r| r.type_name).collect();
        assert_eq!(types, [Some("T8".to_owned()), Some("T7".to_owned())]);
    }

    #[test]
    fn sums_do_not_overflow_and_unknown_stays_unknown() {
        let most = Values { inuse_space: i64::MAX, ..Values::ZERO };
        let census = Values { alloc_space: None, alloc_objects: None, ..most };
        let sum = Values::total([most, most, census].iter());
        assert_eq!((sum.inuse_space, sum.alloc_space), (i64::MAX, None));
        assert_eq!(sum.negated().inuse_space, -i64::MAX);
    }
}
