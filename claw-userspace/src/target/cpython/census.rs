//! What a CPython heap holds, by type: a walk of all pymalloc pools, from
//! outside and without stopping the process.
//!
//! Pools are found by what they look like and not through the interpreter's
//! tables: every stretch of anonymous memory is read pool by pool, and a pool's
//! header is redundant enough to tell it from anything else. That holds for
//! all versions, and a table that changes while it is read cannot mislead it.
//! What the process changes meanwhile is seen before or after the change; a
//! pool caught in the middle is counted without types.

use super::{
    layout::{OB_SIZE, SET_USED, flags},
    object::Objects,
    pool::{Pool, u64_at},
    regions::Region,
    types::TypeTable,
};
use crate::target::memory::Memory;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Containers from this many elements on are remembered, the largest of them.
const LARGE: u64 = 64;
const MOST_CONTAINERS: usize = 4096;
const MOST_MODULES: usize = 1 << 14;
const MOST_TASKS: usize = 1 << 17;

/// Type of what `functools.lru_cache` makes of a function.
pub const LRU_CACHE: &str = "functools._lru_cache_wrapper";

/// Objects and bytes of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub type_name: String,
    /// Address of the type object.
    pub type_at: u64,
    pub objects: u64,
    /// Of the blocks they lie in: what they take in memory.
    pub bytes: u64,
}

/// A list, dict, set or the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Container {
    pub address: u64,
    /// Index into [`Census::rows`].
    pub row: u32,
    pub elements: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Most bytes first.
    pub rows: Vec<Row>,
    /// Blocks that are no objects: tables of dicts and lists, buffers, objects
    /// kept for reuse.
    pub untyped: (u64, u64),
    /// Blocks of pools that changed while they were read.
    pub torn: (u64, u64),
    pub pools: u64,
    /// Of all pools, bytes, with those that have no block in use.
    pub pool_bytes: u64,
    /// The largest containers.
    pub containers: Vec<Container>,
    /// Addresses of module objects, and of functions with an `lru_cache`.
    pub modules: Vec<u64>,
    pub cached: Vec<u64>,
    /// Addresses of asyncio's tasks.
    pub tasks: Vec<u64>,
    /// Bytes that could not be read, because they were unmapped meanwhile.
    pub unreadable: u64,
}

impl Census {
    /// Blocks in use: what `sys.getallocatedblocks()` counts.
    pub fn blocks(&self) -> u64 {
        self.rows.iter().map(|r| r.objects).sum::<u64>() + self.untyped.0 + self.torn.0
    }

    pub fn bytes(&self) -> u64 {
        self.rows.iter().map(|r| r.bytes).sum::<u64>() + self.untyped.1 + self.torn.1
    }
}

/// Take a census of `regions`.
pub fn take<M: Memory>(objects: &Objects<'_, M>, regions: &[Region]) -> Census {
    let mut walk = Walk { objects, census: Census::default(), types: TypeTable::default() };
    let size = objects.layout.pool_size;
    for_each_pool(objects.memory, size, regions, |pool, address| match pool {
        Some(pool) => walk.pool(pool, address),
        None => walk.census.unreadable += size as u64,
    });
    walk.finish()
}

/// Read every stretch of memory that can be a pool, in order; `None` when it
/// was unmapped meanwhile.
pub fn for_each_pool<M: Memory>(
    memory: &M,
    size: usize,
    regions: &[Region],
    mut f: impl FnMut(Option<&[u8]>, u64),
) {
    let mut buf = vec![0u8; CHUNK];
    for region in regions {
        let mut at = region.start.next_multiple_of(size as u64);
        let end = region.end & !(size as u64 - 1);
        while at < end {
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let bytes = buf.get_mut(..len).unwrap_or_default();
            let whole = memory.read(at, bytes).is_ok();
            for (pool, address) in bytes.chunks_exact_mut(size).zip((at..).step_by(size)) {
                // A part was unmapped meanwhile: read what is left.
                let there = whole || memory.read(address, pool).is_ok();
                f(there.then_some(pool), address);
            }
            at += len as u64;
        }
    }
}

