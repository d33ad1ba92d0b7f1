//! Exec and exit of targets, by raw tracepoints: no tracefs, no struct reads.

use aya_ebpf::{EbpfContext, macros::raw_tracepoint, programs::RawTracePointContext};
use claw_common::EventKind;

use crate::{
    emit::{header, now, send, tgid},
    go::TARGETS,
};

#[inline(always)]
fn report(kind: EventKind) -> i32 {
    // SAFETY: only membership is asked for.
    if unsafe { TARGETS.get(&tgid()) }.is_some() {
        send(&header(kind, now()));
    }
    0
}

/// `sched_process_exec(p, old_pid, bprm)`: `current` is the new program.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(_ctx: RawTracePointContext) -> i32 {
    report(EventKind::Exec)
}

/// `sched_process_exit(p)` runs for each thread; the leader's counts.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(ctx: RawTracePointContext) -> i32 {
    if ctx.pid() == ctx.tgid() { report(EventKind::Exit) } else { 0 }
}
