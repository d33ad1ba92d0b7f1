//! Code objects: function, file, line of an instruction, names of local
//! variables. Code objects are freed and their memory is used again, so one is
//! read while it is known to run, and checked to be one.

use super::{
    layout::{OB_SIZE, OB_TYPE},
    object::Objects,
    running::{Lines, Locals, Running},
};
use crate::target::memory::Memory;

/// `PyBytesObject.ob_sval`.
const BYTES: u64 = 32;
/// Longest line table that is read, bytes.
const MAX_TABLE: u64 = 1 << 20;
/// Most local variables whose names are looked at.
const MAX_LOCALS: u64 = 1 << 10;
/// `CO_FAST_CELL`, `CO_FAST_FREE` (`pycore_code.h`).
const CELL: u8 = 0x40 | 0x80;

/// What is known of a code object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// `Class.method` from 3.11, `method` before.
    pub function: String,
    pub file: String,
    pub first_line: u32,
    table: Vec<u8>,
}

/// Names of local variables, with their place in the frame and whether it holds
/// a cell.
pub type LocalNames = Vec<(String, u16, bool)>;

impl Code {
    /// # Errors
    /// `None` when there is no code object, or it cannot be read.
    pub fn read<M: Memory>(objects: &Objects<'_, M>, r: &Running, at: u64) -> Option<Self> {
        let word = |offset: u64| objects.memory.u64_at(at.checked_add(offset)?).ok();
        if word(OB_TYPE)? != objects.types.code {
            return None;
        }
        let (Lines::Lnotab(table) | Lines::Table310(table) | Lines::Locations { table, .. }) =
            r.lines;
        let table = word(table)?;
        let length = objects.memory.u64_at(table.checked_add(OB_SIZE)?).ok()?;
        let mut bytes = vec![0; usize::try_from(length).ok().filter(|_| length <= MAX_TABLE)?];
        objects.memory.read(table.checked_add(BYTES)?, &mut bytes).ok()?;
        Some(Self {
            function: objects.string(word(r.co_name)?)?,
            file: objects.string(word(r.co_file)?)?,
            first_line: word(r.co_first_line)? as u32,
            table: bytes,
        })
    }

    /// Bytes of its line table.
    pub fn table_bytes(&self) -> u64 {
        self.table.len() as u64
    }

    /// Line of the instruction that a frame stands at: `instruction` is an
    /// address, ≤ 3.10 `f_lasti`. 0 when it has none.
    pub fn line(&self, r: &Running, at: u64, instruction: u64) -> u32 {
        let first = i64::from(self.first_line);
        let line = match r.lines {
            Lines::Lnotab(_) => lnotab(&self.table, first, i64::from(instruction as u32 as i32)),
            Lines::Table310(_) => {
                table310(&self.table, first, i64::from(instruction as u32 as i32) * 2)
            }
            Lines::Locations { code, .. } => {
                let begin = at.wrapping_add(code);
                instruction.checked_sub(begin).and_then(|o| locations(&self.table, first, o / 2))
            }
        };
        line.and_then(|l| u32::try_from(l).ok()).unwrap_or(0)
    }
}

/// Names of the local variables of a code object.
pub fn local_names<M: Memory>(
    objects: &Objects<'_, M>,
    r: &Running,
    at: u64,
) -> Option<LocalNames> {
    let word = |offset: u64| objects.memory.u64_at(at.checked_add(offset)?).ok();
    let names = |offset: u64| -> Option<Vec<Option<String>>> {
        let tuple = word(offset)?;
        let count = objects.memory.u64_at(tuple.checked_add(OB_SIZE)?).ok()?;
        let count = usize::try_from(count).ok().filter(|_| count <= MAX_LOCALS)?;
        let mut items = vec![0; count * 8];
        objects.memory.read(tuple.checked_add(objects.layout.tuple_items)?, &mut items).ok()?;
        let address = |b: &[u8; 8]| objects.string(u64::from_le_bytes(*b));
        Some(items.as_chunks::<8>().0.iter().map(address).collect())
    };
    let mut found = Vec::new();
    let mut add = |names: Vec<Option<String>>, first: usize, cell: &dyn Fn(usize) -> bool| {
        for (i, name) in names.into_iter().enumerate() {
            if let (Some(name), Ok(place)) = (name, u16::try_from(first + i)) {
                found.push((name, place, cell(i)));
            }
        }
    };
    match r.locals {
        Locals::Together { names: at_names, kinds } => {
            let names = names(at_names)?;
            let mut kind = vec![0; names.len()];
            objects.memory.read(word(kinds)?.checked_add(BYTES)?, &mut kind).ok()?;
            add(names, 0, &|i| kind.get(i).is_some_and(|k| k & CELL != 0));
        }
        Locals::Separate { count, names: vars, cells, free } => {
            let count = (word(count)? as u32 as usize).min(MAX_LOCALS as usize);
            let (cells, free) = (names(cells)?, names(free)?);
            let first_free = count + cells.len();
            // An argument that is a cell as well lives in the cell.
            add(cells, count, &|_| true);
            add(free, first_free, &|_| true);
            add(names(vars)?, 0, &|_| false);
        }
    }
    Some(found)
}

