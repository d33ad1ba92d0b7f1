//! One live target: from attaching to it until it is let go.

mod before;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rustc_hash::FxHashSet;

use super::{
    Options,
    clock::monotonic_ns,
    every::{Every, start_every},
    governor::{EventCost, Governor, TooMuch},
    looks::Looks,
    naming::{MOST_SEEN, Naming},
    owner::Owner,
    resident::memory,
    still::StillLooks,
    windows::Paused,
};
use crate::{
    decode::{Event, Label, What},
    probe::{Attachment, HitCost, Plan, ProbeError, Probes},
    report::clean::clean,
    stream::{Blocked, Item, Part, Step, StepStatus, TargetInfo},
    symbol::{BinaryCache, Stacks, Symbolizer},
    target::{
        cpython::live::LiveError,
        discover,
        go::{
            layout::GoLayout,
            memprofile::{self, HeapProfile},
            program::{GoProgram, OpenError},
            rate::{self, ChangedRate, RateError},
            variables::{ALLGS, MEM_PROFILE_RATE},
        },
        memory::ProcessMemory,
        process::{Process, ProcessError},
    },
};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("process {pid} ({name}) is not built for this machine's processor")]
    Machine { pid: u32, name: String },
    #[error("process {pid} ({name}): nothing can be watched: {why}")]
    Nothing { pid: u32, name: String, why: String },
    #[error(transparent)]
    Probe(#[from] ProbeError),
    #[error(transparent)]
    Rate(#[from] RateError),
    #[error(transparent)]
    Python(#[from] LiveError),
    #[error(
        "process {pid} ({name}) is neither a Go nor a CPython program: `claw-ebpf discover` \
         lists what can be watched"
    )]
    Neither { pid: u32, name: String },
}

impl From<ProcessError> for StartError {
    fn from(e: ProcessError) -> Self {
        Self::Open(e.into())
    }
}

impl StartError {
    /// It is simply no Go program, or gone: not worth a word when many
    /// processes are tried.
    pub fn is_uninteresting(&self) -> bool {
        match self {
            Self::Open(OpenError::Process(_)) | Self::Neither { .. } => true,
            other => other.is_not_go(),
        }
    }

    pub fn is_not_go(&self) -> bool {
        matches!(self, Self::Open(e) if e.is_not_go())
    }

    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Open(e) if e.is_permission())
    }
}

/// After the sampling rate was changed, each P takes one sample at once that
/// stands for nothing: those of this long, and each thread's first, are not
/// counted.
const SETTLE_NS: u64 = 1_000_000_000;

#[derive(Debug)]
struct Settling {
    until_ns: u64,
    threads: FxHashSet<u32>,
    dropped: u64,
}

#[derive(Debug)]
pub struct Watched {
    pub process: Process,
    attachment: Attachment,
    naming: Naming,
    memory: ProcessMemory,
    rate: Option<ChangedRate>,
    settling: Option<Settling>,
    seen_buckets: FxHashSet<u64>,
    governor: Governor,
    /// What the governor has counted, for exact mode's windows.
    taken_ns: Arc<AtomicU64>,
    /// Of one probe hit, without the program.
    trap_ns: f64,
    /// Stands in for goroutine probes that cost too much.
    looks: Option<Looks>,
    still: Option<StillLooks>,
    layout: &'static GoLayout,
    bias: u64,
    keys: Vec<String>,
    default_tenant: Option<String>,
    /// Counts every allocation, in exact mode.
    every: Option<Every>,
    /// The runtime's own profile, until the stream has it.
    at_attach: Option<HeapProfile>,
}

