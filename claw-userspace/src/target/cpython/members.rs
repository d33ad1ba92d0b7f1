//! Where the objects of a few types are: a walk of the pools as in `census`,
//! for the types that grow alone.

use rustc_hash::{FxHashMap, FxHashSet};

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
    /// Pools that could not be read in one piece: what is in them is not known.
    pub torn: FxHashSet<u64>,
}

/// A pool changes while it is read along with many others; read again by
/// itself it mostly does not.
const AGAIN: usize = 4;
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

    /// Add the objects of one pool, of those `wanted`: by type, their number and
    /// the bytes before each in its block.
    fn pool(
        &mut self,
        bytes: &[u8],
        address: u64,
        size: usize,
        blocks: impl Iterator<Item = usize>,
        wanted: &FxHashMap<u64, (u32, usize)>,
    ) {
        for offset in blocks {
            let block = bytes.get(offset..offset + size).unwrap_or_default();
            let mut of_type = heads(block)
                .filter_map(|(before, typ)| Some((before, wanted.get(&typ)?)))
                .filter(|(before, (_, wanted))| before == wanted);
            let Some((before, (typ, _))) = of_type.next() else { continue };
            let counts = self.classes.get_mut(*typ as usize);
            if let Some(n) = counts.and_then(|c| c.get_mut(size / 16 - 1)) {
                *n += 1;
            }
            if self.objects.len() < MOST {
                self.objects.insert(address + (offset + before) as u64, *typ);
            } else {
                self.cut = true;
            }
        }
    }

    /// Whether an object's pool could be read.
    pub fn knows(&self, at: u64, layout: &Layout) -> bool {
        let pool = at & !(layout.pool_size as u64 - 1);
        !self.torn.contains(&pool)
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
    let wanted_at: FxHashMap<u64, (u32, usize)> =
        (0..).zip(wanted).map(|(i, w)| (w.address, (i, w.before))).collect();
    let size = objects.layout.pool_size;
    let mut again = vec![0u8; size];
    for_each_pool(objects.memory, size, regions, |bytes, address| {
        let Some(bytes) = bytes else { return };
        let of_class = |bytes: &[u8]| {
            let pool = Pool::parse(bytes, address)?;
            let class = (pool.block_size / 16 - 1) as u32;
            (classes & (1 << class) != 0).then_some(pool)
        };
        let Some(pool) = of_class(bytes) else { return };
        if let Some(blocks) = pool.blocks() {
            found.pool(bytes, address, pool.block_size, blocks, &wanted_at);
            return;
        }
        for _ in 0..AGAIN {
            if objects.memory.read(address, &mut again).is_err() {
                break;
            }
            let Some(pool) = of_class(&again) else { return };
            if let Some(blocks) = pool.blocks() {
                found.pool(&again, address, pool.block_size, blocks, &wanted_at);
                return;
            }
        }
        found.torn.insert(address);
    });
    found
}
