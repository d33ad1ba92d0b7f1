//! Threads, from the interpreters' lists; what they wait for, from the kernel.

use std::path::Path;

use super::{Flow, Flows, Line, MOST_FRAMES, Reader};
use crate::target::{
    cpython::threads::{Active, Offsets, ThreadState, frames, threads},
    memory::Memory,
};

/// `struct pthread.tid`, x86-64: of glibc (`nptl/descr.h`) and of musl
/// (`src/internal/pthread_impl.h`). Up to 3.10 a thread's state has the address
/// of that structure alone.
const PTHREAD_TID: [u64; 2] = [720, 48];

/// File of the code object that frames of 3.12 and later have where C code calls
/// Python (`Python/ceval.c`, `_PyEval_EvalFrameDefault`).
const SHIM: &str = "<shim>";

impl<M: Memory> Reader<'_, M> {
    /// Where threads are listed; `runtime` is the address of `_PyRuntime`.
    pub(super) fn offsets(&self, runtime: u64) -> Result<Offsets, String> {
        Offsets::of(self.objects.layout.minor, self.objects.memory, runtime)
            .ok_or_else(|| "the interpreter's list of threads is not known".to_owned())
    }

    /// All threads; `runtime` is the address of `_PyRuntime`.
    ///
    /// # Errors
    /// When where they are listed is not known.
    pub fn threads(&mut self, runtime: u64) -> Result<Flows, String> {
        let (minor, offsets) = (self.objects.layout.minor, self.offsets(runtime)?);
        let mut found = Flows::default();
        for state in threads(self.objects.memory, runtime, minor, &offsets) {
            let flow = if self.budget > 0 { self.thread(state) } else { None };
            match flow {
                Some(flow) => found.all.push(flow),
                None => found.unknown += 1,
            }
        }
        Ok(found)
    }

    fn thread(&mut self, state: ThreadState) -> Option<Flow> {
        let r = self.running;
        let mut stack = Vec::new();
        frames(self.objects.memory, r, state.frame, MOST_FRAMES, &mut stack);
        self.budget = self.budget.saturating_sub(stack.len() as u64);
        // Innermost first; what is no Python function has no code object.
        stack.retain(|f| self.code(f.code).is_some_and(|(code, _)| code.file != SHIM));
        let start = self.start(&stack)?;
        let lines: Vec<Line> = stack.iter().filter_map(|f| self.line(f)).collect();
        let tid = self.tid(state.address);
        let call = tid.zip(self.pid).and_then(|(tid, pid)| system_call(pid, tid));
        let waits_for = call.map(|call| match Self::library_call(&lines) {
            Some(library) => format!("{library} ({call})"),
            None => call.to_owned(),
        });
        let context = self.word(state.address, r.ts_context.into()).unwrap_or(0);
        let pid = self.pid;
        let name = || {
            let (pid, tid) = pid.zip(tid)?;
            let comm = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm"));
            comm.ok().map(|c| c.trim_end().to_owned())
        };
        Some(Flow {
            // Given out in turn by each interpreter.
            id: self.word(state.address, r.ts_id.into())? ^ state.address.rotate_left(24),
            start,
            at: Self::place(&lines),
            waits_for,
            tenant: self.tenant(context, &stack, name),
        })
    }

    /// The outermost function that is not `threading`'s own.
    fn start(&mut self, stack: &[Active]) -> Option<Line> {
        let own = |l: &Line| {
            let name = l.function.rsplit('.').next().unwrap_or_default();
            let begins =
                matches!(name, "_bootstrap" | "_bootstrap_inner") || l.function == "Thread.run";
            // Up to 3.10 `run` does not say whose it is.
            l.file.ends_with("/threading.py") && (begins || name == "run")
        };
        let outward: Vec<Line> = stack.iter().filter_map(|f| self.definition(f)).collect();
        outward.iter().rev().find(|l| !own(l)).or(outward.first()).cloned()
    }

    fn tid(&self, state: u64) -> Option<u32> {
        let pid = self.pid?;
        let exists = |tid: &u32| Path::new(&format!("/proc/{pid}/task/{tid}")).exists();
        let small = |word: u64| u32::try_from(word & 0xffff_ffff).ok().filter(|t| *t != 0);
        if let Some(native) = self.running.ts_native {
            return small(self.word(state, native.into())?).filter(exists);
        }
        let thread = self.word(state, self.running.ts_thread.into())?;
        PTHREAD_TID.iter().find_map(|at| small(self.word(thread, *at)?).filter(exists))
    }
}

/// The system call that a thread stands in, in words; `None` when it runs, or
/// the call is not one that waits.
fn system_call(pid: u32, tid: u32) -> Option<&'static str> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).ok()?;
    let number: i64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    waiting(number)
}

fn waiting(number: i64) -> Option<&'static str> {
    Some(match number {
        libc::SYS_futex => "a lock",
        libc::SYS_clock_nanosleep | libc::SYS_nanosleep => "sleep",
        libc::SYS_read | libc::SYS_pread64 | libc::SYS_readv => "read",
        libc::SYS_write | libc::SYS_pwrite64 | libc::SYS_writev => "write",
        libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_recvmmsg => "recv",
        libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_sendmmsg => "send",
        libc::SYS_accept | libc::SYS_accept4 => "accept",
        libc::SYS_connect => "connect",
        libc::SYS_pselect6 => "select or sleep",
        libc::SYS_ppoll => "poll",
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => "epoll",
        libc::SYS_wait4 | libc::SYS_waitid => "a child process",
        libc::SYS_flock | libc::SYS_fcntl => "a file lock",
        libc::SYS_fsync | libc::SYS_fdatasync => "fsync",
        other => return old_call(other),
    })
}

/// Calls that only some processors have.
#[cfg(target_arch = "x86_64")]
fn old_call(number: i64) -> Option<&'static str> {
    Some(match number {
        libc::SYS_select => "select or sleep",
        libc::SYS_poll => "poll",
        libc::SYS_epoll_wait => "epoll",
        _ => return None,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn old_call(_: i64) -> Option<&'static str> {
    None
}
