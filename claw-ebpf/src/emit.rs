//! Records into the ring buffer, and counters for what does not get there.
//!
//! A record is reserved at its largest size and filled in place: a per-CPU
//! scratch buffer would be shared by two tasks when one is preempted inside
//! the program.

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_F_USER_STACK, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
    },
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_stack, bpf_ktime_get_ns,
    },
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
};
use claw_common::{
    Counter, EventHeader, EventKind, ProbeStat, RecordedLabel, WindowCost,
    event::MAX_STACK,
    loss::{COUNTERS, PROBES},
};
use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// The agent chooses the size when it loads the programs.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4 << 20, 0);

/// Unread bytes from which the reader is woken instead of waiting for its
/// next poll.
#[map]
static WAKEUP_BYTES: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static LOSSES: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTERS, 0);

#[map]
static PROBE_STATS: PerCpuArray<ProbeStat> = PerCpuArray::with_max_entries(PROBES, 0);

/// An event without a stack.
#[repr(C)]
struct Short {
    header: EventHeader,
}

/// An event with one.
#[repr(C)]
struct Long {
    header: EventHeader,
    stack: [u64; MAX_STACK],
}

/// Atomic, since another task can run here when this one is preempted. The
/// intrinsic stands in for `AtomicU64::fetch_add`, which the BPF target lacks.
#[inline(always)]
pub fn add(p: *mut u64, n: u64) {
    // SAFETY: p points into a map value, which is aligned and outlives this.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(p, n) };
}

/// A hit of a window's probe that began at `start` is over: its program's last
/// act. Of two times that are written at once one is as good as the other.
#[inline(always)]
pub fn charge(cost: *mut WindowCost, start: u64) {
    // SAFETY: cost points into a map value, which outlives this.
    unsafe {
        if (*cost).first_ns == 0 {
            (*cost).first_ns = start;
        }
        (*cost).last_ns = start;
        add(&raw mut (*cost).hits, 1);
        add(&raw mut (*cost).ns, now().wrapping_sub(start));
    }
}

#[inline(always)]
pub fn count(c: Counter) {
    if let Some(p) = LOSSES.get_ptr_mut(c as u32) {
        add(p, 1);
    }
}

/// Account one run of a probe that began at `start_ns`.
#[inline(always)]
pub fn account(kind: EventKind, start_ns: u64) {
    if let Some(p) = PROBE_STATS.get_ptr_mut(kind as u32) {
        // SAFETY: p points to a map value of this type.
        unsafe {
            add(&raw mut (*p).hits, 1);
            add(&raw mut (*p).ns, bpf_ktime_get_ns().wrapping_sub(start_ns));
        }
    }
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
pub fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The header of an event that happens now on the current thread.
#[inline(always)]
pub fn header(kind: EventKind, time_ns: u64) -> EventHeader {
    let id = bpf_get_current_pid_tgid();
    EventHeader {
        kind: kind as u16,
        stack_len: 0,
        tgid: (id >> 32) as u32,
        tid: id as u32,
        _pad: 0,
        time_ns,
        goid: 0,
        addr: 0,
        size: 0,
        aux: 0,
        gopc: 0,
        startpc: 0,
        label: RecordedLabel::UNSET,
    }
}

#[inline(always)]
fn wakeup() -> u64 {
    let limit = WAKEUP_BYTES.get(0).copied().unwrap_or(0);
    if EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > u64::from(limit) {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

#[inline(always)]
pub fn send(header: &EventHeader) {
    let Some(mut entry) = EVENTS.reserve::<Short>(0) else {
        count(Counter::RingFull);
        return;
    };
    // SAFETY: the record is at least as large as the header and aligned to 8.
    unsafe { (&raw mut (*entry.as_mut_ptr()).header).write(*header) };
    entry.submit(wakeup());
    count(Counter::Sent);
}

/// Send; false when the ring had no room, which the caller counts.
#[inline(always)]
pub fn send_counting(header: &EventHeader) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Short>(0) else { return false };
    // SAFETY: as in `send`.
    unsafe { (&raw mut (*entry.as_mut_ptr()).header).write(*header) };
    entry.submit(wakeup());
    true
}

/// Send with the user stack of the current thread, by frame pointers.
#[inline(always)]
pub fn send_with_stack<C: EbpfContext>(ctx: &C, header: &EventHeader) {
    let Some(mut entry) = EVENTS.reserve::<Long>(0) else {
        count(Counter::RingFull);
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: as in `send`; the helper writes at most the size of the array.
    unsafe {
        (&raw mut (*record).header).write(*header);
        let got = bpf_get_stack(
            ctx.as_ptr(),
            (&raw mut (*record).stack).cast(),
            (MAX_STACK * 8) as u32,
            u64::from(BPF_F_USER_STACK),
        );
        let frames = if got > 0 { (got as u64 / 8) as u16 } else { 0 };
        if frames == 0 {
            count(Counter::StackUnreadable);
        }
        (&raw mut (*record).header.stack_len).write(frames);
    }
    entry.submit(wakeup());
    count(Counter::Sent);
}
