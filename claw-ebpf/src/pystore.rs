//! Who puts something into a container that grows.
//!
//! A hardware watchpoint on the container's count of elements: it needs no
//! symbol and no allocator, and so sees what comes from free lists, and what an
//! interpreter without symbols does. The writing thread holds the GIL.
//! (Of sets see `pyset`.)

use aya_ebpf::{
    macros::{map, perf_event},
    maps::HashMap,
    programs::PerfEventContext,
};
use claw_common::{PyKey, PyStat, PyStore, PyTarget, python::MAX_STORES};

use crate::{
    pyset,
    python::{enter, while_open, written_by},
    user::read,
};

/// By the address of the count that is watched.
#[map]
static PY_STORES: HashMap<PyKey, PyStore> = HashMap::with_max_entries(MAX_STORES, 0);

/// `PyListObject.ob_item`, `PyDictObject.ma_keys`.
const LIST_ITEMS: u32 = 24;
const DICT_KEYS: u32 = 32;
/// `leftblock` and `rightblock`, `leftindex` and `rightindex` of a deque; its
/// blocks begin with a link.
const DEQUE_BLOCKS: u32 = 24;
const DEQUE_ENDS: u32 = 40;
const BLOCK_ITEMS: u64 = 8;
/// `dk_kind` of keys that instances of a class share (3.11+): their values are
/// elsewhere.
const SPLIT: u64 = 2;

#[perf_event]
pub fn py_stored(ctx: PerfEventContext) -> u32 {
    // SAFETY: the kernel lets a program read its context.
    let watched = unsafe { (*ctx.ctx).addr };
    while_open(|pid, target, stat, start| stored(&ctx, watched, pid, target, stat, start))
}

#[inline(always)]
fn stored(
    ctx: &PerfEventContext,
    watched: u64,
    pid: u32,
    target: &PyTarget,
    stat: *mut PyStat,
    time_ns: u64,
) {
    let key = PyKey { address: watched, tgid: pid, _pad: 0 };
    let Some(store) = PY_STORES.get_ptr_mut(&key) else { return };
    let Some(count) = read::<u64>(watched, 0) else { return };
    // SAFETY: the value is of this type, and written here alone once the window
    // is open, by one thread at a time.
    let store = unsafe { &mut *store };
    let container = watched.wrapping_sub(PyStore::count_at(store.kind));
    let is_set = store.kind == PyStore::SET;
    let before = core::mem::replace(&mut store.count, count);
    if store.pending != 0 {
        // Whatever this write is: nothing has cleared that place yet.
        let came = if is_set { pyset::element(container, store) } else { last(container, store) };
        if let Some(element) = came {
            enter(pid, PyStore::key(element), &store.entry, stat);
        }
        store.pending = 0;
    }
    let place = if store.kind == PyStore::DEQUE { end_of_deque(container, store) } else { count };
    if count <= before || place == 0 {
        return;
    }
    let place = if is_set {
        pyset::keep_places(ctx, container, store)
    } else {
        place
    };
    if place == 0 {
        return;
    }
    let Some(entry) = written_by(pid, target, stat, container, time_ns) else { return };
    if is_set || store.kind == PyStore::LIST || store.kind == PyStore::DEQUE {
        store.entry = entry;
        store.pending = place;
    } else if let Some([name, value]) = last_of_dict(container, store.kind) {
        enter(pid, PyStore::key(name), &entry, stat);
        enter(pid, PyStore::key(value), &entry, stat);
    }
}

/// What came to a list or a deque last.
#[inline(always)]
fn last(container: u64, store: &PyStore) -> Option<u64> {
    let at = if store.kind == PyStore::LIST {
        let items: u64 = read(container, LIST_ITEMS).unwrap_or(0);
        items.wrapping_add(store.pending.wrapping_sub(1).wrapping_mul(8))
    } else {
        store.pending
    };
    read::<u64>(at, 0).filter(|e| *e != 0)
}

/// Where in memory the element is that is just coming to a deque
/// (`Modules/_collectionsmodule.c`, `deque_append_internal`); 0 when that is not
/// known. Compilers write the index before the count, and what is not so is not
/// believed: see [`PyStore::ends`]. What comes next to one that was rotated has
/// no writer, or rarely that of an object which was at its address before.
#[inline(always)]
fn end_of_deque(deque: u64, store: &mut PyStore) -> u64 {
    let ends: [u64; 2] = read(deque, DEQUE_ENDS).unwrap_or_default();
    let now = PyStore::ends(store.count, ends[0], ends[1]);
    let old = core::mem::replace(&mut store.ends, now);
    if store.count == 0 {
        // It is centred in its block when it is empty, which is still to come.
        store.ends = PyStore::ends(0, PyStore::BLOCK / 2, PyStore::BLOCK / 2 - 1);
    }
    let Some(right) = PyStore::came_right(old, now) else { return 0 };
    let side = usize::from(right);
    let Some(blocks) = read::<[u64; 2]>(deque, DEQUE_BLOCKS) else { return 0 };
    // An index is kept below the length of a block.
    let index = ends[side & 1] & (PyStore::BLOCK - 1);
    blocks[side & 1].wrapping_add(BLOCK_ITEMS + index * 8)
}

/// Key and value of the entry that was written last (`Objects/dictobject.c`,
/// `insertdict`). Versions differ in whether the number of entries or the count
/// is written first.
#[inline(always)]
fn last_of_dict(dict: u64, kind: u64) -> Option<[u64; 2]> {
    let keys: u64 = read(dict, DICT_KEYS)?;
    let modern = kind == PyStore::DICT_LOG2;
    let size: u64 = read(keys, 8)?;
    let (entries, step, at) = if modern {
        if (size >> 16) & 0xff == SPLIT {
            return None;
        }
        let general = u64::from((size >> 16) & 0xff == 0);
        (32 + (1u64 << ((size >> 8) & 31)), 16 + 8 * general, 16)
    } else {
        let each = 1 + u64::from(size > 0xff) + 2 * u64::from(size > 0xffff);
        (40 + size.wrapping_mul(each), 24, 24)
    };
    // `dk_usable`, `dk_nentries`.
    let [usable, count]: [u64; 2] = read(keys, at)?;
    let entry = |i: u64| -> Option<[u64; 2]> {
        let end = keys.wrapping_add(entries).wrapping_add(i.wrapping_add(1).wrapping_mul(step));
        read::<[u64; 2]>(end.wrapping_sub(16), 0).filter(|[name, value]| *name != 0 && *value != 0)
    };
    let next = if usable != 0 { entry(count) } else { None };
    next.or_else(|| entry(count.wrapping_sub(1)))
}