struct Walk<'a, M> {
    objects: &'a Objects<'a, M>,
    census: Census,
    types: TypeTable,
}

impl<M: Memory> Walk<'_, M> {
    fn pool(&mut self, bytes: &[u8], address: u64) {
        let Some(pool) = Pool::parse(bytes, address) else {
            if Pool::is_free(bytes) {
                self.census.pool_bytes += bytes.len() as u64;
            }
            return;
        };
        self.census.pools += 1;
        self.census.pool_bytes += bytes.len() as u64;
        let size = pool.block_size as u64;
        let Some(blocks) = pool.blocks() else {
            self.census.torn.0 += pool.used as u64;
            self.census.torn.1 += pool.used as u64 * size;
            return;
        };
        for offset in blocks {
            let block = bytes.get(offset..offset + pool.block_size).unwrap_or_default();
            match self.types.object(self.objects, block) {
                Some((row, before)) => {
                    let row_of = row as usize;
                    if self.census.rows.len() <= row_of {
                        self.census.rows.resize(row_of + 1, Row::default());
                    }
                    if let Some(r) = self.census.rows.get_mut(row_of) {
                        r.objects += 1;
                        r.bytes += size;
                    }
                    self.remember(row, block.get(before..), address + (offset + before) as u64);
                }
                None => {
                    self.census.untyped.0 += 1;
                    self.census.untyped.1 += size;
                }
            }
        }
    }

    fn remember(&mut self, row: u32, object: Option<&[u8]>, address: u64) {
        let (Some(t), Some(object)) = (self.types.get(row), object) else { return };
        let types = &self.objects.types;
        if t.address == types.module && self.census.modules.len() < MOST_MODULES {
            self.census.modules.push(address);
        }
        if t.name == LRU_CACHE && self.census.cached.len() < MOST_MODULES {
            self.census.cached.push(address);
        }
        if t.name == "_asyncio.Task" && self.census.tasks.len() < MOST_TASKS {
            self.census.tasks.push(address);
        }
        let at = if t.flags & (flags::LIST_SUBCLASS | flags::DICT_SUBCLASS) != 0
            || t.name == "collections.deque"
        {
            OB_SIZE
        } else if t.address == types.set {
            SET_USED
        } else {
            return;
        };
        let elements = u64_at(object, at as usize);
        if (LARGE..1 << 40).contains(&elements) {
            self.census.containers.push(Container { address, row, elements });
            if self.census.containers.len() >= 2 * MOST_CONTAINERS {
                keep_largest(&mut self.census.containers);
            }
        }
    }

    fn finish(mut self) -> Census {
        keep_largest(&mut self.census.containers);
        for (row, t) in self.census.rows.iter_mut().zip(self.types.all()) {
            row.type_name.clone_from(&t.name);
            row.type_at = t.address;
        }
        let mut order: Vec<usize> = (0..self.census.rows.len()).collect();
        let rows = std::mem::take(&mut self.census.rows);
        order.sort_by(|a, b| {
            let key = |i: &usize| rows.get(*i).map(|r| (r.bytes, r.objects));
            key(b).cmp(&key(a)).then(a.cmp(b))
        });
        let mut place = vec![0u32; rows.len()];
        for (new, old) in (0u32..).zip(&order) {
            if let Some(p) = place.get_mut(*old) {
                *p = new;
            }
        }
        for c in &mut self.census.containers {
            c.row = place.get(c.row as usize).copied().unwrap_or(c.row);
        }
        let seen = |r: &Row| r.objects > 0;
        self.census.rows =
            order.iter().filter_map(|i| rows.get(*i).cloned()).filter(seen).collect();
        self.census
    }
}

fn keep_largest(containers: &mut Vec<Container>) {
    containers.sort_unstable_by(|a, b| b.elements.cmp(&a.elements).then(a.address.cmp(&b.address)));
    containers.truncate(MOST_CONTAINERS);
}
