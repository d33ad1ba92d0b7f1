//! `claw-ebpf goroutines`: from a live process or a core dump to groups of
//! goroutines by stack.

mod group;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use self::group::{Grouper, Names};
use super::clock::{monotonic_ns, wall_ns};
use crate::{
    report::{
        clean::clean,
        goroutines::{Dump, SCHEMA, Unseen},
    },
    target::{
        core::{CoreError, go::GoCore},
        go::{
            binary::{GoBinary, GoBinaryError},
            goroutines::LookError,
            layout::{GoLayout, LayoutError},
            snapshot::{Registers, snapshot},
            unwind::Unwinder,
            variables::{ALLGS, VariableError},
        },
        memory::{Memory, ProcessMemory},
        process::{Process, ProcessError},
    },
};

/// Where goroutines are read from.
#[derive(Clone, Debug)]
pub enum Source {
    Process(u32),
    Core { path: PathBuf, exe: Option<PathBuf> },
}

#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Core(#[from] CoreError),
    #[error("{name}: {source}")]
    Binary { name: String, source: GoBinaryError },
    #[error("{name}: {source}")]
    Layout { name: String, source: LayoutError },
    #[error("{name}: not built for a processor that is supported (x86-64)")]
    Machine { name: String },
    #[error("{name}: goroutines cannot be found: {source}")]
    Variable { name: String, source: VariableError },
    #[error(
        "process {0}: not permitted to read its memory: run as root, or see `claw-ebpf doctor`"
    )]
    Permission(u32),
    #[error("process {pid}: its memory cannot be read: {source}")]
    Memory { pid: u32, source: std::io::Error },
    #[error("{name}: goroutines cannot be read: {source}")]
    Look { name: String, source: LookError },
}

impl DumpError {
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Permission(_) | Self::Process(ProcessError::Permission(_)))
    }
}

/// Read every goroutine; `system` keeps the runtime's own.
///
/// # Errors
/// One line, why they cannot be read.
pub fn goroutines(source: &Source, system: bool) -> Result<Dump, DumpError> {
    match source {
        Source::Process(pid) => live(*pid, system),
        Source::Core { path, exe } => dead(path, exe.as_deref(), system),
    }
}

fn live(pid: u32, system: bool) -> Result<Dump, DumpError> {
    let process = Process::open(pid)?;
    let name = format!("process {pid} ({})", clean(&process.name));
    let binary = GoBinary::open(&process.exe_path())
        .map_err(|source| DumpError::Binary { name: name.clone(), source })?;
    let bias = process.load_bias(binary.elf().first_vaddr())?;
    let memory = ProcessMemory::open(pid).map_err(|source| match source.kind() {
        std::io::ErrorKind::PermissionDenied => DumpError::Permission(pid),
        _ => DumpError::Memory { pid, source },
    })?;
    let time = i64::try_from(wall_ns()).unwrap_or(0);
    let about = About {
        name,
        pid,
        process: clean(&process.name),
        exe: clean(&process.exe),
        core: None,
        now_ns: Some(monotonic_ns()),
        time_nanos: time,
        missing: 0,
    };
    read(&memory, &[], Arc::new(binary), bias, about, system)
}

fn dead(path: &Path, exe: Option<&Path>, system: bool) -> Result<Dump, DumpError> {
    let core = GoCore::open(path, exe)?;
    let name = format!("core {}", path.display());
    let process = core.exe.file_name().map(|n| n.to_string_lossy().into_owned());
    let registers: Vec<Registers> = core.core.notes.threads.iter().map(|t| (t.pc, t.sp)).collect();
    let about = About {
        name,
        pid: core.core.notes.pid.unwrap_or(0),
        process: clean(&process.unwrap_or_default()),
        exe: clean(&core.exe.to_string_lossy()),
        core: Some(clean(&path.to_string_lossy())),
        now_ns: None,
        time_nanos: 0,
        missing: core.core.missing_bytes,
    };
    let (binary, bias) = (Arc::clone(&core.binary), core.bias);
    read(&core, &registers, binary, bias, about, system)
}

struct About {
    name: String,
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
    memory: &impl Memory,
    registers: &[Registers],
    binary: Arc<GoBinary>,
    bias: u64,
    about: About,
    system: bool,
) -> Result<Dump, DumpError> {
    let began = Instant::now();
    let name = || about.name.clone();
    if !binary.is_x86_64() {
        return Err(DumpError::Machine { name: name() });
    }
    let layout = GoLayout::of(&binary.version)
        .map_err(|source| DumpError::Layout { name: name(), source })?;
    let allgs = ALLGS
        .find(&binary)
        .map_err(|source| DumpError::Variable { name: name(), source })?
        .wrapping_add(bias);
    let mut unwinder = Unwinder::new(&binary, bias);
    let s = snapshot(memory, layout, allgs, &mut unwinder, registers)
        .map_err(|source| DumpError::Look { name: name(), source })?;
    let text = binary.elf().segments.iter().find(|s| s.executable);
    let mapping = text.map_or((0, 0, 0, String::new()), |t| {
        let start = t.vaddr.wrapping_add(bias);
        (start, start.wrapping_add(t.mem_size), t.offset, about.exe.clone())
    });
    let names = Names::new(about.pid, Arc::clone(&binary), bias);
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
        mapping,
        time_nanos: about.time_nanos,
    })
}

fn rfc3339(ns: i64) -> Option<String> {
    let t = time::OffsetDateTime::from_unix_timestamp_nanos(ns.into()).ok()?;
    t.replace_nanosecond(0).ok()?.format(&time::format_description::well_known::Rfc3339).ok()
}
