//! The window on CPython: who allocated each object of the types that grow.
//!
//! One program for all allocators, told apart by the attach cookie. It sits at
//! their first instructions, finds out which block they will hand out (see
//! `claw_common::python`), and writes down stack, tenant and time under its
//! address. Nothing is sent: the agent reads the maps when the window closes.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    helpers::bpf_get_attach_cookie,
    macros::{map, uprobe},
    maps::{HashMap, LruHashMap},
    programs::ProbeContext,
};
use claw_common::{
    PyEntry, PyFrame, PyKey, PyLocal, PySite, PyStack, PyStackKey, PyStat, PyTarget, RecordedLabel,
    config::MAX_TARGETS,
    python::{
        CLASSES, MAX_CODES, MAX_ENTRIES, MAX_FRAMES, MAX_STACK_FRAMES, MAX_STACKS, MAX_TYPES,
        OWNED_BY_CSTACK, STACKREF_TAG,
    },
};

use crate::{
    emit::{add, charge, now, tgid},
    pytenant::{self, Candidate},
    regs::c,
    user::read,
};

#[map]
pub static PY_TARGETS: HashMap<u32, PyTarget> = HashMap::with_max_entries(MAX_TARGETS, 0);

#[map]
static PY_STATS: HashMap<u32, PyStat> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Types that grow → `claw_common::python::type_word`.
#[map]
static PY_TYPES: HashMap<PyKey, u32> = HashMap::with_max_entries(MAX_TYPES, 0);

/// Block → who allocated it last.
#[map]
static PY_ENTRIES: LruHashMap<PyKey, PyEntry> = LruHashMap::with_max_entries(MAX_ENTRIES, 0);

#[map]
static PY_STACKS: HashMap<PyStackKey, PyStack> =
    HashMap::with_max_entries(MAX_STACKS, BPF_F_NO_PREALLOC);

#[map]
static PY_FRAMES: HashMap<PyStackKey, PyFrame> =
    HashMap::with_max_entries(MAX_STACK_FRAMES, BPF_F_NO_PREALLOC);

/// Code object → the local variable in it that names a tenant.
#[map]
static PY_LOCALS: HashMap<PyKey, PyLocal> = HashMap::with_max_entries(MAX_CODES, BPF_F_NO_PREALLOC);

/// `pool_header`: `freeblock`, `nextpool` (`Objects/obmalloc.c`).
const FREEBLOCK: u32 = 8;
const NEXTPOOL: u32 = 16;
const OB_TYPE: u32 = 8;

#[uprobe]
pub fn py_alloc(ctx: ProbeContext) -> u32 {
    while_open(|pid, target, stat, start| hit(&ctx, pid, target, stat, start))
}

/// Do something in a process that has a window open, at its expense.
#[inline(always)]
pub fn while_open(f: impl FnOnce(u32, &PyTarget, *mut PyStat, u64)) -> u32 {
    let start = now();
    let pid = tgid();
    // SAFETY: entries are replaced whole by the agent, and a stale copy only
    // matters while a window opens or closes.
    let Some(target) = (unsafe { PY_TARGETS.get(&pid) }) else { return 0 };
    let Some(stat) = PY_STATS.get_ptr_mut(&pid) else { return 0 };
    if target.active != 0 {
        f(pid, target, stat, start);
    }
    // SAFETY: stat points to a map value of its type.
    charge(unsafe { &raw mut (*stat).cost }, start);
    0
}

