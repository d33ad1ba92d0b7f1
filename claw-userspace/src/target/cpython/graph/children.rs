//! What one object holds. Lists, dicts, sets and the like are read by their
//! layout; of the rest every word that points to an object counts, within the
//! object's own size.

use claw_common::python::STACKREF_TAG;

use super::kind::Kind;
use crate::target::{
    cpython::{
        layout::{self, flags},
        object::{Objects, Table, TypeInfo, entry},
        pool::u64_at,
        threads::local_names,
    },
    memory::Memory,
};

/// How an object is held by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// By the word at this offset.
    Slot(u64),
    /// As one of many: an item of a list, a member of a set, a key.
    Element,
    /// Under the key at this address.
    Value(u64),
    /// As the dict of its attributes.
    Namespace,
    /// As the attribute of this number among its type's shared keys.
    Attribute(u64),
}

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Words of one object of a type without a layout of its own.
const MOST_WORDS: u64 = 1 << 24;
/// Blocks of a deque.
const MOST_BLOCKS: u64 = 1 << 26;

/// `PyCodeObject` up to `co_lnotab` or `co_linetable`: no later than here in
/// any version, and before `co_zombieframe` and the caches.
const CODE_FIELDS: u64 = 128;

/// `_PyInterpreterFrame` from 3.11 on: bytes before its variables, and
/// `stacktop` (`Include/internal/pycore_frame.h`).
const MODERN_FRAME: u64 = 72;
const STACKTOP: u64 = 64;
/// From 3.14 on: in place of `stacktop` an address, null while it runs
/// (`pycore_interpframe_structs.h`).
const TAGGED_FRAME: u64 = 80;
const STACKPOINTER: u64 = 64;

/// An object to be read.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub address: u64,
    pub type_info: &'a TypeInfo,
    pub kind: Kind,
}

pub struct Children<'a, M> {
    pub objects: Objects<'a, M>,
    /// Words that may still be read, for all objects together: made-up
    /// containers could lead over the same memory again and again.
    pub budget: u64,
}

