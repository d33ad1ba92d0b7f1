//! The window on the C allocator: what is allocated while it is open and not
//! freed (see `claw_common::native`).
//!
//! Three programs: at the entry of what allocates, at its return, and at the
//! entry of what frees. Nothing is sent: the agent reads the maps.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_pidns_info},
    helpers::{
        bpf_get_attach_cookie, bpf_get_current_pid_tgid,
        generated::bpf_get_ns_current_pid_tgid,
    },
    macros::{map, uprobe},
    maps::HashMap,
    programs::ProbeContext,
};
use claw_common::{
    NativeEntry, NativeFlight, NativeSite, NativeStack, NativeStat, NativeTarget, PyKey,
    PyStackKey, PyTarget, RecordedLabel,
    config::MAX_TARGETS,
    native::{
        MAPPED, MAX_CLASSES, MAX_ENTRIES, MAX_FLIGHTS, MAX_STACKS, OFF, RECORDING,
    },
};

use crate::{
    emit::{add, charge, now, tgid},
    python::{PY_TARGETS, innermost, keep, tenant, walk},
    regs::{self, c},
    user::read,
};

#[map]
static NATIVE_TARGETS: HashMap<u32, NativeTarget> = HashMap::with_max_entries(MAX_TARGETS, 0);

#[map]
static NATIVE_STATS: HashMap<u32, NativeStat> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// Thread → the call that it is in.
#[map]
static NATIVE_FLIGHTS: HashMap<u64, NativeFlight> =
    HashMap::with_max_entries(MAX_FLIGHTS, BPF_F_NO_PREALLOC);