impl Watched {
    /// Attach to `process`. Gives what the stream has to know about it.
    ///
    /// # Errors
    /// In one line, why it cannot be watched; then nothing is attached.
    pub fn start(
        process: Process,
        binaries: &mut BinaryCache,
        probes: &mut Probes,
        cost: HitCost,
        options: &Options,
    ) -> Result<(Self, TargetInfo, Vec<String>), StartError> {
        let program = GoProgram::open(&process, |exe| binaries.open(exe))?;
        let (pid, name) = (process.pid, process.name.clone());
        if !program.binary.is_x86_64() || !cfg!(target_arch = "x86_64") {
            return Err(StartError::Machine { pid, name });
        }
        let (binary, bias) = (Arc::clone(&program.binary), program.bias);
        let plan = Plan::sampled(&binary);
        let mut blocked = plan.blocked.clone();
        if plan.points.is_empty() {
            let why = blocked.iter().map(|b| b.why.as_str()).collect::<Vec<_>>().join("; ");
            return Err(StartError::Nothing { pid, name, why });
        }
        let attachment = probes.attach(pid, program.layout.target(), &plan.points)?;
        let mut steps = vec![format!("{} probes in {name} (pid {pid})", plan.points.len())];

        // Before the rate is changed: what is there was sampled at the old one.
        let profile = before::read(&program).map_err(|b| blocked.push(b)).ok();
        let GoProgram { layout, memory, .. } = program;
        let rate_address = MEM_PROFILE_RATE.find(&binary).map(|a| a.wrapping_add(bias));
        let found = match &rate_address {
            Ok(address) => rate::current(pid, &memory, *address).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        let mut changed = None;
        let mut sample_rate = found.clone().ok();
        match (&found, options.heap_rate, rate_address) {
            (Ok(old), Some(new), Ok(address)) if *old != new => {
                match ChangedRate::set(&process, address, *old, new) {
                    Ok(rate) => {
                        steps.push(format!(
                            "set MemProfileRate of process {pid} from {old} to {new} (--heap-rate)"
                        ));
                        changed = Some(rate);
                        sample_rate = Some(new);
                    }
                    Err(e) => {
                        probes.detach(attachment);
                        return Err(e.into());
                    }
                }
            }
            (Ok(0), None, _) => blocked.push(discover::no_samples()),
            (Err(why), _, _) => blocked.push(Blocked {
                what: Part::Heap.name().to_owned(),
                why: format!("the sampling rate is unknown, so bytes are too: {why}"),
            }),
            _ => {}
        }
        let t_ns = monotonic_ns();
        let heap_bytes = before::heap_bytes(profile.as_ref(), &process);
        let taken_ns = Arc::new(AtomicU64::new(0));
        let every = start_every(pid, &binary, bias, probes, cost, &taken_ns, options);
        let every = every.map(|started| {
            started.map_err(|why| blocked.push(Blocked { what: "every allocation".into(), why }))
        });
        let every = every.and_then(Result::ok);
        if let Some((_, detail)) = &every {
            steps.push(detail.clone());
        }
        let owner = Owner::of(&process, &options.tenants);
        let info = TargetInfo {
            pid,
            start_ticks: process.start_ticks,
            uptime_ns: process.uptime_ns().unwrap_or(0),
            t_ns,
            name: clean(&name),
            exe: clean(&process.exe),
            runtime: "go".into(),
            version: clean(&binary.version.raw),
            stripped: binary.stripped(),
            container: owner.container,
            mode: if every.is_some() { "exact" } else { "sampled" }.into(),
            sample_rate,
            heap_bytes,
            default_tenant: owner.tenant,
            labels_before_default: owner.labels_before,
            blocked,
        };
        let keys = options.tenants.keys();
        let still = ALLGS
            .find(&binary)
            .map(|a| StillLooks::new(pid, a.wrapping_add(bias), layout, keys.clone()));
        let slow = plan.points.iter().any(|p| !p.emulated);
        let settling = changed.is_some().then(|| Settling {
            until_ns: t_ns + SETTLE_NS,
            threads: FxHashSet::default(),
            dropped: 0,
        });
        let watched = Self {
            naming: Naming::new(pid, Symbolizer::new(pid, binary, bias)),
            process,
            attachment,
            memory,
            rate: changed,
            settling,
            seen_buckets: FxHashSet::default(),
            governor: Governor::new(t_ns),
            taken_ns,
            trap_ns: if slow { cost.stepped } else { cost.emulated },
            looks: None,
            still: still.ok(),
            layout,
            bias,
            keys,
            default_tenant: info.default_tenant.clone(),
            every: every.map(|(every, _)| every),
            at_attach: profile.filter(|p| p.rate > 0),
        };
        Ok((watched, info, steps))
    }

    /// The items that an event becomes: names of what it refers to first.
    pub fn items(&mut self, event: Event, put: &mut impl FnMut(Item)) {
        let pid = event.pid;
        let goroutine =
            matches!(event.what, What::GoroutineNew { .. } | What::GoroutineExit { .. });
        if goroutine && self.looks.is_some() {
            // A straggler of the probes that were detached.
            return;
        }
        match &event.what {
            What::Alloc { .. } => {
                if self.is_spurious(&event) {
                    return;
                }
                self.governor.count(Part::Heap);
            }
            What::GoroutineNew { .. } | What::GoroutineExit { .. } => {
                self.governor.count(Part::Goroutines);
            }
            What::Free { bucket, .. } => {
                self.governor.count(Part::Heap);
                self.name_bucket(pid, *bucket, put);
            }
            What::Gc | What::Exec | What::Exit => {}
            What::EveryAlloc { .. } => return,
        }
        self.naming.put(Item::Event(event), put);
    }

    /// Exact mode: send what was seen since the last call; gives lines for the
    /// log, errors as such.
    pub fn windows(&mut self, put: &mut impl FnMut(Item)) -> Vec<Result<String, String>> {
        match &mut self.every {
            Some(every) => every.take(&mut self.naming.symbolizer, put),
            None => Vec::new(),
        }
    }

    /// Exact mode: keep windows closed as long as what this gives lives.
    pub fn pause_windows(&self) -> Option<Paused<'_>> {
        self.every.as_ref()?.pause()
    }