impl<M: Memory> Children<'_, M> {
    /// Give each pointer that `of` holds to `f`; some lead nowhere.
    pub fn of(&mut self, of: Subject<'_>, f: &mut impl FnMut(Edge, u64)) {
        let (at, t) = (of.address, of.type_info);
        match of.kind {
            Kind::Leaf => return,
            Kind::List => {
                let (items, count) = (self.word(at, layout::LIST_ITEMS), self.word(at, 16));
                if let (Some(items), Some(count)) = (items, count) {
                    self.words(items, count, |_, w| f(Edge::Element, w));
                }
            }
            Kind::Dict => self.dict(at, f),
            Kind::Set => {
                let (table, mask) =
                    (self.word(at, layout::SET_TABLE), self.word(at, layout::SET_MASK));
                if let (Some(table), Some(mask)) = (table, mask) {
                    let words = mask.saturating_add(1).saturating_mul(2);
                    self.words(table, words, |i, w| {
                        if i % 2 == 0 {
                            f(Edge::Element, w);
                        }
                    });
                }
            }
            Kind::Deque => self.deque(at, f),
            Kind::Weak => {
                if let Some(callback) = self.word(at, layout::WEAK_CALLBACK) {
                    f(Edge::Slot(layout::WEAK_CALLBACK), callback);
                }
                return;
            }
            Kind::Class => {
                if let Some(dict) = self.word(at, layout::TP_DICT) {
                    f(Edge::Namespace, dict);
                }
                if let Some(base) = self.word(at, layout::TP_BASE) {
                    f(Edge::Slot(layout::TP_BASE), base);
                }
                return;
            }
            Kind::Module => {
                if let Some(dict) = self.word(at, layout::MD_DICT) {
                    f(Edge::Namespace, dict);
                }
            }
            Kind::Closure | Kind::Frame | Kind::Lru | Kind::Code | Kind::Plain => {}
        }
        self.managed(of, f);
        // Of those with a layout of their own only what a subclass adds.
        let own = match of.kind {
            Kind::List => 40,
            Kind::Dict => 48,
            Kind::Set => 200,
            Kind::Deque => 80,
            _ => 16,
        };
        let items = match of.kind {
            Kind::Frame if self.objects.layout.minor >= 11 => self.locals(at, t.basic_size),
            _ if t.item_size == 8 => self.word(at, layout::OB_SIZE).unwrap_or(0),
            _ => 0,
        };
        let mut size = t.basic_size.saturating_add(items.min(MOST_WORDS).saturating_mul(8));
        if of.kind == Kind::Code {
            // Its constants, names and files come first, then the caches.
            size = size.min(CODE_FIELDS);
        }
        let words = size.saturating_sub(own) / 8;
        let dict = t.dict_offset;
        // Of references in frames.
        let tag = if self.objects.layout.minor >= 14 { STACKREF_TAG } else { 0 };
        self.words(at.saturating_add(own), words.min(MOST_WORDS), |i, w| {
            let offset = own + i * 8;
            let w = w & !tag;
            f(if dict != 0 && offset == dict { Edge::Namespace } else { Edge::Slot(offset) }, w);
        });
    }

    fn word(&self, base: u64, offset: u64) -> Option<u64> {
        self.objects.memory.u64_at(base.checked_add(offset)?).ok().filter(|w| *w != 0)
    }

    /// Words in use behind the fixed part of a frame or generator object of
    /// 3.11 and later, which has no `ob_size`: those of its
    /// `_PyInterpreterFrame.stacktop`, or its variables while it runs.
    fn locals(&self, at: u64, basic_size: u64) -> u64 {
        const MOST: u64 = 1 << 12;
        let locals = at.saturating_add(basic_size);
        let tagged = self.objects.layout.minor >= 14;
        let frame = locals.saturating_sub(if tagged { TAGGED_FRAME } else { MODERN_FRAME });
        let top = if tagged {
            let top = self.word(frame, STACKPOINTER);
            top.and_then(|p| Some(p.checked_sub(locals)? / 8)).unwrap_or(u64::MAX)
        } else {
            self.word(frame, STACKTOP).map_or(u64::MAX, |w| w & 0xffff_ffff)
        };
        if top <= MOST {
            return top;
        }
        let code = if self.objects.layout.minor == 11 { 32 } else { 0 };
        let code = self.word(frame, code).map(|code| code & !STACKREF_TAG);
        code.map_or(0, |code| local_names(&self.objects, code).len() as u64)
    }

    /// The attributes of an instance whose dict is managed by its type
    /// (`Include/internal/pycore_dict.h`, `pycore_object.h`).
    fn managed(&mut self, of: Subject<'_>, f: &mut impl FnMut(Edge, u64)) {
        let (at, t, minor) = (of.address, of.type_info, self.objects.layout.minor);
        if t.flags & self.objects.layout.pre_header & flags::MANAGED_DICT == 0 {
            return;
        }
        let dict = at.checked_sub(24).and_then(|p| self.word(p, 0));
        let mut values = None;
        match minor {
            11 => {
                values = at.checked_sub(32).and_then(|p| self.word(p, 0));
                if let Some(dict) = dict {
                    f(Edge::Namespace, dict);
                }
            }
            12 => match dict {
                // `PyDictOrValues`: a set low bit tells the values.
                Some(tagged) if tagged & 1 == 1 => values = tagged.checked_add(1),
                Some(dict) => f(Edge::Namespace, dict),
                None => {}
            },
            _ => {
                if let Some(dict) = dict {
                    f(Edge::Namespace, dict);
                }
                if t.flags & flags::INLINE_VALUES != 0
                    && let Some(head) = self.word(at, t.basic_size)
                {
                    // `PyDictValues`: capacity, size, embedded, valid.
                    let (capacity, valid) = (head & 0xff, head >> 24 & 0xff != 0);
                    if valid {
                        let values = at.saturating_add(t.basic_size + 8);
                        self.words(values, capacity, |i, w| f(Edge::Attribute(i), w));
                    }
                }
            }
        }
        if let Some(values) = values
            && let Some(table) = self.shared_keys(t)
        {
            self.words(values, table.count.min(256), |i, w| f(Edge::Attribute(i), w));
        }
    }

    /// The names that instances of a type share.
    pub fn shared_keys(&self, t: &TypeInfo) -> Option<Table> {
        let keys = self.word(t.address, self.objects.layout.ht_cached_keys)?;
        self.objects.keys_table(keys, None)
    }

    fn dict(&mut self, dict: u64, f: &mut impl FnMut(Edge, u64)) {
        let Some(table) = self.objects.table(dict) else { return };
        // In 3.13 the values of a dict that shares its keys have a head.
        let head = if self.objects.layout.minor >= 13 { 8 } else { 0 };
        if let Some(values) = table.values {
            let keys = self.objects.shared_keys(&table).unwrap_or_default();
            self.words(values.saturating_add(head), table.count.min(256), |i, w| {
                let key = keys.get(i as usize).copied().unwrap_or(0);
                f(Edge::Value(key), w);
            });
            return;
        }
        let step = table.step;
        let per_chunk = (CHUNK / step) as u64;
        let mut bytes = vec![0u8; CHUNK / step * step];
        let (mut at, mut left) = (table.entries, table.count);
        while left > 0 && self.spend(left.min(per_chunk) * step as u64 / 8) {
            let now = left.min(per_chunk);
            let Some(part) = bytes.get_mut(..now as usize * step) else { return };
            if self.objects.memory.read(at, part).is_err() {
                return;
            }
            for (key, value) in part.chunks_exact(step).map(entry) {
                if value != 0 {
                    f(Edge::Value(key), value);
                    f(Edge::Element, key);
                }
            }
            left -= now;
            at = at.saturating_add(now * step as u64);
        }
    }

    fn deque(&mut self, deque: u64, f: &mut impl FnMut(Edge, u64)) {
        let (Some(mut block), Some(mut left)) =
            (self.word(deque, layout::DEQUE_BLOCK), self.word(deque, layout::OB_SIZE))
        else {
            return;
        };
        let items = layout::DEQUE_BLOCK_ITEMS;
        let mut first = self.word(deque, layout::DEQUE_INDEX).unwrap_or(0).min(items);
        for _ in 0..MOST_BLOCKS {
            let count = left.min(items - first);
            if !self.words(block.saturating_add(8 + first * 8), count, |_, w| f(Edge::Element, w)) {
                return;
            }
            (left, first) = (left - count, 0);
            match self.word(block, 8 + items * 8) {
                Some(next) if left > 0 => block = next,
                _ => return,
            }
        }
    }

    /// `count` words from `at` on, as far as they can be read; false when they
    /// could not.
    fn words(&mut self, mut at: u64, mut count: u64, mut f: impl FnMut(u64, u64)) -> bool {
        let mut small = [0u8; 512];
        let mut large = Vec::new();
        let bytes: &mut [u8] = if count <= 64 {
            &mut small
        } else {
            large.resize(CHUNK.min(count as usize * 8), 0);
            &mut large
        };
        let mut i = 0;
        while count > 0 {
            let now = count.min((bytes.len() / 8) as u64);
            let Some(part) = bytes.get_mut(..now as usize * 8) else { return false };
            if !self.spend(now) || self.objects.memory.read(at, part).is_err() {
                return false;
            }
            for word in part.as_chunks::<8>().0 {
                let word = u64::from_le_bytes(*word);
                if word != 0 {
                    f(i, word);
                }
                i += 1;
            }
            count -= now;
            at = at.saturating_add(now * 8);
        }
        true
    }

    /// All words of a block that is no object.
    pub fn block(&mut self, address: u64, bytes: u64, f: &mut impl FnMut(Edge, u64)) {
        self.words(address, bytes / 8, |i, w| f(Edge::Slot(i * 8), w));
    }

    fn spend(&mut self, words: u64) -> bool {
        let left = self.budget.checked_sub(words + 1);
        self.budget = left.unwrap_or(0);
        left.is_some()
    }

    /// The names of a type's slots: `__slots__`, or the members of a type made
    /// in C (`PyMemberDef`: name, kind, offset, flags, doc).
    pub fn member(&self, t: &TypeInfo, offset: u64) -> Option<String> {
        const MOST_MEMBERS: u64 = 256;
        (0..MOST_MEMBERS)
            .try_fold((), |(), i| {
                let mut def = [0u8; 24];
                let at = t.members.checked_add(i * 40).filter(|_| t.members != 0);
                let read = at.and_then(|at| self.objects.memory.read(at, &mut def).ok());
                let name = u64_at(&def, 0);
                if read.is_none() || name == 0 {
                    return Err(None);
                }
                if u64_at(&def, 16) == offset { Err(self.objects.c_string(name)) } else { Ok(()) }
            })
            .err()
            .flatten()
    }
}
