//! `claw-ebpf goroutines`: from a live process or a core dump to groups of
//! goroutines by stack.

mod group;
mod verdicts;

use std::{io, sync::Arc, time::Instant};

use self::group::{Grouper, Names};
use super::clock::{monotonic_ns, wall_ns};
use crate::{
    report::{
        clean::clean,
        goroutines::{Dump, SCHEMA, Unseen},
    },
    target::{
        core::go::GoCore,
        go::{
            binary::GoBinary,
            goroutines::LookError,
            program::{GoProgram, OpenError},
            snapshot::{Registers, snapshot},
            unwind::Unwinder,
            variables::{ALLGS, VariableError},
        },
        memory::{Memory, ProcessMemory},
        process::Process,
    },
};

pub use self::verdicts::{Judging, judged_goroutines};
pub use crate::target::Source;

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0}: not built for a processor that is supported (x86-64)")]
    Machine(String),
    #[error("{name}: goroutines cannot be found: {source}")]
    Variable { name: String, source: VariableError },
    #[error("{name}: goroutines cannot be read: {source}")]
    Look { name: String, source: LookError },
    #[error("cannot wait for signals: {0}")]
    Io(#[from] io::Error),
}

impl DumpError {
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Open(e) if e.is_permission())
    }
}

/// Read every goroutine; `system` keeps the runtime's own.
///
/// # Errors
/// One line, why they cannot be read.
pub fn goroutines(source: &Source, system: bool) -> Result<Dump, DumpError> {
    match source {
        Source::Process(pid) => live(*pid, system),
        Source::Core { path, exe } => dead(&GoProgram::of_core(path, exe.as_deref())?, system),
    }
}

fn opened(pid: u32) -> Result<(Process, GoProgram<ProcessMemory>), DumpError> {
    let process = Process::open(pid).map_err(OpenError::from)?;
    let program = GoProgram::open(&process, |exe| GoBinary::open(exe).map(Arc::new))?;
    Ok((process, program))
}

/// Address of the slice of all goroutines.
fn allgs(program: &GoProgram<impl Memory>) -> Result<u64, DumpError> {
    let name = || program.name.clone();
    if !program.binary.is_x86_64() {
        return Err(DumpError::Machine(name()));
    }
    let found = ALLGS.find(&program.binary);
    let found = found.map_err(|source| DumpError::Variable { name: name(), source })?;
    Ok(found.wrapping_add(program.bias))
}

fn live(pid: u32, system: bool) -> Result<Dump, DumpError> {
    let (process, program) = opened(pid)?;
    let about = About {
        pid,
        process: clean(&process.name),
        exe: clean(&process.exe),
        core: None,
        now_ns: Some(monotonic_ns()),
        time_nanos: i64::try_from(wall_ns()).unwrap_or(0),
        missing: 0,
    };
    read(&program, &[], about, system)
}

fn dead(program: &GoProgram<GoCore>, system: bool) -> Result<Dump, DumpError> {
    let core = &program.memory;
    let process = core.exe.file_name().map(|n| n.to_string_lossy().into_owned());
    let registers: Vec<Registers> = core.core.notes.threads.iter().map(|t| (t.pc, t.sp)).collect();
    let about = About {
        pid: core.core.notes.pid.unwrap_or(0),
        process: clean(&process.unwrap_or_default()),
        exe: clean(&core.exe.to_string_lossy()),
        core: Some(clean(&core.core.path.to_string_lossy())),
        now_ns: None,
        time_nanos: 0,
        missing: core.core.missing_bytes,
    };
    read(program, &registers, about, system)
}

struct About {
    pid: u32,
    process: String,
    exe: String,
    core: Option<String>,
    /// On the clock of `g.waitsince`; not known of a core dump.
    now_ns: Option<u64>,
    time_nanos: i64,
    missing: u64,
}

fn read(
    program: &GoProgram<impl Memory>,
    registers: &[Registers],
    about: About,
    system: bool,
) -> Result<Dump, DumpError> {
    let began = Instant::now();
    let GoProgram { name, binary, layout, bias, memory } = program;
    let allgs = allgs(program)?;
    let mut unwinder = Unwinder::new(binary, *bias);
    let s = snapshot(memory, layout, allgs, &mut unwinder, registers)
        .map_err(|source| DumpError::Look { name: name.clone(), source })?;
    let text = binary.elf().segments.iter().find(|s| s.executable);
    let mapping = text.map_or((0, 0, 0, String::new()), |t| {
        let start = t.vaddr.wrapping_add(*bias);
        (start, start.wrapping_add(t.mem_size), t.offset, about.exe.clone())
    });
    let names = Names::new(about.pid, Arc::clone(binary), *bias);
    let unseen = Unseen {
        torn_slots: s.torn_slots,
        retried: s.retried,
        core_missing_bytes: about.missing,
        ..Unseen::default()
    };
    let mut grouper = Grouper::new(layout, names, about.now_ns, unseen);
    let groups = grouper.groups(memory, &s, system);
    Ok(Dump {
        schema: SCHEMA,
        timestamp: about.now_ns.and_then(|_| rfc3339(about.time_nanos)),
        pid: about.pid,
        process: about.process,
        version: clean(&binary.version.raw),
        core: about.core,
        goroutines: groups.iter().map(|g| g.count).sum(),
        stacks: s.stacks.len(),
        unseen: grouper.unseen,
        elapsed_ms: (began.elapsed().as_secs_f64() * 1e4).round() / 10.0,
        groups,
        report: None,
        mapping,
        time_nanos: about.time_nanos,
    })
}

fn rfc3339(ns: i64) -> Option<String> {
    let t = time::OffsetDateTime::from_unix_timestamp_nanos(ns.into()).ok()?;
    t.replace_nanosecond(0).ok()?.format(&time::format_description::well_known::Rfc3339).ok()
}
