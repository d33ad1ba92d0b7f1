//! The embedded BPF object: load it, attach it, read its ring and counters.

use std::{
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf},
    programs::RawTracePoint,
};
use claw_common::{
    Counter, EventKind, GoTarget, ProbeStat, TenantKey,
    config::MAX_KEYS,
    loss::{COUNTERS, LOSSES, PROBES},
};
use tokio::io::unix::AsyncFd;

use super::{
    exact::{Exact, LARGE_MAPS},
    link::{Beside, Links, Loaded, Place},
    native,
    plan::{Point, Program},
    pywindow,
};
use crate::stream::Part;

#[cfg(target_arch = "x86_64")]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/claw-x86_64.o");
#[cfg(target_arch = "aarch64")]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/claw-aarch64.o");

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(
        "the kernel did not accept the BPF programs ({0}): `claw-ebpf doctor` says what is missing"
    )]
    Load(String),
    #[error("BPF map {0}: {1}")]
    Map(&'static str, MapError),
    #[error("the BPF object has no {0}")]
    Missing(&'static str),
    #[error("cannot attach to {function} in process {pid}: {source}")]
    Attach { pid: u32, function: &'static str, source: std::io::Error },
    #[error("cannot open a window on process {pid}: {source}")]
    Window { pid: u32, source: std::io::Error },
    #[error("no hardware watchpoint in process {pid}: {source}")]
    Watchpoint { pid: u32, source: aya::programs::ProgramError },
    #[error("tenant label key {0:?} is empty or longer than 32 bytes")]
    Key(String),
    #[error("at most {MAX_KEYS} tenant label keys can be looked for, got {0}")]
    Keys(usize),
}

/// The loaded programs. Dropping it detaches everything.
pub struct Probes {
    /// Keeps the probes on exec and exit attached.
    _bpf: Ebpf,
    programs: Vec<(Program, Loaded)>,
    ring: RingBuf<MapData>,
    targets: HashMap<MapData, u32, GoTarget>,
    losses: PerCpuArray<MapData, u64>,
    stats: PerCpuArray<MapData, ProbeStat>,
    exact: Option<Arc<Exact>>,
}

/// The links of one process; give it back to [`Probes::detach`].
#[derive(Debug)]
pub struct Attachment {
    pid: u32,
    links: Vec<(Program, Links)>,
}

/// Records taken out of the ring in one go.
const MOST_AT_ONCE: usize = 1 << 16;

/// Cumulative counters of the BPF side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfCounters {
    pub sent: u64,
    /// By reason, every reason present.
    pub lost: Vec<(&'static str, u64)>,
    /// Per kind of event: runs of its probes and ns inside them.
    pub probes: Vec<(EventKind, ProbeStat)>,
}

impl BpfCounters {
    pub fn hits(&self) -> u64 {
        self.probes.iter().map(|(_, s)| s.hits).sum()
    }

    pub fn ns(&self) -> u64 {
        self.probes.iter().map(|(_, s)| s.ns).sum()
    }

    /// Events that found no room in the ring.
    pub fn no_room(&self) -> u64 {
        let ring_full = LOSSES.iter().position(|l| l.counter == Counter::RingFull);
        ring_full.and_then(|i| self.lost.get(i)).map_or(0, |(_, n)| *n)
    }

    /// Mean ns of one run of the programs that report `kinds`.
    pub fn mean_ns(&self, kinds: &[EventKind]) -> f64 {
        let stats = || kinds.iter().map(|k| self.kind(*k));
        let hits: u64 = stats().map(|s| s.hits).sum();
        stats().map(|s| s.ns).sum::<u64>() as f64 / hits.max(1) as f64
    }

    fn kind(&self, kind: EventKind) -> ProbeStat {
        self.probes.iter().find(|(k, _)| *k == kind).map(|(_, s)| *s).unwrap_or_default()
    }
}

pub(super) fn load_error(e: impl std::error::Error) -> ProbeError {
    // The verifier's log follows the first line; the cause stands in the chain.
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text = format!("{text}: {s}");
        source = s.source();
    }
    ProbeError::Load(text.lines().next().unwrap_or_default().to_owned())
}

/// The map of that name, which nobody else can take any more.
pub(super) fn take<M>(bpf: &mut Ebpf, name: &'static str) -> Result<M, ProbeError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let map = bpf.take_map(name).ok_or(ProbeError::Missing(name))?;
    map.try_into().map_err(|e| ProbeError::Map(name, e))
}

impl Probes {
    /// Load and verify all programs and watch for exec and exit. `keys` are the
    /// tenant label keys in order of preference, `ring_bytes` a power of two;
    /// `exact` loads the program of exact mode too.
    ///
    /// # Errors
    /// When the kernel refuses, with the reason.
    pub fn load(keys: &[String], ring_bytes: u32, exact: bool) -> Result<Self, ProbeError> {
        if keys.len() > MAX_KEYS {
            return Err(ProbeError::Keys(keys.len()));
        }
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("EVENTS", ring_bytes);
        if !exact {
            for name in LARGE_MAPS {
                loader.map_max_entries(name, 1);
            }
        }
        for name in pywindow::LARGE_MAPS.into_iter().chain(native::LARGE_MAPS) {
            loader.map_max_entries(name, 1);
        }
        let mut bpf = loader.load(OBJECT).map_err(load_error)?;
        let beside = Beside::new(OBJECT, &bpf)?;
        let load = |p: Program| Ok((p, beside.load(p.name())?));
        let programs = Program::ALL.into_iter().map(load).collect::<Result<_, ProbeError>>()?;
        let exact = if exact { Some(Arc::new(Exact::load(&beside, &mut bpf)?)) } else { None };
        let ring = take(&mut bpf, "EVENTS")?;
        let targets = take(&mut bpf, "TARGETS")?;
        let losses = take(&mut bpf, "LOSSES")?;
        let stats = take(&mut bpf, "PROBE_STATS")?;
        let mut wakeup: Array<MapData, u32> = take(&mut bpf, "WAKEUP_BYTES")?;
        wakeup.set(0, ring_bytes / 4, 0).map_err(|e| ProbeError::Map("WAKEUP_BYTES", e))?;
        let mut ranks: HashMap<MapData, TenantKey, u32> = take(&mut bpf, "TENANT_KEYS")?;
        for (rank, key) in (0u32..).zip(keys) {
            let key = TenantKey::new(key).ok_or_else(|| ProbeError::Key(key.clone()))?;
            ranks.insert(key, rank, 0).map_err(|e| ProbeError::Map("TENANT_KEYS", e))?;
        }
        for (program, tracepoint) in
            [("process_exec", "sched_process_exec"), ("process_exit", "sched_process_exit")]
        {
            let p: &mut RawTracePoint = bpf
                .program_mut(program)
                .and_then(|p| p.try_into().ok())
                .ok_or(ProbeError::Missing("process programs"))?;
            p.load().map_err(load_error)?;
            p.attach(tracepoint).map_err(load_error)?;
        }
        // Written once; the programs hold these maps from here on.
        drop((ranks, wakeup));
        Ok(Self { _bpf: bpf, programs, ring, targets, losses, stats, exact })
    }

    /// What opens windows, in exact mode.
    pub fn exact(&self) -> Option<&Arc<Exact>> {
        self.exact.as_ref()
    }

    /// Attach `points` to process `pid`. On an error nothing stays attached.
    ///
    /// # Errors
    /// With the function that could not be probed.
    pub fn attach(
        &mut self,
        pid: u32,
        config: GoTarget,
        points: &[Point],
    ) -> Result<Attachment, ProbeError> {
        self.targets.insert(pid, config, 0).map_err(|e| ProbeError::Map("TARGETS", e))?;
        self.attach_foreign(pid, points)
    }

    /// As [`Self::attach`], to a process that is no target: its hits are
    /// counted as foreign and send nothing.
    ///
    /// # Errors
    /// With the function that could not be probed.
    pub fn attach_foreign(&mut self, pid: u32, points: &[Point]) -> Result<Attachment, ProbeError> {
        let mut links = Vec::new();
        let exe = PathBuf::from(format!("/proc/{pid}/exe"));
        for (program, loaded) in &self.programs {
            let of = || points.iter().filter(|p| p.program == *program);
            let Some(first) = of().next() else { continue };
            let places: Vec<Place> =
                of().map(|p| Place { file_offset: p.file_offset, cookie: 0 }).collect();
            let attached = loaded.attach(pid, &exe, &places).map_err(|source| {
                let function = first.function;
                ProbeError::Attach { pid, function, source }
            });
            links.push((*program, attached?));
        }
        Ok(Attachment { pid, links })
    }

    /// Detach a process: the kernel waits until nobody is inside. Where probes
    /// are perf events that takes some 0.1 s for each.
    pub fn detach(&mut self, attachment: Attachment) {
        // Gone already when the process exited.
        let _ = self.targets.remove(&attachment.pid);
        drop(attachment.links);
    }

    /// Detach the probes of one part; the others stay.
    pub fn detach_part(&mut self, attachment: &mut Attachment, part: Part) {
        attachment.links.retain(|(program, _)| program.part() != part);
    }

    /// Hand the records that are in the ring to `f`, but not more than
    /// [`MOST_AT_ONCE`]: a target can fill it as fast as it is emptied.
    pub fn drain(&mut self, mut f: impl FnMut(&[u8])) {
        for _ in 0..MOST_AT_ONCE {
            let Some(item) = self.ring.next() else { break };
            f(&item);
        }
    }

    /// Becomes readable when a quarter of the ring is full. The descriptor is a
    /// duplicate and needs a runtime with I/O enabled.
    ///
    /// # Errors
    /// When no descriptor is free.
    pub fn readable(&self) -> std::io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: the descriptor is open, as long as the ring lives.
        let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        let fd = ring.try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` always is the same open descriptor.
        unsafe { AsyncFd::register(fd) }.map_err(std::io::Error::other)
    }

    /// # Errors
    /// When a counter map cannot be read.
    pub fn counters(&self) -> Result<BpfCounters, ProbeError> {
        let mut totals = [0u64; COUNTERS as usize];
        for (i, total) in (0u32..).zip(&mut totals) {
            let per_cpu = self.losses.get(&i, 0).map_err(|e| ProbeError::Map("LOSSES", e))?;
            *total = per_cpu.iter().sum();
        }
        let total = |c: Counter| totals.get(c as usize).copied().unwrap_or_default();
        let mut probes = Vec::new();
        for kind in (0..PROBES as u16).filter_map(EventKind::from_u16) {
            let per_cpu = self
                .stats
                .get(&u32::from(kind as u16), 0)
                .map_err(|e| ProbeError::Map("PROBE_STATS", e))?;
            let stat = per_cpu.iter().fold(ProbeStat::default(), |a, b| ProbeStat {
                hits: a.hits + b.hits,
                ns: a.ns + b.ns,
            });
            probes.push((kind, stat));
        }
        Ok(BpfCounters {
            sent: total(Counter::Sent),
            lost: LOSSES.iter().map(|l| (l.name, total(l.counter))).collect(),
            probes,
        })
    }
}