/// `PyCode_Addr2Line` (`Objects/codeobject.c`, 3.8, 3.9).
fn lnotab(table: &[u8], first: i64, offset: i64) -> Option<i64> {
    let (mut line, mut at) = (first, 0i64);
    for [bytes, lines] in table.as_chunks::<2>().0 {
        at += i64::from(*bytes);
        if at > offset {
            break;
        }
        line += i64::from(*lines as i8);
    }
    Some(line)
}

/// `Objects/lnotab_notes.txt` of 3.10.
fn table310(table: &[u8], first: i64, offset: i64) -> Option<i64> {
    const NO_LINE: i8 = -128;
    let (mut line, mut end) = (first, 0i64);
    for [bytes, lines] in table.as_chunks::<2>().0 {
        let lines = *lines as i8;
        end += i64::from(*bytes);
        if lines != NO_LINE {
            line += i64::from(lines);
        }
        if end > offset {
            return (lines != NO_LINE).then_some(line);
        }
    }
    None
}

/// `Objects/locations.md` of 3.11 and later; `unit` counts instructions of two
/// bytes.
fn locations(table: &[u8], first: i64, unit: u64) -> Option<i64> {
    let mut bytes = table.iter().copied();
    let (mut line, mut end) = (first, 0u64);
    while let Some(head) = bytes.next() {
        end += u64::from(head & 7) + 1;
        let kind = head >> 3 & 15;
        let (delta, skip) = match kind {
            15 => (None, 0),
            14 => {
                let delta = signed(&mut bytes)?;
                for _ in 0..3 {
                    varint(&mut bytes)?;
                }
                (Some(delta), 0)
            }
            13 => (Some(signed(&mut bytes)?), 0),
            10..=12 => (Some(i64::from(kind) - 10), 2),
            _ => (Some(0), 1),
        };
        for _ in 0..skip {
            bytes.next()?;
        }
        line += delta.unwrap_or(0);
        if end > unit {
            return delta.map(|_| line);
        }
    }
    None
}

fn varint(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..60).step_by(6) {
        let b = bytes.next()?;
        value |= u64::from(b & 63) << shift;
        if b & 64 == 0 {
            return Some(value);
        }
    }
    None
}

fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let v = varint(bytes)?;
    let half = i64::try_from(v >> 1).ok()?;
    Some(if v & 1 == 1 { -half } else { half })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_each_format() {
        // Two bytes further a line each, then back by one.
        let old = [2, 1, 2, 1, 4, 0xff];
        let at = |o| lnotab(&old, 10, o).unwrap();
        assert_eq!([0, 1, 2, 4, 7, 8, 100].map(at), [10, 10, 11, 12, 12, 11, 11]);
        // Bytes that a line covers; -128: none.
        let new = [2, 0, 4, 1, 2, 0x80, 2, 0xff];
        let at = |o| table310(&new, 10, o);
        assert_eq!(
            [0, 2, 4, 6, 8, 10].map(at),
            [Some(10), Some(11), Some(11), None, Some(10), None]
        );
        // One unit of the first line; two of the next; three without a line;
        // one 70 lines on, in the long form; one 1 back without columns.
        let table = [
            0x80 | 3 << 3,
            5,
            0x80 | 11 << 3 | 1,
            0,
            0,
            0x80 | 15 << 3 | 2,
            0x80 | 14 << 3,
            0x40 | (140 & 63),
            140 >> 6,
            0,
            1,
            1,
            0x80 | 13 << 3,
            3,
        ];
        let at = |u| locations(&table, 10, u);
        let want = [Some(10), Some(11), Some(11), None, None, None, Some(81), Some(80), None];
        assert_eq!([0, 1, 2, 3, 4, 5, 6, 7, 8].map(at), want);
    }

    #[test]
    fn torn_tables_end() {
        for table in [&[0xf0u8][..], &[0xf0, 0xff, 0xff], &[0xff; 40], &[0x80], &[0xd0, 0]] {
            for unit in [0, 5, u64::MAX] {
                let _ = locations(table, 1, unit);
            }
            let _ = (lnotab(table, 1, -1), table310(table, 1, -1));
        }
        assert_eq!(varint(&mut [0xffu8; 20].into_iter()), None);
    }
}
