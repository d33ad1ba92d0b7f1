//! Hardware watchpoints on the containers that grow in a CPython process.
//!
//! A CPU has four (x86-64: `DR0` to `DR3`), each thread its own set of them, and
//! a debugger may use some. New threads inherit them.

use aya::{
    Ebpf,
    programs::{
        PerfEvent,
        perf_event::{
            BreakpointConfig, PerfBreakpointLength, PerfBreakpointType, PerfEventConfig,
            PerfEventLink, PerfEventScope, SamplePolicy,
        },
    },
};

use super::object::ProbeError;
use crate::target::process::threads;

const PROGRAM: &str = "py_stored";
/// Containers of one process that are watched at once.
pub const MOST: usize = 4;
/// Threads of one process: each takes a file descriptor per container.
const MOST_THREADS: usize = 256;

/// Sets watchpoints. Loads its program when the first is set: where the kernel
/// refuses that, windows do without.
pub struct Watchpoints {
    bpf: Ebpf,
    loaded: bool,
}

/// Watchpoints that are set; dropping them takes them away.
#[derive(Debug, Default)]
pub struct Stored {
    _links: Vec<PerfEventLink>,
}

impl Watchpoints {
    pub fn new(bpf: Ebpf) -> Self {
        Self { bpf, loaded: false }
    }

    /// One on each count of elements, given by its address, in every thread.
    ///
    /// # Errors
    /// When the kernel refuses: what has been set by then is taken away.
    pub fn set(
        &mut self,
        pid: u32,
        counts: impl Iterator<Item = u64> + Clone,
    ) -> Result<Stored, ProbeError> {
        let refused = |e| ProbeError::Watchpoint { pid, source: e };
        let program = self.bpf.program_mut(PROGRAM).ok_or(ProbeError::Missing(PROGRAM))?;
        let program: &mut PerfEvent = program.try_into().map_err(refused)?;
        if !self.loaded {
            program.load().map_err(refused)?;
            self.loaded = true;
        }
        let mut links = Vec::new();
        for thread in threads(pid).into_iter().flatten().take(MOST_THREADS) {
            for address in counts.clone() {
                let at = BreakpointConfig::Data {
                    r#type: PerfBreakpointType::Write,
                    address,
                    length: PerfBreakpointLength::Len8,
                };
                let scope = PerfEventScope::OneProcess { pid: thread, cpu: None };
                let each = SamplePolicy::Period(1);
                match program.attach(PerfEventConfig::Breakpoint(at), scope, each, true) {
                    Ok(id) => links.push(program.take_link(id).map_err(refused)?),
                    // One that has ended since.
                    Err(_) if !is_there(pid, thread) => break,
                    Err(e) => return Err(refused(e)),
                }
            }
        }
        Ok(Stored { _links: links })
    }
}

fn is_there(pid: u32, thread: u32) -> bool {
    std::fs::exists(format!("/proc/{pid}/task/{thread}")).unwrap_or(false)
}
