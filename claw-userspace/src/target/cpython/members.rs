//! Where the objects of a few types are: a walk of the pools as in `census`,
//! for the types that grow alone.

use rustc_hash::FxHashMap;

use super::{
    census::for_each_pool,
    layout::Layout,
    object::Objects,
    pool::{Pool, u64_at},
    regions::Region,
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
    /// Size classes that they were found in, by type.
    pub classes: Vec<u32>,
    /// There were more than are kept.
    pub cut: bool,
}

/// Objects that are kept.
const MOST: usize = 4 << 20;
const MOST_REFERENCES: u64 = 1 << 32;

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
    let mut found = Members { classes: vec![0; wanted.len()], ..Members::default() };
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
            for before in [0, 16, 32] {
                if block.len() < before + 16 {
                    break;
                }
                let (references, typ) = (u64_at(block, before), u64_at(block, before + 8));
                if references == 0 || references >= MOST_REFERENCES {
                    continue;
                }
                let Some(i) = index.get(&typ) else { continue };
                if wanted.get(*i as usize).is_none_or(|w| w.before != before) {
                    continue;
                }
                if let Some(c) = found.classes.get_mut(*i as usize) {
                    *c |= 1 << class;
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