#[inline(always)]
fn hit(ctx: &ProbeContext, pid: u32, target: &PyTarget, stat: *mut PyStat, time_ns: u64) {
    // SAFETY: the helper has no preconditions beyond a live context.
    let site = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let (first, second) = (c::arg0(ctx), c::arg1(ctx));
    if site == PySite::Dealloc as u64 {
        over(pid, first);
        return;
    }
    let (typ, class) = if site == PySite::Type as u64 {
        let key = PyKey { address: first, tgid: pid, _pad: 0 };
        // SAFETY: written by the agent before the window opens.
        let Some(class) = (unsafe { PY_TYPES.get(&key) }) else { return };
        (first, *class & 0xff)
    } else {
        let bytes = if site == PySite::Size as u64 {
            first
        } else if site == PySite::Count as u64 {
            first.wrapping_mul(second)
        } else {
            second
        };
        let class = (bytes.wrapping_sub(1) >> 4) as u32;
        if bytes == 0 || bytes > 512 || target.classes & (1 << (class & 31)) == 0 {
            return;
        }
        (0, class)
    };
    let Some(block) = next_block(target.used_pools, class) else {
        // SAFETY: stat points to a map value of its type.
        unsafe { add(&raw mut (*stat).no_block, 1) };
        return;
    };
    let Some(entry) = written_by(pid, target, stat, typ, time_ns) else { return };
    enter(pid, block, &entry, stat);
}

/// Write down whose the block, or the element, at an address is.
#[inline(always)]
pub fn enter(pid: u32, address: u64, entry: &PyEntry, stat: *mut PyStat) {
    if PY_ENTRIES.insert(&PyKey { address, tgid: pid, _pad: 0 }, entry, 0).is_ok() {
        // SAFETY: stat points to a map value of its type.
        unsafe { add(&raw mut (*stat).entries, 1) };
    }
}

/// The running thread's stack and tenant. Stacks are told apart by `what` they
/// were seen with as well.
#[inline(always)]
pub fn written_by(
    pid: u32,
    target: &PyTarget,
    stat: *mut PyStat,
    what: u64,
    time_ns: u64,
) -> Option<PyEntry> {
    let mut entry = PyEntry { time_ns, stack: 0, label: RecordedLabel::UNSET };
    let Some(thread) = read::<u64>(target.tstate_at, 0).filter(|t| *t != 0) else {
        // SAFETY: as above.
        unsafe { add(&raw mut (*stat).no_stack, 1) };
        return None;
    };
    let mut unreadable = 0;
    let (hash, local) = walk(pid, target, thread, what);
    entry.stack = hash;
    let key = PyStackKey { hash, tgid: pid, index: 0 };
    match PY_STACKS.get_ptr_mut(&key) {
        // SAFETY: the pointer is to a map value of this type.
        Some(known) => unsafe { add(&raw mut (*known).count, 1) },
        None => {
            if !keep(pid, target, thread, hash) {
                // SAFETY: as above.
                unsafe { add(&raw mut (*stat).no_stack, 1) };
                return None;
            }
        }
    }
    let mut unknown = 0;
    tenant(target, thread, local, &mut entry.label, &mut unreadable, &mut unknown);
    if unknown != 0 {
        // SAFETY: as above; one of several is as good.
        unsafe { (*stat).unknown_node = unknown };
    }
    if unreadable != 0 {
        // SAFETY: as above.
        unsafe { add(&raw mut (*stat).label_unreadable, 1) };
    }
    Some(entry)
}

/// Whose this is that the thread does, by the best rule that has a value.
#[inline(always)]
pub fn tenant(
    target: &PyTarget,
    thread: u64,
    local: Nearest,
    label: &mut RecordedLabel,
    unreadable: &mut u32,
    unknown: &mut u64,
) {
    let local = match local {
        Nearest { locals: 0, .. } => Candidate::NONE,
        nearest => pytenant::of_local(nearest.locals, &nearest.local, unreadable),
    };
    let context = pytenant::of_context(target, thread, unreadable, unknown);
    pytenant::thread_name(target, label);
    pytenant::name(target, [context, local], label, unreadable);
}

/// An object that is freed, or kept for reuse, has no writer from now on.
#[inline(always)]
fn over(pid: u32, object: u64) {
    let Some(typ) = read::<u64>(object, OB_TYPE) else { return };
    // SAFETY: written by the agent before the window opens.
    let Some(known) = (unsafe { PY_TYPES.get(&PyKey { address: typ, tgid: pid, _pad: 0 }) }) else {
        return;
    };
    let address = object.wrapping_sub(u64::from(*known >> 8));
    // One that was there before has none.
    let _ = PY_ENTRIES.remove(&PyKey { address, tgid: pid, _pad: 0 });
}

