//! Single objects, read one by one: types and their names, strings, the items
//! of a dict. All of it may be wild: every length is bounded, every step
//! checked.

use super::{
    binary::Types,
    layout::{self, Layout, flags},
};
use crate::target::memory::Memory;

/// Longest name or string that is read, bytes.
const MAX_TEXT: usize = 512;
/// Most entries of a dict that are looked at.
const MAX_ENTRIES: u64 = 1 << 16;
/// Most items of a tuple that are looked at.
const MAX_TUPLE: u64 = 1 << 12;
/// Metatypes above a type: nobody has more.
const MAX_METATYPES: usize = 4;

type TypeHead = [u8; layout::TP_DICTOFFSET as usize + 8];

/// Reads objects of one process.
#[derive(Debug)]
pub struct Objects<'a, M> {
    pub memory: &'a M,
    pub layout: &'a Layout,
    pub types: Types,
}

/// What a type's objects look like in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeInfo {
    pub address: u64,
    pub name: String,
    pub flags: u64,
    /// Bytes of an object, and of each item of one with a variable size.
    pub basic_size: u64,
    pub item_size: u64,
    /// Where in an object the pointer to its dict is; 0 when nowhere.
    pub dict_offset: u64,
    /// Of its `PyMemberDef`s; 0 when it has none.
    pub members: u64,
    /// The type that it derives from; 0 for `object`.
    pub base: u64,
}

/// Entries of a dict's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Address of the first.
    pub entries: u64,
    pub count: u64,
    /// Bytes of one; its key and value are the last two words.
    pub step: usize,
    /// Of the values, for a dict that shares its keys with others.
    pub values: Option<u64>,
}

impl TypeInfo {
    /// Bytes before the object within its block.
    pub fn before(&self, layout: &Layout) -> usize {
        let gc = self.flags & flags::HAVE_GC != 0;
        let pre = self.flags & layout.pre_header != 0;
        usize::from(gc) * 16 + usize::from(pre) * 16
    }
}

// A derive would ask the same of the memory.
impl<M> Clone for Objects<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Objects<'_, M> {}

