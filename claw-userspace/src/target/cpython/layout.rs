//! Where the fields of CPython's objects are, per minor version (64-bit
//! builds). Sources: `Include/cpython/object.h`, `unicodeobject.h`,
//! `dictobject.h`, `Objects/dict-common.h` (3.8–3.10),
//! `Include/internal/pycore_dict.h` (3.11+), `Objects/obmalloc.c` (3.8–3.11),
//! `Include/internal/pycore_obmalloc.h` (3.12+). Checked against the headers
//! of installed Pythons by `tests/cpython`.

/// Fields that have not moved from 3.8 to 3.15.
pub const OB_TYPE: u64 = 8;
pub const OB_SIZE: u64 = 16;
/// `PyListObject.ob_item`.
pub const OB_ITEM: u64 = 24;
pub const TP_NAME: u64 = 24;
pub const TP_BASICSIZE: u64 = 32;
pub const TP_ITEMSIZE: u64 = 40;
pub const TP_DEALLOC: u64 = 48;
pub const TP_FLAGS: u64 = 168;
pub const TP_MEMBERS: u64 = 240;
pub const TP_BASE: u64 = 256;
pub const TP_DICT: u64 = 264;
pub const TP_DICTOFFSET: u64 = 288;
pub const MA_USED: u64 = 16;
pub const MA_KEYS: u64 = 32;
pub const MA_VALUES: u64 = 40;
/// `PySetObject.used` (`Include/setobject.h`, `Include/cpython/setobject.h`).
pub const SET_USED: u64 = 24;
/// `PySetObject.mask` and `.table`, whose entries are two words: key and hash,
/// and the hash of an entry whose element was taken out.
pub const SET_MASK: u64 = 32;
pub const SET_TABLE: u64 = 40;
pub const SET_ENTRY: u64 = 16;
pub const SET_DUMMY: u64 = u64::MAX;
/// `PyListObject.ob_item`.
pub const LIST_ITEMS: u64 = 24;
/// `dequeobject` (`Modules/_collectionsmodule.c`): `leftblock`, `leftindex`,
/// `maxlen`; a block is a link to the left, 64 items, a link to the right.
pub const DEQUE_BLOCK: u64 = 24;
pub const DEQUE_INDEX: u64 = 40;
pub const DEQUE_MAXLEN: u64 = 64;
pub const DEQUE_BLOCK_ITEMS: u64 = 64;
/// `PyWeakReference.wr_callback`: the one strong reference that it holds.
pub const WEAK_CALLBACK: u64 = 24;
/// `lru_cache_object` (`Modules/_functoolsmodule.c`): `cache`, `func`,
/// `maxsize` (negative: no bound).
pub const LRU_CACHE: u64 = 72;
pub const LRU_FUNC: u64 = 88;
pub const LRU_MAXSIZE: u64 = 96;
/// `PyModuleObject.md_dict` (`Objects/moduleobject.c`,
/// `Include/internal/pycore_moduleobject.h`).
pub const MD_DICT: u64 = 16;
/// `PyContextVar.var_name`, `.var_hash` (`pycore_context.h`).
pub const CV_NAME: u64 = 16;
pub const CV_HASH: u64 = 56;
/// `PyASCIIObject.length` and `.state`.
pub const STR_LENGTH: u64 = 16;
pub const STR_STATE: u64 = 32;

/// `Py_TPFLAGS_*` (`Include/object.h`).
pub mod flags {
    pub const INLINE_VALUES: u64 = 1 << 2;
    pub const MANAGED_WEAKREF: u64 = 1 << 3;
    pub const MANAGED_DICT: u64 = 1 << 4;
    pub const HEAPTYPE: u64 = 1 << 9;
    pub const READY: u64 = 1 << 12;
    pub const HAVE_GC: u64 = 1 << 14;
    pub const LONG_SUBCLASS: u64 = 1 << 24;
    pub const LIST_SUBCLASS: u64 = 1 << 25;
    pub const TUPLE_SUBCLASS: u64 = 1 << 26;
    pub const BYTES_SUBCLASS: u64 = 1 << 27;
    pub const UNICODE_SUBCLASS: u64 = 1 << 28;
    pub const DICT_SUBCLASS: u64 = 1 << 29;
    pub const TYPE_SUBCLASS: u64 = 1 << 31;
}

/// What differs between minor versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub minor: u8,
    /// Bytes of a pymalloc pool, and its alignment.
    pub pool_size: usize,
    /// `PyHeapTypeObject.ht_qualname`.
    pub ht_qualname: u64,
    /// `PyHeapTypeObject.ht_cached_keys`.
    pub ht_cached_keys: u64,
    /// `PyFunctionObject.func_code` and `.func_closure`.
    pub func_code: u64,
    pub func_closure: u64,
    /// `sizeof(PyASCIIObject)`, `sizeof(PyCompactUnicodeObject)`: where the
    /// characters begin.
    pub ascii_size: u64,
    pub compact_size: u64,
    /// `PyTupleObject.ob_item`, behind `ob_hash` from 3.14 on.
    pub tuple_items: u64,
    /// `PyDictKeysObject` begins with `dk_log2_size` (3.11+) instead of
    /// `dk_size`.
    pub log2_keys: bool,
    /// Flags of types whose objects have two words before their GC header
    /// (`_PyType_PreHeaderSize`).
    pub pre_header: u64,
}

const fn layout(minor: u8, ht_qualname: u64) -> Layout {
    Layout {
        minor,
        pool_size: if minor >= 10 { 16 << 10 } else { 4 << 10 },
        ht_qualname,
        ht_cached_keys: ht_qualname + 8,
        func_code: if minor >= 10 { 48 } else { 16 },
        func_closure: if minor >= 10 { 72 } else { 48 },
        ascii_size: if minor >= 12 { 40 } else { 48 },
        compact_size: if minor >= 12 { 56 } else { 72 },
        tuple_items: if minor >= 14 { 32 } else { 24 },
        log2_keys: minor >= 11,
        pre_header: match minor {
            0..=10 => 0,
            11 => flags::MANAGED_DICT,
            _ => flags::MANAGED_DICT | flags::MANAGED_WEAKREF,
        },
    }
}

static LAYOUTS: [Layout; 8] = [
    layout(8, 864),
    layout(9, 856),
    layout(10, 864),
    layout(11, 864),
    layout(12, 872),
    layout(13, 872),
    layout(14, 872),
    layout(15, 880),
];

impl Layout {
    pub fn of(minor: u8) -> Option<&'static Self> {
        LAYOUTS.iter().find(|l| l.minor == minor)
    }
}