/// The block that pymalloc hands out next for a size class.
#[inline(always)]
fn next_block(used_pools: u64, class: u32) -> Option<u64> {
    // `usedpools[2 * class]` points to the first pool with a free block, or, as
    // if it were the header of one, to where its own links would be.
    let at = used_pools.wrapping_add(u64::from(class & (CLASSES - 1)) * 16);
    let pool: u64 = read(at, 0)?;
    if pool == at.wrapping_sub(u64::from(NEXTPOOL)) {
        return None;
    }
    read::<u64>(pool, FREEBLOCK).filter(|b| *b != 0)
}

/// A running frame.
struct Seen {
    frame: PyFrame,
    /// Address of its local variables.
    locals: u64,
    caller: u64,
}

#[inline(always)]
pub fn innermost(target: &PyTarget, thread: u64) -> u64 {
    let frame = read(thread, target.ts_frame).unwrap_or(0);
    if target.cframe_frame == u32::MAX {
        return frame;
    }
    read(frame, target.cframe_frame).unwrap_or(0)
}

/// The frame at an address. Without a branch for each version: the verifier
/// follows all of them, in each round of a loop.
#[inline(always)]
fn frame_at(target: &PyTarget, at: u64) -> Option<Seen> {
    let code: u64 = read(at, target.f_code)?;
    let caller: u64 = read(at, target.f_previous)?;
    let instruction: u64 = read(at, target.f_instruction)?;
    let owner = read::<u8>(at, target.f_owner)? & target.owner_mask as u8;
    let code = if owner >= OWNED_BY_CSTACK { 0 } else { code & !STACKREF_TAG };
    let locals = at.wrapping_add(u64::from(target.f_locals));
    Some(Seen { frame: PyFrame { code, instruction }, locals, caller })
}

#[inline(always)]
fn mix(hash: u64, value: u64) -> u64 {
    let h = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^ (h >> 29)
}

/// The nearest frame that has a local variable which names a tenant.
pub struct Nearest {
    /// Address of its local variables; 0: there is none.
    locals: u64,
    local: PyLocal,
}

/// The hash of type and stack, and the nearest frame with a tenant's name.
#[inline(always)]
pub fn walk(pid: u32, target: &PyTarget, thread: u64, typ: u64) -> (u64, Nearest) {
    let mut at = innermost(target, thread);
    let mut hash = mix(0, typ);
    let none = PyLocal { index: PyLocal::NONE, cell: 0, rank: u32::MAX };
    let mut nearest = Nearest { locals: 0, local: none };
    for _ in 0..MAX_FRAMES {
        let Some(seen) = frame_at(target, at) else { break };
        at = seen.caller;
        hash = mix(mix(hash, seen.frame.code), seen.frame.instruction);
        if target.locals == 0 || nearest.locals != 0 {
            continue;
        }
        let key = PyKey { address: seen.frame.code, tgid: pid, _pad: 0 };
        // SAFETY: entries are only added by the agent.
        let Some(local) = (unsafe { PY_LOCALS.get(&key) }) else { continue };
        if local.index != PyLocal::NONE {
            nearest = Nearest { locals: seen.locals, local: *local };
        }
    }
    (hash, nearest)
}

/// Write a stack down that is new.
#[inline(always)]
pub fn keep(pid: u32, target: &PyTarget, thread: u64, hash: u64) -> bool {
    let mut at = innermost(target, thread);
    let mut frames = 0;
    for i in 0..MAX_FRAMES as u32 {
        let Some(seen) = frame_at(target, at) else { break };
        at = seen.caller;
        let key = PyStackKey { hash, tgid: pid, index: i };
        if PY_FRAMES.insert(&key, &seen.frame, 0).is_err() {
            return false;
        }
        frames = i + 1;
    }
    if frames == 0 {
        return false;
    }
    let stack = PyStack { count: 1, frames, cut: u32::from(at != 0) };
    // The frames first: whoever finds the stack finds them.
    let key = PyStackKey { hash, tgid: pid, index: 0 };
    PY_STACKS.insert(&key, &stack, u64::from(BPF_NOEXIST)).is_ok()
}