#[map]
static NATIVE_ENTRIES: HashMap<PyKey, NativeEntry> =
    HashMap::with_max_entries(MAX_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
static NATIVE_STACKS: HashMap<PyStackKey, NativeStack> =
    HashMap::with_max_entries(MAX_STACKS, BPF_F_NO_PREALLOC);

/// Size class → how many were freed that had been there before.
#[map]
static NATIVE_FREED: HashMap<PyKey, u64> =
    HashMap::with_max_entries(MAX_CLASSES, BPF_F_NO_PREALLOC);

const MAP_ANONYMOUS: u64 = 0x20;
const PAGE: u64 = 4096;
/// `malloc_chunk.mchunk_size` (glibc `malloc/malloc.c`): before the memory, its
/// low bits are flags.
const CHUNK: u64 = 8;
const CHUNK_FLAGS: u64 = 7;

fn class_of(address: u64) -> u64 {
    read::<u64>(address.wrapping_sub(CHUNK), 0).unwrap_or(0) & !CHUNK_FLAGS
}

fn class_of_map(bytes: u64) -> u64 {
    (bytes.wrapping_add(PAGE - 1) & !(PAGE - 1)) | MAPPED
}

fn key(pid: u32, address: u64) -> PyKey {
    PyKey { address, tgid: pid, _pad: 0 }
}

/// The target and its account, while a window is open on it.
#[inline(always)]
fn watched(pid: u32) -> Option<(&'static NativeTarget, *mut NativeStat)> {
    // SAFETY: entries are replaced whole by the agent, and a stale copy only
    // matters while a window opens or closes.
    let target = unsafe { NATIVE_TARGETS.get(&pid) }?;
    Some((target, NATIVE_STATS.get_ptr_mut(&pid)?))
}

/// At the first instruction of what allocates.
#[uprobe]
pub fn native_enter(ctx: ProbeContext) -> u32 {
    let start = now();
    let Some((target, stat)) = watched(tgid()) else { return 0 };
    if target.active == RECORDING {
        enter(&ctx, stat);
    }
    // SAFETY: stat points to a map value of its type.
    charge(unsafe { &raw mut (*stat).cost }, start);
    0
}

#[inline(always)]
fn enter(ctx: &ProbeContext, stat: *mut NativeStat) {
    // SAFETY: the helper has no preconditions beyond a live context.
    let site = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let (first, second) = (c::arg0(ctx), c::arg1(ctx));
    let mut mapped = 0;
    let size = if site == NativeSite::Size as u64 {
        first
    } else if site == NativeSite::Count as u64 {
        first.wrapping_mul(second)
    } else if site == NativeSite::Map as u64 {
        // Neither a file's, nor addresses that are only set aside.
        if c::arg3(ctx) & MAP_ANONYMOUS == 0 || c::arg2(ctx) == 0 {
            return;
        }
        mapped = 1;
        second
    } else {
        second
    };
    let thread = bpf_get_current_pid_tgid();
    let sp = regs::sp(ctx);
    // SAFETY: written here alone, by this thread.
    if let Some(outer) = unsafe { NATIVE_FLIGHTS.get(&thread) }
        && sp < outer.sp
    {
        // The allocator calls itself, or maps memory to give out.
        return;
    }
    if NATIVE_FLIGHTS.insert(&thread, &NativeFlight { sp, size, mapped }, 0).is_err() {
        // SAFETY: stat points to a map value of its type.
        unsafe { add(&raw mut (*stat).no_room, 1) };
    }
}

/// Where it has returned.
#[uprobe]
pub fn native_leave(ctx: ProbeContext) -> u32 {
    let start = now();
    let pid = tgid();
    let Some((native, stat)) = watched(pid) else { return 0 };
    if native.active == RECORDING {
        leave(&ctx, pid, native, stat, start);
    }
    // SAFETY: stat points to a map value of its type.
    charge(unsafe { &raw mut (*stat).cost }, start);
    0
}

#[inline(always)]
fn leave(
    ctx: &ProbeContext,
    pid: u32,
    native: &NativeTarget,
    stat: *mut NativeStat,
    time_ns: u64,
) {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: written by this thread alone.
    let Some(flight) = (unsafe { NATIVE_FLIGHTS.get(&id) }).copied() else { return };
    if flight.sp.wrapping_add(regs::POPPED) != regs::sp(ctx) {
        return;
    }
    let _ = NATIVE_FLIGHTS.remove(&id);
    let address = c::result(ctx);
    // `MAP_FAILED` and the like.
    if address == 0 || address >= u64::MAX - PAGE {
        return;
    }
    // SAFETY: entries are replaced whole by the agent.
    let Some(target) = (unsafe { PY_TARGETS.get(&pid) }) else { return };
    let caller = regs::ip(ctx);
    let class =
        if flight.mapped != 0 { class_of_map(flight.size) } else { class_of(address) };
    let mut entry =
        NativeEntry { time_ns, size: flight.size, class, stack: 0, label: RecordedLabel::UNSET };
    let thread = running(target, native);
    // Without a thread the hash is that of the caller alone.
    let (hash, local) = walk(pid, target, thread, caller);
    entry.stack = hash;
    let at = PyStackKey { hash, tgid: pid, index: 0 };
    match NATIVE_STACKS.get_ptr_mut(&at) {
        // SAFETY: the pointer is to a map value of this type.
        Some(known) => unsafe {
            add(&raw mut (*known).count, 1);
            add(&raw mut (*known).bytes, flight.size);
        },
        None => {
            let kept = thread == 0 || keep(pid, target, thread, hash);
            let new = NativeStack { caller, count: 1, bytes: flight.size };
            if !kept || NATIVE_STACKS.insert(&at, &new, u64::from(BPF_NOEXIST)).is_err() {
                // SAFETY: stat points to a map value of its type.
                unsafe { add(&raw mut (*stat).no_room, 1) };
                return;
            }
        }
    }
    if thread == 0 {
        // SAFETY: as above.
        unsafe { add(&raw mut (*stat).no_python, 1) };
    } else {
        let (mut unreadable, mut unknown) = (0, 0);
        tenant(target, thread, local, &mut entry.label, &mut unreadable, &mut unknown);
        // SAFETY: as above; of unknown nodes one is as good as another.
        unsafe {
            add(&raw mut (*stat).label_unreadable, u64::from(unreadable));
            if unknown != 0 {
                (*stat).unknown_node = unknown;
            }
        }
    }
    let kept = NATIVE_ENTRIES.insert(&key(pid, address), &entry, 0).is_ok();
    // SAFETY: as above.
    unsafe {
        add(&raw mut (*stat).entries, u64::from(kept));
        add(&raw mut (*stat).no_room, u64::from(!kept));
    }
}

/// The state of this thread, when it is the one that holds the GIL or held it
/// last; 0 when another does, whose stack has nothing to do with it, and when
/// no Python function runs in it.
#[inline(always)]
fn running(target: &PyTarget, native: &NativeTarget) -> u64 {
    let Some(thread) = read::<u64>(target.tstate_at, 0).filter(|t| *t != 0) else { return 0 };
    let tid = if native.ts_tid != 0 {
        read::<u64>(thread, native.ts_tid)
    } else {
        read::<u64>(thread, native.ts_pthread)
            .and_then(|pthread| read::<u32>(pthread, native.pthread_tid))
            .map(u64::from)
    };
    let mut own = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the helper writes no more than the size it is given.
    let failed = unsafe {
        bpf_get_ns_current_pid_tgid(
            native.ns_dev,
            native.ns_ino,
            &raw mut own,
            core::mem::size_of::<bpf_pidns_info>() as u32,
        )
    };
    let is_own = failed == 0 && tid == Some(u64::from(own.pid));
    if is_own && innermost(target, thread) != 0 { thread } else { 0 }
}

/// At the first instructions of what frees.
#[uprobe]
pub fn native_free(ctx: ProbeContext) -> u32 {
    let start = now();
    let pid = tgid();
    let Some((target, stat)) = watched(pid) else { return 0 };
    if target.active != OFF {
        free(&ctx, pid, target.active);
    }
    // SAFETY: stat points to a map value of its type.
    charge(unsafe { &raw mut (*stat).cost }, start);
    0
}

#[inline(always)]
fn free(ctx: &ProbeContext, pid: u32, active: u32) {
    let address = c::arg0(ctx);
    if address == 0 || NATIVE_ENTRIES.remove(&key(pid, address)).is_ok() || active != RECORDING {
        return;
    }
    // SAFETY: the helper has no preconditions beyond a live context.
    let site = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let class = if site == NativeSite::Unmap as u64 {
        class_of_map(c::arg1(ctx))
    } else {
        class_of(address)
    };
    let key = key(pid, class);
    match NATIVE_FREED.get_ptr_mut(&key) {
        Some(known) => add(known, 1),
        None => {
            // Without room what stays of that size is counted as it is.
            let _ = NATIVE_FREED.insert(&key, &1, u64::from(BPF_NOEXIST));
        }
    }
}
