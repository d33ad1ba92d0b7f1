//! Context variables of a thread or task: the immutable mapping that a context
//! is (`pycore_context.h`, `pycore_hamt.h`, `Python/hamt.c`).

use super::Reader;
use crate::target::{
    cpython::{
        layout::{CV_NAME, OB_SIZE, OB_TYPE},
        object::Objects,
    },
    memory::Memory,
};

/// `PyContext.ctx_vars`, `PyHamtObject.h_root`.
const CTX_VARS: u64 = 24;
const HAMT_ROOT: u64 = 16;
/// `PyHamtNode_Bitmap.b_array` of `ob_size` words, pairs of key and value; a
/// key of 0 says that the value is a node.
const BITMAP_ARRAY: u64 = 32;
/// `PyHamtNode_Array.a_array`, 32 nodes.
const ARRAY: u64 = 16;
const ARRAY_WORDS: u64 = 32;
/// `PyHamtNode_Collision.c_array`, pairs as well.
const COLLISION_ARRAY: u64 = 32;
/// Nodes and variables of one context that are looked at.
const MOST_NODES: usize = 256;
const MOST_VARIABLES: usize = 256;
/// Words of one node.
const MOST_WORDS: u64 = 64;
/// Of an `int`: tag or size, digits of 30 bits.
const INT_HEAD: u64 = 16;
const DIGITS: u64 = 24;

impl<M: Memory> Reader<'_, M> {
    /// Name and value of the variables that hold a string or number.
    pub(super) fn variables(&mut self, context: u64) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let root = || self.word(self.word(context, CTX_VARS)?, HAMT_ROOT);
        let mut nodes: Vec<u64> = root().into_iter().collect();
        let mut looked = 0;
        while let Some(node) = nodes.pop().filter(|_| looked < MOST_NODES) {
            looked += 1;
            let count = self.word(node, OB_SIZE).unwrap_or(0).min(MOST_WORDS);
            let (at, words, pairs) = match self.type_name(node) {
                Some("hamt_array_node") => (ARRAY, ARRAY_WORDS, false),
                Some("hamt_bitmap_node") => (BITMAP_ARRAY, count, true),
                Some("hamt_collision_node") => (COLLISION_ARRAY, count, true),
                _ => continue,
            };
            let word = |i: u64| self.word(node, at + i * 8).unwrap_or(0);
            if !pairs {
                nodes.extend((0..words).map(word).filter(|n| *n != 0));
                continue;
            }
            for (key, value) in (0..words / 2).map(|i| (word(i * 2), word(i * 2 + 1))) {
                if key == 0 {
                    nodes.push(value);
                    continue;
                }
                let name = self.word(key, CV_NAME).and_then(|n| self.objects.string(n));
                if let (Some(name), Some(value)) = (name, text(&self.objects, value))
                    && found.len() < MOST_VARIABLES
                {
                    found.push((name, value));
                }
            }
        }
        found
    }
}

/// A `str`, or an `int` of up to two digits that is not negative.
pub(super) fn text<M: Memory>(objects: &Objects<'_, M>, at: u64) -> Option<String> {
    let word = |offset: u64| objects.memory.u64_at(at.checked_add(offset)?).ok();
    let typ = word(OB_TYPE)?;
    if typ == objects.types.str_ {
        return objects.string(at);
    }
    if typ != objects.types.int || typ == 0 {
        return None;
    }
    let (head, digits) = (word(INT_HEAD)?, word(DIGITS)?);
    let count = match objects.layout.minor {
        // `_PyLong_SIGN_MASK` (`pycore_long.h`): 2 is negative.
        12.. if head & 3 == 2 => return None,
        12.. => head >> 3,
        _ => head,
    };
    let (low, high) = (digits & 0xffff_ffff, digits >> 32);
    match count {
        0 => Some("0".into()),
        1 => Some(low.to_string()),
        2 => Some((high << 30 | low).to_string()),
        _ => None,
    }
}
