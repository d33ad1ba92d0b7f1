//! Where the objects of a few types are: a walk of the pools as in `census`,
//! for the types that grow alone.

use rustc_hash::FxHashMap;

use super::{
    census::for_each_pool,
    layout::Layout,
    object::Objects,
    pool::{CLASSES, Pool},
    regions::Region,
    types::heads,
};
use crate::target::memory::Memory;

/// A type whose objects are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub address: u64,
    /// Bytes of a block before the object in it.
    pub before: usize,
}

/// Objects by address, with the index of their type.
#[derive(Clone, Debug, Default)]
pub struct Members {
    pub objects: FxHashMap<u64, u32>,
    /// By type, how many were found in each size class.
    pub classes: Vec<[u64; CLASSES]>,
    /// There were more than are kept.
    pub cut: bool,
}

/// Objects that are kept.
const MOST: usize = 4 << 20;

impl Members {
    /// The size class of most objects of a type. From 3.13 an object's size
    /// depends on how many attributes its class was known to have.
    pub fn class(&self, typ: usize) -> Option<u32> {
        let counts = self.classes.get(typ)?;
        let (class, most) = (0u32..).zip(counts).max_by_key(|(_, n)| **n)?;
        (*most > 0).then_some(class)
    }

    /// How many objects of a type are kept here.
    pub fn count(&self, typ: usize) -> i64 {
        self.objects.values().filter(|t| **t as usize == typ).count() as i64
    }

    /// All size classes of all types, one bit each.
    pub fn all_classes(&self) -> u32 {
        let has = |class: &u32| self.classes.iter().any(|c| c.get(*class as usize) != Some(&0));
        (0..CLASSES as u32).filter(has).fold(0, |a, class| a | 1 << class)
    }
}

impl Wanted {
    /// The type at `address`; `None` when there is none.
    pub fn at<M: Memory>(objects: &Objects<'_, M>, layout: &Layout, address: u64) -> Option<Self> {
        let before = objects.type_at(address)?.before(layout);
        Some(Self { address, before })
    }
}

/// Find the objects of `wanted`; in pools of the size classes in `classes`
/// (one bit each) alone.
pub fn find<M: Memory>(
    objects: &Objects<'_, M>,
    regions: &[Region],
    wanted: &[Wanted],
    classes: u32,
) -> Members {
    let mut found = Members { classes: vec![[0; CLASSES]; wanted.len()], ..Members::default() };
    let index: FxHashMap<u64, u32> = wanted.iter().map(|w| w.address).zip(0..).collect();
    for_each_pool(objects.memory, objects.layout.pool_size, regions, |bytes, address| {
        let Some(bytes) = bytes else { return };
        let Some(pool) = Pool::parse(bytes, address) else { return };
        let class = (pool.block_size / 16 - 1) as u32;
        if classes & (1 << class) == 0 {
            return;
        }
        let Some(blocks) = pool.blocks() else { return };
        for offset in blocks {
            let block = bytes.get(offset..offset + pool.block_size).unwrap_or_default();
            for (before, typ) in heads(block) {
                let Some(i) = index.get(&typ) else { continue };
                if wanted.get(*i as usize).is_none_or(|w| w.before != before) {
                    continue;
                }
                let counts = found.classes.get_mut(*i as usize);
                if let Some(n) = counts.and_then(|c| c.get_mut(class as usize)) {
                    *n += 1;
                }
                if found.objects.len() < MOST {
                    found.objects.insert(address + (offset + before) as u64, *i);
                } else {
                    found.cut = true;
                }
                break;
            }
        }
    });
    found
}
