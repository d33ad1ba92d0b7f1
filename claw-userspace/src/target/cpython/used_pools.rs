//! pymalloc's table of the pools that have a free block, `usedpools`, per size
//! class (`Objects/obmalloc.c`; from 3.12 in the interpreter's state,
//! `pycore_obmalloc.h`).
//!
//! It has no exported name, and has moved with nearly every version. But it
//! looks like nothing else: 32 pairs of pointers to pools, of which an empty
//! one points to 16 bytes before itself. So it is looked for, in the writable
//! data of the file that holds CPython, and checked against the pools that it
//! points to.

use super::pool::{CLASSES, u64_at};
use crate::target::memory::Memory;

/// Bytes of one pair.
const PAIR: u64 = 16;
/// `pool_header.szidx`.
const CLASS: u64 = 36;
/// Most data that is looked through, bytes.
const MAX_DATA: u64 = 64 << 20;
/// Read at once.
const CHUNK: usize = 1 << 20;
const TABLE: usize = CLASSES * PAIR as usize;

/// The table's address, in memory from `start` to `end`; `None` when it is not
/// there, or more than one place looks like it.
pub fn find(memory: &impl Memory, start: u64, end: u64) -> Option<u64> {
    let start = start.next_multiple_of(8);
    if end.checked_sub(start)? > MAX_DATA {
        return None;
    }
    let mut found = None;
    let mut bytes = vec![0u8; CHUNK + TABLE];
    for at in (start..end).step_by(CHUNK) {
        let len = usize::try_from(end - at).ok()?.min(bytes.len());
        let chunk = bytes.get_mut(..len)?;
        if memory.read(at, chunk).is_err() {
            continue;
        }
        for offset in (0..len.min(CHUNK)).step_by(8) {
            let Some(table) = chunk.get(offset..offset + TABLE) else { break };
            let base = at + offset as u64;
            if looks_like(memory, table, base) && found.replace(base).is_some_and(|f| f != base) {
                return None;
            }
        }
    }
    found
}

fn looks_like(memory: &impl Memory, table: &[u8], base: u64) -> bool {
    // The cheap test first: nearly nothing passes it. Both of a pair point to
    // its own place when it is empty, and to others when it is not.
    for i in 0..CLASSES {
        let at = i * PAIR as usize;
        let (next, previous) = (u64_at(table, at), u64_at(table, at + 8));
        let own = base + at as u64 - PAIR;
        let empty = next == own && previous == own;
        if !empty && (next < 0x1_0000 || previous < 0x1_0000 || next == own || previous == own) {
            return false;
        }
    }
    let class_of = |pool: u64| {
        let mut b = [0; 4];
        memory.read(pool.checked_add(CLASS)?, &mut b).ok()?;
        Some(u32::from_le_bytes(b))
    };
    // Both of a pair: 8 bytes on, the last of one stands before the first of the
    // next.
    let fits = |i: &usize| {
        let at = *i * PAIR as usize;
        let own = base + at as u64 - PAIR;
        let fits = |pool| pool == own || class_of(pool) == Some(*i as u32);
        fits(u64_at(table, at)) && fits(u64_at(table, at + 8))
    };
    let fitting = (1..CLASSES).filter(fits).count();
    // It changes while it is looked at.
    fitting + 4 >= CLASSES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::BytesMemory;

    const BASE: u64 = 0x7f00_0000_0000;

    fn put(m: &mut BytesMemory, at: u64, value: u64) {
        let at = (at - BASE) as usize;
        m.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn the_table_is_found_among_other_data() {
        let mut m = BytesMemory { base: BASE, bytes: vec![0; 3 << 20] };
        assert_eq!(find(&m, BASE, BASE + (3 << 20)), None);
        let table = BASE + (1 << 20) - 40;
        let pool = BASE + (2 << 20);
        for i in 0..CLASSES as u64 {
            let at = table + i * 16;
            let (pointer, here) = if i == 3 { (pool, pool) } else { (at - 16, at - 16) };
            put(&mut m, at, pointer);
            put(&mut m, at + 8, here);
        }
        m.bytes[(2 << 20) + 36] = 3;
        assert_eq!(find(&m, BASE, BASE + (3 << 20)), Some(table));
        for i in 0..CLASSES as u64 {
            let (at, pool) = (table + i * 16, pool + i * 4096);
            put(&mut m, at, pool);
            put(&mut m, at + 8, pool);
            m.bytes[(pool - BASE) as usize + 36] = i as u8;
        }
        put(&mut m, table + 32 * 16, pool);
        assert_eq!(find(&m, BASE, BASE + (3 << 20)), Some(table), "also when none is empty");
        assert_eq!(find(&m, BASE, BASE + (65 << 20)), None, "more data than there can be");
    }
}
