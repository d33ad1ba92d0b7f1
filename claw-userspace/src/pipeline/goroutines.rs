//! `claw-ebpf goroutines`: from a live process or a core dump to groups of
//! goroutines by stack.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use rustc_hash::FxHashMap;

use super::clock::{monotonic_ns, wall_ns};
use crate::{
    report::{
        clean::clean,
        goroutines::{Dump, Frame, Group, Member, SCHEMA, Unseen},
    },
    symbol::{self, Symbolizer},
    target::{
        core::{CoreError, go::GoCore},
        go::{
            binary::{GoBinary, GoBinaryError},
            goroutines::{Goroutine, LookError, State},
            labels,
            layout::{GoLayout, LayoutError},
            snapshot::{Registers, Snapshot, StackState, snapshot},
            unwind::Unwinder,
            variables::{ALLGS, VariableError},
            waits,
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
    let mut grouper = Grouper {
        memory,
        layout,
        names: Names::new(about.pid, Arc::clone(&binary), bias),
        labels: FxHashMap::default(),
        now_ns: about.now_ns,
        unseen: Unseen {
            torn_slots: s.torn_slots,
            retried: s.retried,
            core_missing_bytes: about.missing,
            ..Unseen::default()
        },
    };
    let groups = grouper.groups(&s, system);
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

/// Names of addresses, each looked up once.
struct Names {
    symbolizer: Symbolizer,
    bias: u64,
    frames: FxHashMap<u64, Arc<[Frame]>>,
}

impl Names {
    fn new(pid: u32, binary: Arc<GoBinary>, bias: u64) -> Self {
        Self { symbolizer: Symbolizer::new(pid, binary, bias), bias, frames: FxHashMap::default() }
    }

    /// Frames of a return address, innermost first.
    fn of(&mut self, address: u64) -> Arc<[Frame]> {
        if let Some(frames) = self.frames.get(&address) {
            return Arc::clone(frames);
        }
        let call = address.wrapping_sub(1);
        let step = self.symbolizer.binary().unwind_step(call.wrapping_sub(self.bias));
        let entry = step.map_or(call, |s| s.entry.wrapping_add(self.bias));
        let frames: Arc<[Frame]> = self
            .symbolizer
            .frames(address)
            .into_iter()
            .map(|f: symbol::Frame| Frame {
                file: (!f.file.is_empty()).then(|| clean(&f.file)),
                line: (f.line > 0).then_some(f.line),
                function: clean(&f.function),
                inlined: f.inlined,
                address: call,
                offset: address.saturating_sub(entry),
                start_line: f.start_line,
            })
            .collect();
        self.frames.insert(address, Arc::clone(&frames));
        frames
    }

    /// The function itself, also a wrapper.
    fn function(&self, entry: u64) -> Option<String> {
        let step = self.symbolizer.binary().unwind_step(entry.wrapping_sub(self.bias))?;
        Some(clean(&step.function))
    }
}

type Labels = Arc<BTreeMap<String, String>>;

struct Grouper<'a, M> {
    memory: &'a M,
    layout: &'static GoLayout,
    names: Names,
    /// By `g.labels`; `None` when they could not be read.
    labels: FxHashMap<u64, Option<Labels>>,
    now_ns: Option<u64>,
    unseen: Unseen,
}

type Key = (StackState, State, u8, u64, u64, Labels);

impl<M: Memory> Grouper<'_, M> {
    fn groups(&mut self, s: &Snapshot, system: bool) -> Vec<Group> {
        let mut members: FxHashMap<Key, Vec<Member>> = FxHashMap::default();
        for (g, stack) in &s.goroutines {
            if !system && self.is_system(g, *stack, s) {
                self.unseen.system += 1;
                continue;
            }
            match stack {
                StackState::Running => self.unseen.running += 1,
                StackState::Torn => self.unseen.torn += 1,
                StackState::Partial(_) => self.unseen.partial += 1,
                StackState::Known(_) => {}
            }
            let reason = if g.state.waits() { g.wait_reason } else { 0 };
            let labels = self.labels(g.labels);
            let key = (*stack, g.state, reason, g.gopc, g.startpc, labels);
            members.entry(key).or_default().push(self.member(g));
        }
        let mut groups: Vec<Group> =
            members.into_iter().map(|(key, members)| self.group(s, key, members)).collect();
        groups.sort_by_cached_key(|g| {
            (std::cmp::Reverse(g.count), g.members.first().map_or(0, |m| m.id))
        });
        groups
    }

    fn member(&self, g: &Goroutine) -> Member {
        let blocked = g.state.waits() || g.state == State::Syscall;
        let since = Some(g.wait_since).filter(|since| *since > 0 && blocked);
        let waited = since.zip(self.now_ns).and_then(|(since, now)| now.checked_sub(since));
        Member {
            id: g.id,
            parent: (g.parent > 0).then_some(g.parent),
            waiting_at_most_s: waited.map(|ns| (ns / 1_000_000) as f64 / 1e3),
            locked_to_thread: g.locked,
        }
    }

    fn group(&mut self, s: &Snapshot, key: Key, members: Vec<Member>) -> Group {
        let (stack, state, reason, gopc, startpc, labels) = key;
        let (addresses, stack_is): (&[u64], _) = match stack {
            StackState::Known(i) => (stack_at(s, i), "complete"),
            StackState::Partial(i) => (stack_at(s, i), "could not be followed further"),
            StackState::Running => (&[], "not known: it was running"),
            StackState::Torn => (&[], "not known: it changed whenever it was read"),
        };
        let stack = addresses.iter().flat_map(|pc| self.names.of(*pc).to_vec()).collect();
        let reason = state.waits().then(|| waits::reason(self.layout.minor, reason)).flatten();
        Group {
            count: members.len(),
            state: state.name(),
            wait_reason: reason.filter(|r| !r.is_empty()),
            leaked: state == State::Leaked,
            stack_is,
            stack,
            created_by: (gopc > 0).then(|| self.names.of(gopc).last().cloned()).flatten(),
            start_function: self.names.function(startpc),
            labels: labels.as_ref().clone(),
            members,
        }
    }

    fn labels(&mut self, address: u64) -> Labels {
        let (memory, layout) = (self.memory, self.layout.labels);
        let labels = self.labels.entry(address).or_insert_with(|| {
            let all = labels::all(memory, layout, address).ok()?;
            Some(Arc::new(all.iter().map(|(k, v)| (clean(k), clean(v))).collect()))
        });
        match labels {
            Some(labels) => Arc::clone(labels),
            None => {
                self.unseen.labels += 1;
                Labels::default()
            }
        }
    }

    /// `isSystemGoroutine`: the runtime's own, unless it calls back into the
    /// user's code.
    fn is_system(&mut self, g: &Goroutine, stack: StackState, s: &Snapshot) -> bool {
        const USERS: [&str; 3] = ["runtime.main", "runtime.corostart", "runtime.handleAsyncEvent"];
        const CALLBACKS: [&str; 3] =
            ["runtime.runfinq", "runtime.runFinalizers", "runtime.runCleanups"];
        let Some(start) = self.names.function(g.startpc) else { return false };
        if !start.starts_with("runtime.") || USERS.contains(&start.as_str()) {
            return false;
        }
        if !CALLBACKS.contains(&start.as_str()) {
            return true;
        }
        match stack {
            StackState::Known(i) | StackState::Partial(i) => stack_at(s, i)
                .iter()
                .all(|pc| self.names.of(*pc).iter().all(|f| f.function.starts_with("runtime."))),
            StackState::Running | StackState::Torn => false,
        }
    }
}

fn stack_at(s: &Snapshot, i: u32) -> &[u64] {
    s.stacks.get(i as usize).map_or(&[], Vec::as_slice)
}
