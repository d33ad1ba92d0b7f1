//! What some containers own, in a process that runs on: their elements, and
//! what those alone hold, a few steps deep.
//!
//! A list of bound methods owns the objects that they are bound to, a cache of
//! tuples what is in them. What many refer to is shared and owned by nobody:
//! without that rule every object would own the service.

use std::collections::hash_map::Entry;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    children::{Children, Subject},
    kind::Kind,
};
use crate::target::{
    cpython::{object::Objects, types::TypeTable},
    memory::Memory,
};

/// Steps from a container: list → method → instance → its dict → value.
const DEPTH: u32 = 4;
/// References from which on an object is shared.
const SHARED: u64 = 8;
/// Elements of one container that are followed, the last of them: lists and
/// dicts keep the order in which things came. Of sets, which do not, those that
/// are known to have come.
const MOST_ELEMENTS: usize = 1 << 16;
/// Objects that are looked at, and words that are read, in all.
const MOST_OBJECTS: usize = 1 << 18;
const MOST_WORDS: u64 = 1 << 24;

/// Addresses of the objects that `containers` own, each with the element of a
/// container that it is, or that leads to it. `came`: elements of sets that were
/// seen to come.
pub fn owned<M: Memory>(
    objects: &Objects<'_, M>,
    containers: &[u64],
    came: &FxHashSet<u64>,
) -> FxHashMap<u64, u64> {
    let mut walk = Walk {
        objects,
        came,
        children: Children { objects: *objects, budget: MOST_WORDS },
        types: TypeTable::default(),
    };
    let mut found = FxHashMap::default();
    let mut level: Vec<(u64, Option<u64>)> = containers.iter().map(|at| (*at, None)).collect();
    for _ in 0..=DEPTH {
        let mut next = Vec::new();
        for (at, element) in level {
            for child in walk.children(at, element.is_none()) {
                if found.len() >= MOST_OBJECTS {
                    continue;
                }
                if let Entry::Vacant(e) = found.entry(child) {
                    let element = *e.insert(element.unwrap_or(child));
                    next.push((child, Some(element)));
                }
            }
        }
        level = next;
    }
    found
}

struct Walk<'a, M> {
    objects: &'a Objects<'a, M>,
    came: &'a FxHashSet<u64>,
    children: Children<'a, M>,
    types: TypeTable,
}

impl<M: Memory> Walk<'_, M> {
    /// What the object at an address refers to; nothing when it is shared, or
    /// of a kind that refers to the program.
    fn children(&mut self, at: u64, is_root: bool) -> Vec<u64> {
        let mut head = [0; 16];
        if at & 7 != 0 || self.objects.memory.read(at, &mut head).is_err() {
            return Vec::new();
        }
        let references = u64::from_le_bytes(*head.first_chunk().unwrap_or(&[0; 8]));
        if !is_root && references > SHARED {
            return Vec::new();
        }
        let row = self.types.head(self.objects, &head);
        let Some(t) = row.and_then(|row| self.types.get(row)).cloned() else { return Vec::new() };
        let modern = self.objects.layout.minor >= 11;
        let kind = Kind::of(self.objects, &mut self.types, &t, modern);
        let program = matches!(
            kind,
            Kind::Leaf | Kind::Class | Kind::Module | Kind::Closure | Kind::Frame | Kind::Code
        );
        if program {
            return Vec::new();
        }
        let mut found = Vec::new();
        self.children.of(Subject { address: at, type_info: &t, kind }, &mut |_, child| {
            found.push(child);
        });
        if kind == Kind::Set && found.len() > MOST_ELEMENTS {
            found.sort_by_key(|element| self.came.contains(element));
        }
        let early = found.len().saturating_sub(MOST_ELEMENTS);
        found.split_off(early)
    }
}
