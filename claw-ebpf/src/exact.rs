//! Exact mode: counts every allocation and every new goroutine of an open
//! window in maps, by stack, tenant, type and size class. The agent reads sums.
//!
//! One program for all functions, told apart by the attach cookie, so that one
//! link opens and closes a window.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_USER_STACK, BPF_NOEXIST},
    helpers::{bpf_get_attach_cookie, bpf_get_stackid},
    macros::{map, uprobe},
    maps::{HashMap, StackTrace},
    programs::ProbeContext,
};
use claw_common::{
    EventKind, ExactKey, ExactSite, ExactTarget, ExactValue, GoTarget, RecordedLabel, WindowStat,
    config::MAX_TARGETS,
    exact::{MAX_KEYS, MAX_STACKS},
};

use crate::{
    emit::{add, charge, header, now, send_counting, tgid},
    go::{TARGETS, user_goroutine},
    labels, regs,
    user::read,
};

#[map]
static EXACT_TARGETS: HashMap<u32, ExactTarget> = HashMap::with_max_entries(MAX_TARGETS, 0);

#[map]
static EXACT_WINDOWS: HashMap<u32, WindowStat> = HashMap::with_max_entries(MAX_TARGETS, 0);

#[map]
static EXACT_COUNTS: HashMap<ExactKey, ExactValue> = HashMap::with_max_entries(MAX_KEYS, 0);

#[map]
static EXACT_STACKS: StackTrace = StackTrace::with_max_entries(MAX_STACKS, 0);

#[uprobe]
pub fn go_exact(ctx: ProbeContext) -> u32 {
    let start = now();
    let pid = tgid();
    // SAFETY: entries are replaced whole by the agent; a stale copy miscounts
    // what happens while a window opens or closes, which is not counted.
    let (Some(exact), Some(go)) = (unsafe { EXACT_TARGETS.get(&pid) }, unsafe {
        TARGETS.get(&pid)
    }) else {
        return 0;
    };
    let Some(stat) = EXACT_WINDOWS.get_ptr_mut(&pid) else { return 0 };
    if exact.active != 0 {
        hit(&ctx, pid, exact, go, stat);
    }
    // SAFETY: stat points to a map value of its type.
    charge(unsafe { &raw mut (*stat).cost }, start);
    0
}

#[inline(always)]
fn hit(ctx: &ProbeContext, pid: u32, exact: &ExactTarget, go: &GoTarget, stat: *mut WindowStat) {
    // SAFETY: the helper has no preconditions beyond a live context.
    let site = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let mut key =
        ExactKey { tgid: pid, stack: -1, typ: 0, caller: 0, class: 0, _pad: 0, label: RecordedLabel::UNSET };
    let mut size = 0;
    // Read once, here: a load behind a choice of address is one from a computed
    // context pointer, which the verifier refuses.
    let (first, second) = (regs::arg0(ctx), regs::arg1(ctx));
    if site == ExactSite::NewprocRunqput as u64 || site == ExactSite::NewprocResult as u64 {
        let new = if site == ExactSite::NewprocResult as u64 { first } else { second };
        key.class = ExactKey::GOROUTINE;
        key.caller = read(new, go.g_gopc).unwrap_or(0);
        key.typ = read(new, go.g_startpc).unwrap_or(0);
        labels::tenant(go, new, &mut key.label);
    } else {
        size = first;
        key.caller = read(regs::sp(ctx), 0).unwrap_or(0);
        let nested = site == ExactSite::Specialised as u64
            && (within(key.caller, &exact.malloc) || within(key.caller, &exact.specialised));
        // An object of no size takes no memory: all of them are one address.
        if size == 0 || nested {
            return;
        }
        key.typ = second;
        key.class = 64 - size.leading_zeros();
        match user_goroutine(go, regs::g(ctx)) {
            Some(0) => {} // the runtime itself allocates, on g0
            Some(g) => labels::tenant(go, g, &mut key.label),
            // SAFETY: as above.
            None => unsafe { add(&raw mut (*stat).goroutine_unreadable, 1) },
        }
        let mut stack = stack_id(ctx, 0);
        if stack < 0 {
            // Its place is taken: without the leaf it has another.
            stack = stack_id(ctx, 1);
        }
        if stack < 0 {
            // SAFETY: as above.
            unsafe { add(&raw mut (*stat).stack_lost, 1) };
        } else {
            key.stack = stack as i32;
        }
        if exact.stream != 0 {
            let mut h = header(EventKind::GoEveryAlloc, now());
            h.size = size;
            h.aux = key.typ;
            h.gopc = key.caller;
            h.addr = key.stack as i64 as u64;
            h.label = key.label;
            if !send_counting(&h) {
                // SAFETY: as above.
                unsafe { add(&raw mut (*stat).stream_lost, 1) };
            }
        }
    }
    count(&key, size, stat);
}

#[inline(always)]
fn stack_id(ctx: &ProbeContext, skip: u64) -> i64 {
    // SAFETY: the map lives as long as the program.
    unsafe {
        bpf_get_stackid(
            ctx.as_ptr(),
            (&raw const EXACT_STACKS).cast_mut().cast(),
            u64::from(BPF_F_USER_STACK) | skip,
        )
    }
}

#[inline(always)]
fn within(address: u64, range: &[u64; 2]) -> bool {
    address >= range[0] && address < range[1]
}

#[inline(always)]
fn count(key: &ExactKey, size: u64, stat: *mut WindowStat) {
    if let Some(v) = EXACT_COUNTS.get_ptr_mut(key) {
        // SAFETY: v points to a map value of this type.
        unsafe {
            add(&raw mut (*v).count, 1);
            add(&raw mut (*v).bytes, size);
        }
        return;
    }
    let first = ExactValue { count: 1, bytes: size };
    if EXACT_COUNTS.insert(key, &first, u64::from(BPF_NOEXIST)).is_ok() {
        return;
    }
    // Another CPU was faster, or there is no room.
    match EXACT_COUNTS.get_ptr_mut(key) {
        // SAFETY: as above.
        Some(v) => unsafe {
            add(&raw mut (*v).count, 1);
            add(&raw mut (*v).bytes, size);
        },
        // SAFETY: stat points to a map value of its type.
        None => unsafe { add(&raw mut (*stat).overflow, 1) },
    }
}