    /// Exact mode: close the window for good.
    pub fn stop_windows(&mut self) {
        if let Some(every) = &mut self.every {
            every.stop();
        }
    }

    /// Exact mode: end it, and send what was seen last.
    pub fn close_windows(&mut self, put: &mut impl FnMut(Item)) -> Vec<Result<String, String>> {
        let Some(mut every) = self.every.take() else { return Vec::new() };
        every.stop();
        let mut notes = every.take(&mut self.naming.symbolizer, put);
        notes.extend(every.summary().map(Ok));
        notes
    }

    /// One streamed allocation as a JSON line.
    pub fn streamed(&mut self, event: &Event, put: &mut impl FnMut(Item)) -> Option<String> {
        let none = self.default_tenant.as_deref().unwrap_or("-");
        let tenant = |l: Option<&Label>| l.map_or_else(|| none.to_owned(), |l| clean(&l.value));
        self.every.as_mut()?.line(event, tenant, &mut self.naming.symbolizer, put)
    }

    fn is_spurious(&mut self, event: &Event) -> bool {
        let Some(s) = &mut self.settling else { return false };
        let spurious = s.threads.insert(event.tid) || event.t_ns < s.until_ns;
        s.dropped += u64::from(spurious);
        spurious
    }

    fn name_bucket(&mut self, pid: u32, bucket: u64, put: &mut impl FnMut(Item)) {
        if bucket == 0 || self.seen_buckets.len() >= MOST_SEEN || !self.seen_buckets.insert(bucket)
        {
            return;
        }
        if let Ok(stack) = memprofile::bucket_stack(&self.memory, bucket) {
            self.put_bucket(pid, bucket, &stack, put);
        }
    }

    fn put_bucket(&mut self, pid: u32, bucket: u64, stack: &[u64], put: &mut impl FnMut(Item)) {
        let stack = Stacks::new(self.naming.symbolizer.binary(), self.bias).real(stack);
        self.naming.name(&stack, put);
        put(Item::Bucket { pid, bucket, stack });
    }

    /// What it uses now; nothing when it is gone.
    pub fn memory(&self) -> Vec<Item> {
        memory(&self.process).map_or(Vec::new(), |(_, items)| items)
    }