impl<M: Memory> Objects<'_, M> {
    fn u64_at(&self, address: u64) -> Option<u64> {
        self.memory.u64_at(address).ok()
    }

    /// The type at `address`, if there is one.
    pub fn type_at(&self, address: u64) -> Option<TypeInfo> {
        let head = self.type_head(address, MAX_METATYPES)?;
        let word = |at: u64| super::pool::u64_at(&head, at as usize);
        let flags = word(layout::TP_FLAGS);
        let name = self.type_name(address, flags)?;
        Some(TypeInfo {
            address,
            name,
            flags,
            basic_size: word(layout::TP_BASICSIZE),
            item_size: word(layout::TP_ITEMSIZE),
            dict_offset: Some(word(layout::TP_DICTOFFSET)).filter(|o| *o < 1 << 16).unwrap_or(0),
            members: word(layout::TP_MEMBERS),
            base: word(layout::TP_BASE),
        })
    }

    /// The first fields of a type; `None` when it is none: what its `ob_type`
    /// points to has to be a type whose instances are types.
    fn type_head(&self, address: u64, depth: usize) -> Option<TypeHead> {
        if address < 0x1_0000 || !address.is_multiple_of(8) {
            return None;
        }
        let mut head = [0u8; size_of::<TypeHead>()];
        self.memory.read(address, &mut head).ok()?;
        let word = |at: u64| super::pool::u64_at(&head, at as usize);
        let (meta, flags) = (word(layout::OB_TYPE), word(layout::TP_FLAGS));
        if flags & flags::READY == 0 || word(layout::TP_NAME) == 0 {
            return None;
        }
        let meta_is_type = meta == self.types.type_ || {
            let head = self.type_head(meta, depth.checked_sub(1)?)?;
            super::pool::u64_at(&head, layout::TP_FLAGS as usize) & flags::TYPE_SUBCLASS != 0
        };
        meta_is_type.then_some(head)
    }

    /// `module.Outer.Inner`; the builtins without their module.
    fn type_name(&self, address: u64, flags: u64) -> Option<String> {
        let plain = self.c_string(self.u64_at(address + layout::TP_NAME)?)?;
        if flags & flags::HEAPTYPE == 0 {
            return Some(plain);
        }
        let qualified = self.string(self.u64_at(address + self.layout.ht_qualname)?);
        // A type made by C code has its module in `tp_name` already.
        if plain.contains('.') {
            return Some(plain);
        }
        let name = qualified.unwrap_or(plain);
        let module = self.u64_at(address + layout::TP_DICT).and_then(|dict| {
            let value = self.find_item(dict, "__module__")?;
            self.string(value)
        });
        Some(match module.as_deref() {
            None | Some("builtins") => name,
            Some(module) => format!("{module}.{name}"),
        })
    }

    pub(super) fn c_string(&self, address: u64) -> Option<String> {
        let mut text = Vec::new();
        // In pieces that stay within a page: the next one may not be there.
        while text.len() < MAX_TEXT {
            let at = address.checked_add(text.len() as u64)?;
            let piece = (64 - at % 64) as usize;
            let mut buf = [0u8; 64];
            let buf = buf.get_mut(..piece)?;
            self.memory.read(at, buf).ok()?;
            let end = buf.iter().position(|b| *b == 0);
            text.extend_from_slice(buf.get(..end.unwrap_or(piece))?);
            if end.is_some() {
                return String::from_utf8(text).ok().filter(|t| !t.is_empty());
            }
        }
        None
    }

    /// A `str` object's text; `None` when it is long or no compact string.
    pub fn string(&self, address: u64) -> Option<String> {
        let mut head = [0u8; 40];
        self.memory.read(address, &mut head).ok()?;
        let word = |at: u64| super::pool::u64_at(&head, at as usize);
        let length = usize::try_from(word(layout::STR_LENGTH)).ok()?;
        // interned: 2, kind: 3, compact: 1, ascii: 1
        let state = word(layout::STR_STATE);
        let (kind, compact, ascii) = (state >> 2 & 7, state >> 5 & 1 == 1, state >> 6 & 1 == 1);
        if !compact || length == 0 || length > MAX_TEXT || !matches!(kind, 1 | 2 | 4) {
            return None;
        }
        let width = kind as usize;
        let start = if ascii { self.layout.ascii_size } else { self.layout.compact_size };
        let mut bytes = vec![0u8; length * width];
        self.memory.read(address.checked_add(start)?, &mut bytes).ok()?;
        bytes
            .chunks_exact(width)
            .map(|c| char::from_u32(c.iter().rev().fold(0, |v, b| v << 8 | u32::from(*b))))
            .collect()
    }

    /// Where a dict's entries are.
    pub fn table(&self, dict: u64) -> Option<Table> {
        let keys = self.u64_at(dict.checked_add(layout::MA_KEYS)?)?;
        let values = self.u64_at(dict + layout::MA_VALUES)?;
        self.keys_table(keys, (values != 0).then_some(values))
    }

    /// The entries of the `PyDictKeysObject` at `keys`.
    pub fn keys_table(&self, keys: u64, values: Option<u64>) -> Option<Table> {
        let mut head = [0u8; 40];
        self.memory.read(keys, &mut head).ok()?;
        let word = |at: usize| super::pool::u64_at(&head, at);
        let (entries, count, unicode) = if self.layout.log2_keys {
            let (log2_bytes, kind) = (u32::from(head[9]), head[10]);
            let indices = 1u64.checked_shl(log2_bytes).filter(|b| *b <= 1 << 40)?;
            (32 + indices, word(24), kind != 0)
        } else {
            let size = word(8);
            let width = match size {
                0..=0xff => 1,
                0x100..=0xffff => 2,
                _ => 4,
            };
            (40 + size.checked_mul(width)?, word(32), false)
        };
        let step = if unicode { 16 } else { 24 };
        Some(Table { entries: keys.checked_add(entries)?, count, step, values })
    }

    /// `(key, value)` of a dict's entries, deleted ones left out. Empty for a
    /// dict that shares its keys with others.
    pub fn items(&self, dict: u64) -> Option<Vec<(u64, u64)>> {
        self.items_of(dict, MAX_ENTRIES)
    }

    /// The same of a dict of at most `most` entries.
    pub fn items_of(&self, dict: u64, most: u64) -> Option<Vec<(u64, u64)>> {
        let table = self.table(dict)?;
        if table.values.is_some() {
            return Some(Vec::new());
        }
        self.entries(&table, most)
    }

    /// `(key, value)` of a table of no more than `most`.
    fn entries(&self, table: &Table, most: u64) -> Option<Vec<(u64, u64)>> {
        if table.count > most {
            return None;
        }
        let mut bytes = vec![0u8; table.count as usize * table.step];
        self.memory.read(table.entries, &mut bytes).ok()?;
        let live = |(key, value): &(u64, u64)| *key != 0 && *value != 0;
        Some(bytes.chunks_exact(table.step).map(entry).filter(live).collect())
    }

    /// The keys of a table that several dicts share.
    pub fn shared_keys(&self, table: &Table) -> Option<Vec<u64>> {
        if table.count > MAX_ENTRIES {
            return None;
        }
        let mut bytes = vec![0u8; table.count as usize * table.step];
        self.memory.read(table.entries, &mut bytes).ok()?;
        Some(bytes.chunks_exact(table.step).map(|e| entry(e).0).collect())
    }

    /// The items of a short tuple.
    pub fn tuple(&self, tuple: u64) -> Option<Vec<u64>> {
        let count = self.u64_at(tuple.checked_add(layout::OB_SIZE)?)?;
        if count > MAX_TUPLE {
            return None;
        }
        let mut bytes = vec![0u8; count as usize * 8];
        self.memory.read(tuple.checked_add(self.layout.tuple_items)?, &mut bytes).ok()?;
        Some(bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w)).collect())
    }

    /// The value under the string key `name`.
    pub fn find_item(&self, dict: u64, name: &str) -> Option<u64> {
        let items = self.items(dict)?;
        items.into_iter().find(|(k, _)| self.string(*k).as_deref() == Some(name)).map(|(_, v)| v)
    }
}

/// Key and value of one entry.
pub fn entry(bytes: &[u8]) -> (u64, u64) {
    let at = bytes.len().saturating_sub(16);
    (super::pool::u64_at(bytes, at), super::pool::u64_at(bytes, at + 8))
}

/// Whether a type is the service's own or a library's, and not one of the
/// interpreter's own.
pub fn is_own(name: &str) -> bool {
    let internal = name.starts_with('_') && !name.starts_with("__main__.");
    name.contains('.') && !internal && !name.starts_with("collections.")
}
