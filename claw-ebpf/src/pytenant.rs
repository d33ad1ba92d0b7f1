//! The tenant of what a Python thread does: a context variable, found in the
//! thread's context, or a local variable of a running function.
//!
//! Both are read while the thread stands in the probe, holding the GIL: what
//! they lead to cannot change or go away meanwhile.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_probe_read_user_buf};
use claw_common::{
    PyEntry, PyLocal, PyTarget, RecordedLabel,
    event::MAX_LABEL,
    python::{PyVariable, STACKREF_TAG},
};

use crate::user::read;

/// `PyContext.ctx_vars`, `PyHamtObject.h_root` (`pycore_context.h`,
/// `pycore_hamt.h`).
const CTX_VARS: u32 = 24;
const HAMT_ROOT: u32 = 16;
/// `PyHamtNode_Bitmap.b_bitmap`, `.b_array`; `PyHamtNode_Array.a_array`
/// (`pycore_hamt.h`, `Python/hamt.c`).
const BITMAP: u32 = 24;
const BITMAP_ARRAY: u64 = 32;
const ARRAY: u64 = 16;
/// 32 bits of hash, 5 on each level.
const LEVELS: u32 = 7;
const OB_TYPE: u32 = 8;
/// `PyCellObject.ob_ref`.
const CELL_REF: u32 = 16;
/// Of a `str`: length, state; of an `int`: tag or size, digits.
const LENGTH: u32 = 16;
const STATE: u32 = 32;
const DIGITS: u32 = 24;
const DIGIT_BITS: u32 = 30;

#[inline(always)]
fn rank(label: &RecordedLabel) -> u32 {
    if label.key == RecordedLabel::NONE { u32::MAX } else { u32::from(label.key & PyEntry::RANK) }
}

/// A value that may name a tenant, with the rank of its rule.
#[derive(Clone, Copy)]
pub struct Candidate {
    pub value: u64,
    pub rank: u32,
}

impl Candidate {
    pub const NONE: Self = Self { value: 0, rank: u32::MAX };
}

/// The thread's name, where a rule asks for it.
#[inline(always)]
pub fn thread_name(target: &PyTarget, label: &mut RecordedLabel) {
    if target.thread_rank == u32::MAX {
        return;
    }
    let Ok(name) = bpf_get_current_comm() else { return };
    let mut len = 0;
    for (i, b) in name.iter().enumerate() {
        if *b == 0 {
            break;
        }
        label.value[i] = *b;
        len = i as u8 + 1;
    }
    label.key = target.thread_rank as u8;
    label.len = len;
    label.full_len = u16::from(len);
}

/// What the thread's context says.
#[inline(always)]
pub fn of_context(
    target: &PyTarget,
    thread: u64,
    unreadable: &mut u32,
    unknown: &mut u64,
) -> Candidate {
    let mut best = Candidate::NONE;
    if target.variables[0].address == 0 {
        return best;
    }
    let Some(context) = read::<u64>(thread, target.ts_context).filter(|c| *c != 0) else {
        return best;
    };
    let Some(root) = read::<u64>(context, CTX_VARS).and_then(|vars| read::<u64>(vars, HAMT_ROOT))
    else {
        *unreadable = 1;
        return best;
    };
    for variable in &target.variables {
        // In order of preference.
        if variable.address == 0 || best.value != 0 {
            break;
        }
        match find(target, root, variable, unknown) {
            Some(value) => best = Candidate { value, rank: variable.rank },
            None => *unreadable = 1,
        }
    }
    best
}

/// The better of two, and the other where that names nobody.
#[inline(always)]
pub fn name(
    target: &PyTarget,
    candidates: [Candidate; 2],
    label: &mut RecordedLabel,
    unreadable: &mut u32,
) {
    let [a, b] = candidates;
    let (first, second) = if a.rank <= b.rank { (a, b) } else { (b, a) };
    let thread = rank(label);
    for c in [first, second] {
        if c.value != 0
            && c.rank < thread
            && text(target, c.value, c.rank, label, unreadable)
        {
            break;
        }
    }
}

