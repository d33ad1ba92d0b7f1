//! Where in a set an element is that is just coming.
//!
//! A set keeps no order. But when `set_add_entry` (`Objects/setobject.c`) counts
//! an element it has already found the entry for it, and is about to write key
//! and hash there: that entry's address is in a register, or on top of the stack.
//! So are others: of the table, of the end of a run that is searched. It holds
//! nothing yet, having never been used or lost its element, and at the next count
//! it does.

use aya_ebpf::programs::PerfEventContext;
use claw_common::PyStore;

use crate::{regs::words, user::read};

/// `PySetObject.mask`, `.table` (`Include/cpython/setobject.h`, 3.8 to 3.15).
const MASK: u32 = 32;
const TABLE: u32 = 40;
/// Bytes of a `setentry`: key and hash.
const ENTRY: u64 = 16;
/// The hash of an entry whose element was taken out.
const DUMMY: u64 = u64::MAX;

/// Keep where an element may be about to be written; gives how many places that
/// are. Which was meant shows later: nothing else is written into an empty entry
/// before the next count.
#[inline(always)]
pub fn keep_places(ctx: &PerfEventContext, set: u64, store: &mut PyStore) -> u64 {
    let (Some(mask), Some(table)) = (read::<u64>(set, MASK), read::<u64>(set, TABLE)) else {
        return 0;
    };
    let mut kept = 0;
    words(ctx, |word| {
        if kept < PyStore::PLACES && is_entry(word, table, mask) && is_empty(word) {
            let known = (0..PyStore::PLACES).any(|i| i < kept && store.places[i] == word);
            if !known {
                store.places[kept] = word;
                kept += 1;
            }
        }
    });
    kept as u64
}

/// The element at one of the places, once it is there; `None` as well when the
/// table is another since.
#[inline(always)]
pub fn element(set: u64, store: &PyStore) -> Option<u64> {
    let (mask, table): (u64, u64) = (read(set, MASK)?, read(set, TABLE)?);
    for i in 0..PyStore::PLACES {
        let place = store.places[i];
        if i as u64 >= store.pending || !is_entry(place, table, mask) {
            continue;
        }
        if let Some([key, hash]) = read::<[u64; 2]>(place, 0)
            && key != 0
            && hash != DUMMY
        {
            return Some(key);
        }
    }
    None
}

#[inline(always)]
fn is_empty(entry: u64) -> bool {
    read::<[u64; 2]>(entry, 0).is_some_and(|[key, hash]| key == 0 || hash == DUMMY)
}

#[inline(always)]
fn is_entry(at: u64, table: u64, mask: u64) -> bool {
    let offset = at.wrapping_sub(table);
    offset & (ENTRY - 1) == 0 && offset / ENTRY <= mask
}
