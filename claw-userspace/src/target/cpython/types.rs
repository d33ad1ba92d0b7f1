//! The types met in a heap, each told once: what a word has to point to for
//! the block around it to be an object.

use rustc_hash::FxHashMap;

use super::{
    object::{Objects, TypeInfo},
    pool::u64_at,
};
use crate::target::memory::Memory;

/// Types kept apart; objects of further ones count as none.
const MOST_TYPES: usize = 1 << 16;
/// Pointers looked at that turn out to be no type.
const MOST_WRONG: usize = 1 << 16;
/// Refcounts are below this; immortal objects (3.12+) have 32 bits set.
const MOST_REFERENCES: u64 = 1 << 32;
/// `ob_flags` (3.14+): immortal, statically allocated.
const FLAGS: u64 = 5 << 48;
/// Of the last types seen, by address.
const CACHE: usize = 1024;

#[derive(Debug)]
pub struct TypeTable {
    types: Vec<TypeInfo>,
    known: FxHashMap<u64, Option<u32>>,
    wrong: usize,
    cache: Vec<(u64, Option<u32>)>,
}

impl Default for TypeTable {
    fn default() -> Self {
        Self {
            types: Vec::new(),
            known: FxHashMap::default(),
            wrong: 0,
            cache: vec![(0, None); CACHE],
        }
    }
}

/// The types that a block's object may be of, with where in the block it would
/// begin: after no header, the GC's, or the GC's and that of a managed dict.
pub fn heads(block: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    [0, 16, 32].into_iter().filter_map(|before| Some((before, type_in(block.get(before..)?)?)))
}

/// The word where an object's type would be, behind a number of references.
fn type_in(head: &[u8]) -> Option<u64> {
    let references = head.get(..16).map_or(0, |head| u64_at(head, 0) & !FLAGS);
    (references > 0 && references < MOST_REFERENCES).then(|| u64_at(head, 8))
}

impl TypeTable {
    pub fn get(&self, row: u32) -> Option<&TypeInfo> {
        self.types.get(row as usize)
    }

    /// In the order in which they were met: a row is an index into this.
    pub fn all(&self) -> &[TypeInfo] {
        &self.types
    }

    /// The type of the object in a block, and where in it the object begins.
    pub fn object<M: Memory>(
        &mut self,
        objects: &Objects<'_, M>,
        block: &[u8],
    ) -> Option<(u32, usize)> {
        for (before, typ) in heads(block) {
            if let Some(row) = self.of(objects, typ)
                && self.get(row).map(|t| t.before(objects.layout)) == Some(before)
            {
                return Some((row, before));
            }
        }
        None
    }

    /// The type of an object that begins with `head`: references and type.
    pub fn head<M: Memory>(&mut self, objects: &Objects<'_, M>, head: &[u8]) -> Option<u32> {
        self.of(objects, type_in(head)?)
    }

    /// The row of the type at `address`, if there is one.
    pub fn of<M: Memory>(&mut self, objects: &Objects<'_, M>, address: u64) -> Option<u32> {
        if address < 0x1_0000 || !address.is_multiple_of(8) {
            return None;
        }
        let slot = (address >> 4) as usize % CACHE;
        if let Some((at, row)) = self.cache.get(slot)
            && *at == address
        {
            return *row;
        }
        let row = match self.known.get(&address) {
            Some(row) => *row,
            None => self.learn(objects, address)?,
        };
        if let Some(c) = self.cache.get_mut(slot) {
            *c = (address, row);
        }
        row
    }

    /// `None`: too many were looked at; nothing is known of this one.
    fn learn<M: Memory>(&mut self, objects: &Objects<'_, M>, address: u64) -> Option<Option<u32>> {
        if self.wrong >= MOST_WRONG || self.types.len() >= MOST_TYPES {
            return None;
        }
        let row = objects.type_at(address).map(|t| {
            let row = self.types.len() as u32;
            self.types.push(t);
            row
        });
        self.wrong += usize::from(row.is_none());
        self.known.insert(address, row);
        Some(row)
    }
}