/// `hamt_find`: the value of a variable, 0 when it is not set.
#[inline(always)]
fn find(
    target: &PyTarget,
    root: u64,
    variable: &PyVariable,
    unknown: &mut u64,
) -> Option<u64> {
    let mut node = root;
    let mut hash = variable.hash;
    for _ in 0..LEVELS {
        let typ: u64 = read(node, OB_TYPE)?;
        let piece = hash & 31;
        hash >>= 5;
        if typ == target.type_array {
            node = read(node.wrapping_add(ARRAY + u64::from(piece) * 8), 0)?;
            if node == 0 {
                return Some(0);
            }
            continue;
        }
        if typ != target.type_bitmap {
            *unknown = typ;
            return None;
        }
        let bitmap: u32 = read(node, BITMAP)?;
        let bit = 1u32 << piece;
        if bitmap & bit == 0 {
            return Some(0);
        }
        let index = ones(bitmap & (bit - 1));
        let at = node.wrapping_add(BITMAP_ARRAY + u64::from(index) * 16);
        let [key, value]: [u64; 2] = read(at, 0)?;
        if key == variable.address {
            return Some(value);
        }
        if key != 0 {
            return Some(0);
        }
        node = value;
    }
    None
}

/// Population count, which BPF has no instruction for.
#[inline(always)]
fn ones(x: u32) -> u32 {
    let x = x - ((x >> 1) & 0x5555_5555);
    let x = (x & 0x3333_3333) + ((x >> 2) & 0x3333_3333);
    ((x + (x >> 4)) & 0x0f0f_0f0f).wrapping_mul(0x0101_0101) >> 24
}

/// The value of a local variable; 0 when it is not bound.
#[inline(always)]
pub fn of_local(locals: u64, local: &PyLocal, unreadable: &mut u32) -> Candidate {
    let Some(mut value) = read::<u64>(locals.wrapping_add(u64::from(local.index) * 8), 0) else {
        *unreadable = 1;
        return Candidate::NONE;
    };
    value &= !STACKREF_TAG;
    if local.cell != 0 {
        value = read(value, CELL_REF).unwrap_or(0);
    }
    Candidate { value, rank: local.rank }
}

/// A `str` or `int` as a label; whether it was one.
#[inline(never)]
fn text(
    target: &PyTarget,
    value: u64,
    rank: u32,
    label: &mut RecordedLabel,
    unreadable: &mut u32,
) -> bool {
    let Some(typ) = read::<u64>(value, OB_TYPE) else {
        *unreadable = 1;
        return false;
    };
    if typ == target.type_int {
        return int(target, value, rank, label);
    }
    if typ != target.type_str {
        // None, or something that has the name by chance.
        return false;
    }
    let (Some(length), Some(state)) = (read::<u64>(value, LENGTH), read::<u32>(value, STATE))
    else {
        *unreadable = 1;
        return false;
    };
    // interned: 2, kind: 3, compact: 1, ascii: 1
    let (kind, compact, ascii) = (state >> 2 & 7, state >> 5 & 1, state >> 6 & 1);
    if length == 0 {
        return false;
    }
    if kind != 1 || compact == 0 {
        *unreadable = 1;
        return false;
    }
    let start = if ascii != 0 { target.str_ascii } else { target.str_compact };
    let len = if length < MAX_LABEL as u64 { length as usize } else { MAX_LABEL };
    let Some(buf) = label.value.get_mut(..len) else { return false };
    // SAFETY: the helper checks the address and fails instead of faulting.
    if unsafe {
        bpf_probe_read_user_buf(value.wrapping_add(u64::from(start)) as *const u8, buf)
    }
    .is_err()
    {
        *unreadable = 1;
        label.key = RecordedLabel::NONE;
        return false;
    }
    label.key = rank as u8 | if ascii != 0 { 0 } else { PyEntry::LATIN1 };
    label.len = len as u8;
    label.full_len = if length > 0xffff { 0xffff } else { length as u16 };
    true
}

/// An `int` that is not negative, of at most two digits.
#[inline(always)]
fn int(target: &PyTarget, value: u64, rank: u32, label: &mut RecordedLabel) -> bool {
    let (Some(head), Some([low, high])) =
        (read::<u64>(value, LENGTH), read::<[u32; 2]>(value, DIGITS))
    else {
        return false;
    };
    let digits = if target.int_tag != 0 {
        if head & 3 == 2 {
            return false;
        }
        head >> 3
    } else {
        head
    };
    let high = if digits < 2 { 0 } else { u64::from(high) };
    let low = if digits == 0 { 0 } else { u64::from(low) };
    if digits > 2 {
        return false;
    }
    let number = (high << DIGIT_BITS) | low;
    label.value[..8].copy_from_slice(&number.to_ne_bytes());
    label.key = rank as u8 | PyEntry::INT;
    label.len = 8;
    label.full_len = 8;
    true
}
