//! Probes on the Go runtime: its allocation sampler, goroutine creation and
//! exit, and the end of each mark phase.
//!
//! The programs are attached after the stack check of the function they
//! watch, where its arguments are still in registers and which is passed once
//! per call (`morestack` jumps back to the entry).

use aya_ebpf::{
    macros::{map, uprobe},
    maps::HashMap,
    programs::ProbeContext,
};
use claw_common::{Counter, EventKind, GoTarget, config::MAX_TARGETS};

use crate::{
    emit::{account, count, header, now, send, send_with_stack, tgid},
    labels, regs,
    user::read,
};

/// The processes that are watched.
#[map]
pub static TARGETS: HashMap<u32, GoTarget> = HashMap::with_max_entries(MAX_TARGETS, 0);

/// The kernel can call a probe for a process that only shares the binary, so
/// membership is decided here and not by the attachment.
#[inline(always)]
fn target() -> Option<&'static GoTarget> {
    // SAFETY: entries are replaced whole by the agent; a stale copy only
    // mislabels events of a process that is being detached.
    let found = unsafe { TARGETS.get(&tgid()) };
    if found.is_none() {
        count(Counter::ForeignProcess);
    }
    found
}

/// The user goroutine on the thread whose `g` is given, which may be `g0`.
#[inline(always)]
pub fn user_goroutine(target: &GoTarget, g: u64) -> Option<u64> {
    let m: u64 = read(g, target.g_m)?;
    read(m, target.m_curg)
}

/// `profilealloc(mp *m, x unsafe.Pointer, size uintptr)`.
#[uprobe]
pub fn go_profilealloc(ctx: ProbeContext) -> u32 {
    let start = now();
    let Some(target) = target() else { return 0 };
    let mut h = header(EventKind::GoAlloc, start);
    h.addr = regs::arg1(&ctx);
    h.size = regs::arg2(&ctx);
    match read::<u64>(regs::arg0(&ctx), target.m_curg) {
        Some(0) => {} // the runtime itself allocates, on g0
        Some(g) => {
            h.goid = read(g, target.g_goid).unwrap_or(0);
            labels::tenant(target, g, &mut h.label);
        }
        None => count(Counter::GoroutineUnreadable),
    }
    send_with_stack(&ctx, &h);
    account(EventKind::GoAlloc, start);
    0
}

/// `freeSpecial(s *special, p unsafe.Pointer, size uintptr)`.
#[uprobe]
pub fn go_freespecial(ctx: ProbeContext) -> u32 {
    let start = now();
    let Some(target) = target() else { return 0 };
    let special = regs::arg0(&ctx);
    let kind: u8 = read(special, target.special_kind).unwrap_or(0);
    if u32::from(kind) == target.special_kind_profile {
        let mut h = header(EventKind::GoFree, start);
        h.addr = regs::arg1(&ctx);
        h.size = regs::arg2(&ctx);
        h.aux = read(special, target.special_bucket).unwrap_or(0);
        send(&h);
    } else {
        count(Counter::OtherSpecial);
    }
    account(EventKind::GoFree, start);
    0
}

#[inline(always)]
fn goroutine_new(ctx: &ProbeContext, new: u64) -> u32 {
    let start = now();
    let Some(target) = target() else { return 0 };
    let mut h = header(EventKind::GoroutineNew, start);
    h.addr = new;
    match read(new, target.g_goid) {
        Some(id) => h.aux = id,
        None => {
            count(Counter::GoroutineUnreadable);
            return 0;
        }
    }
    h.gopc = read(new, target.g_gopc).unwrap_or(0);
    h.startpc = read(new, target.g_startpc).unwrap_or(0);
    if let Some(creator) = user_goroutine(target, regs::g(ctx)) {
        h.goid = read(creator, target.g_goid).unwrap_or(0);
    }
    labels::tenant(target, new, &mut h.label);
    send_with_stack(ctx, &h);
    account(EventKind::GoroutineNew, start);
    0
}

/// Where `newproc1` has returned the new `g` in the result register.
#[uprobe]
pub fn go_newproc_result(ctx: ProbeContext) -> u32 {
    goroutine_new(&ctx, regs::arg0(&ctx))
}

/// The call `runqput(pp, newg, next)` that follows in `newproc`.
#[uprobe]
pub fn go_newproc_runqput(ctx: ProbeContext) -> u32 {
    goroutine_new(&ctx, regs::arg1(&ctx))
}

/// `gdestroy(gp *g)` (Go ≥ 1.22), `goexit0(gp *g)` (Go ≤ 1.21).
#[uprobe]
pub fn go_goexit(ctx: ProbeContext) -> u32 {
    let start = now();
    let Some(target) = target() else { return 0 };
    let mut h = header(EventKind::GoroutineExit, start);
    h.addr = regs::arg0(&ctx);
    match read(h.addr, target.g_goid) {
        Some(id) => h.aux = id,
        None => {
            count(Counter::GoroutineUnreadable);
            return 0;
        }
    }
    h.gopc = read(h.addr, target.g_gopc).unwrap_or(0);
    send(&h);
    account(EventKind::GoroutineExit, start);
    0
}

/// `gcMarkTermination`, once per collection.
#[uprobe]
pub fn go_gc(_ctx: ProbeContext) -> u32 {
    let start = now();
    if target().is_none() {
        return 0;
    }
    send(&header(EventKind::GoGc, start));
    account(EventKind::GoGc, start);
    0
}