    /// Detach the probes of a part that cost more than `budget`, a share of the
    /// time of `cpus` processors. Gives what the stream has to know, and a line
    /// for the log.
    pub fn govern(
        &mut self,
        probes: &mut Probes,
        (budget, cpus): (f64, f64),
        program_ns: EventCost,
    ) -> Option<(Item, String)> {
        let now = monotonic_ns();
        let cost = EventCost {
            heap: self.trap_ns + program_ns.heap,
            goroutines: self.trap_ns + program_ns.goroutines,
            happened: program_ns.happened,
        };
        let too_much = self.governor.decide(now, budget, cpus, cost);
        self.taken_ns.store(self.governor.taken_ns(), Ordering::Relaxed);
        let TooMuch { part, per_second, share, allowed } = too_much?;
        probes.detach_part(&mut self.attachment, part);
        let pid = self.process.pid;
        let why = format!(
            "{per_second:.0} events a second would cost {:.1} % of the CPU time where \
             --max-overhead allows {:.1} %: their probes were detached",
            share * 100.0,
            allowed * 100.0
        );
        let allgs = match part {
            Part::Goroutines => ALLGS.find(self.naming.symbolizer.binary()).ok(),
            Part::Heap => None,
        };
        let detail = format!("process {pid}: {}: {why}", part.name());
        Some(match allgs {
            Some(address) => {
                let address = address.wrapping_add(self.bias);
                self.looks = Some(Looks::new(pid, address, self.layout, self.keys.clone()));
                let item = Item::Restart { pid, t_ns: now, part };
                (item, detail + ", they are read from its memory every few seconds instead")
            }
            None => (Item::Blind { pid, t_ns: now, part, why }, detail),
        })
    }

    /// Look at its goroutines, where that stands in for probes and is due.
    pub fn look(&mut self, put: &mut impl FnMut(Item)) {
        let began = monotonic_ns();
        let Some(mut looks) = self.looks.take_if(|l| l.pace.is_due(began)) else { return };
        let pid = self.process.pid;
        match looks.look(&self.memory, began) {
            Ok(events) => {
                for event in events {
                    self.naming.put(Item::Event(event), put);
                }
                looks.pace.took(began, monotonic_ns());
                self.looks = Some(looks);
            }
            // A process that is gone is found out elsewhere.
            Err(_) if !self.process.is_alive() => {}
            Err(e) => put(Item::Blind {
                pid,
                t_ns: began,
                part: Part::Goroutines,
                why: format!("they cannot be read from its memory: {e}"),
            }),
        }
    }

    /// Look for goroutines that stand still, where that is due.
    pub fn look_for_still(&mut self, put: &mut impl FnMut(Item)) {
        let began = monotonic_ns();
        let Some(mut still) = self.still.take_if(|s| s.pace.is_due(began)) else { return };
        let pid = self.process.pid;
        let binary = self.naming.symbolizer.shared();
        match still.look(&self.memory, (&binary, self.bias), began) {
            Ok(items) => {
                for item in items {
                    self.naming.put(item, put);
                }
                still.pace.took(began, monotonic_ns());
                self.still = Some(still);
            }
            Err(_) if !self.process.is_alive() => {}
            Err(e) => put(Item::Step(Step {
                t_ns: began,
                action: "Reading goroutines".to_owned(),
                detail: format!("process {pid}: where they wait is not known: {e}"),
                status: StepStatus::Blocked,
                elapsed_ms: 0,
            })),
        }
    }

    /// Let it go: detach, and put back what was changed. Says what was done.
    pub fn stop(mut self, probes: &mut Probes) -> Vec<String> {
        let mut done = Vec::new();
        if let Some(rate) = &mut self.rate {
            done.push(rate.restore());
        }
        if let Some(s) = &self.settling {
            done.push(format!("{} spurious samples after the rate change were dropped", s.dropped));
        }
        probes.detach(self.attachment);
        done
    }
}
