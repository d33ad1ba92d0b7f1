//! The live loop: attach, drain, tick, and let everything go again.

mod children;
mod python;
mod suspend;
mod turn;

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use children::Family;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::{
    Finished, Options, Select, View, WatchError,
    child::Running,
    clock::monotonic_ns,
    governor::Flow,
    lines::LineWriter,
    memory,
    python::WatchedPython,
    resident::WatchedMemory,
    session,
    sink::Sink,
    steps::{failed, make_step, step},
    stop::{Stop, Suspend},
    watched::{StartError, Watched},
};
use crate::{
    decode::{What, decode},
    probe::{HitCost, Probes, PyWindows, hit_cost},
    record::Writer,
    stream::{Item, StepStatus, TargetInfo},
    symbol::BinaryCache,
    target::{
        capability,
        process::{Process, all_pids},
    },
};

/// The ring is looked at this often; BPF wakes the agent when it fills faster.
const POLL: Duration = Duration::from_millis(100);
/// New processes are looked for this often (`--name`, `--all`).
const RESCAN: Duration = Duration::from_secs(2);
/// Whether the targets still run is looked up this often.
const LIVES: Duration = Duration::from_millis(500);
/// What a terminal shows is drawn this often.
const REFRESH: Duration = Duration::from_secs(1);
/// Between the ends of intervals findings are judged this often …
pub(super) const JUDGE: Duration = Duration::from_secs(2);
/// … or, where there is much to judge, as rarely as keeps it below this share
/// of one CPU.
pub(super) const JUDGE_SHARE: f64 = 0.01;

fn may_watch() -> Result<(), WatchError> {
    capability::may_attach().map_err(WatchError::NotPermitted)?;
    capability::kernel_can(Path::new("/")).map_err(WatchError::Kernel)
}

/// Watch running processes until the duration is over, all are gone, or a
/// signal says stop.
///
/// # Errors
/// When nothing can be watched at all.
pub fn watch(select: Select, options: &Options, view: View) -> Result<Finished, WatchError> {
    may_watch()?;
    allow_files();
    runtime()?.block_on(async {
        let mut live = Live::new(options, view, select)?;
        live.attach_first()?;
        live.run(None).await?;
        Ok(live.finish())
    })
}

/// Take all of the file descriptors that the system allows: the usual 1024 are
/// few for a machine full of processes, each with its memory, probes and
/// watchpoints.
fn allow_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both are given a whole rlimit. Where it fails the limit stays.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// Start a program and watch it until it ends.
///
/// # Errors
/// When it cannot be started or watched.
pub fn run_command(
    command: &[String],
    options: &Options,
    view: View,
) -> Result<(Finished, ExitStatus), WatchError> {
    may_watch()?;
    let (program, args) = command
        .split_first()
        .ok_or_else(|| WatchError::NothingToWatch("no command was given".into()))?;
    let child = Command::new(program)
        .args(args)
        .spawn()
        .map_err(|source| WatchError::Start { command: program.clone(), source })?;
    let mut child = Running(child);
    // After the program was started, which has to find what it would without us.
    allow_files();
    runtime()?.block_on(async {
        let mut live = Live::new(options, view, Select::Pids(vec![child.0.id()]))?;
        match live.attach_first() {
            Ok(()) => live.run(Some(&mut child.0)).await?,
            // Over before it could be watched: its own code says why.
            Err(e) if matches!(child.0.try_wait(), Ok(Some(_))) => live.sink.note(&e.to_string()),
            Err(e) => return Err(e),
        }
        let status = child.0.wait()?;
        Ok((live.finish(), status))
    })
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

struct Live<'a> {
    options: &'a Options,
    select: Select,
    probes: Probes,
    cost: HitCost,
    /// Processors that the budget is a share of.
    cpus: f64,
    binaries: BinaryCache,
    targets: BTreeMap<u32, Watched>,
    pythons: BTreeMap<u32, WatchedPython>,
    /// Of which no more is known.
    residents: BTreeMap<u32, WatchedMemory>,
    /// What opens windows on them: loaded for the first; `None` in it when the
    /// kernel refused.
    py_windows: Option<Option<Arc<PyWindows>>>,
    /// Processes that cannot be watched, by pid and start time.
    refused: BTreeMap<u32, u64>,
    /// With `--children`: who belongs to the processes asked for.
    family: Family,
    sink: Sink,
    started: Instant,
    stop: Stop,
    suspend: Suspend,
    stream: Option<LineWriter>,
    flow: Flow,
}

impl<'a> Live<'a> {
    fn new(options: &'a Options, view: View, select: Select) -> Result<Self, WatchError> {
        let (stop, suspend) = (Stop::listen()?, Suspend::listen()?);
        let recorder = options.record.as_deref().map(Writer::create).transpose()?;
        let stream = options.exact.as_ref().and_then(|e| e.stream.as_deref());
        let stream = stream.map(LineWriter::create).transpose()?;
        let session =
            session::begin(options.environment.clone(), options.interval, options.threshold);
        let started = Instant::now();
        let mut sink = Sink::new(session, recorder, view, options.baseline.clone());
        memory::begin(&options.state, &mut sink)?;
        let loading = Instant::now();
        let mut probes =
            Probes::load(&options.tenants.keys(), options.ring_bytes, options.exact.is_some())?;
        sink.put(step("Loading BPF programs", "verified by the kernel".into(), loading));
        let calibrating = Instant::now();
        let cost = hit_cost(&mut probes);
        let detail = format!(
            "{:.1} µs where the kernel emulates the instruction, {:.1} µs elsewhere",
            cost.emulated / 1e3,
            cost.stepped / 1e3
        );
        sink.put(step("Measuring the cost of a probe hit", detail, calibrating));
        Ok(Self {
            options,
            select,
            probes,
            cost,
            // Not at each turn: it reads files.
            cpus: available_parallelism().map_or(1.0, |n| n.get() as f64),
            binaries: BinaryCache::default(),
            targets: BTreeMap::new(),
            pythons: BTreeMap::new(),
            residents: BTreeMap::new(),
            py_windows: None,
            refused: BTreeMap::new(),
            family: Family::default(),
            sink,
            started,
            stop,
            suspend,
            stream,
            flow: Flow::default(),
        })
    }

    /// The first look: here it is an error when nothing can be watched.
    fn attach_first(&mut self) -> Result<(), WatchError> {
        let looking = Instant::now();
        match self.select.clone() {
            Select::Pids(pids) => {
                for pid in pids {
                    let started =
                        Process::open(pid).map_err(StartError::from).and_then(|p| self.start(p));
                    match started {
                        Ok(()) => {}
                        // A shell, a supervisor: its children may be.
                        Err(e @ StartError::Neither { .. }) if self.options.children => {
                            self.sink.note(&format!("{e}; its children are watched"));
                        }
                        Err(e) if e.is_permission() => {
                            return Err(WatchError::NotPermitted(e.to_string()));
                        }
                        Err(e) => return Err(WatchError::NothingToWatch(e.to_string())),
                    }
                }
                if self.options.children {
                    self.attach_children();
                }
            }
            Select::Name(_) | Select::All => {
                let tried = self.rescan();
                let watched = self.watched();
                let detail = format!("{tried} processes looked at, {watched} watched");
                self.sink.put(step("Discovering Go and CPython processes", detail, looking));
                if watched == 0 {
                    self.sink.note("no process to watch yet, waiting for one to start");
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, process: Process) -> Result<(), StartError> {
        let began = Instant::now();
        let pid = process.pid;
        if self.options.children {
            self.family.add(&process);
        }
        let (probes, binaries) = (&mut self.probes, &mut self.binaries);
        let started = Watched::start(process.clone(), binaries, probes, self.cost, self.options);
        let (mut watched, info, details) = match started {
            Err(e) if e.is_not_go() => return self.start_python(process, began),
            other => other?,
        };
        self.sink.put(Item::Target(info.clone()));
        let sink = &mut self.sink;
        let reading = Instant::now();
        if let Some(detail) = watched.put_before(&mut |item| sink.put(item)) {
            self.sink.put(step("Reading the heap from before", detail, reading));
        }
        for detail in details {
            self.sink.put(step("Attaching", detail, began));
        }
        self.put_blocked("Attaching", &info, began);
        self.targets.insert(pid, watched);
        Ok(())
    }

    /// A line of the log for each thing that cannot be seen.
    fn put_blocked(&mut self, action: &str, info: &TargetInfo, began: Instant) {
        for b in &info.blocked {
            let detail = format!("process {}: {}: {}", info.pid, b.what, b.why);
            let mut s = make_step(action, detail, began);
            s.status = StepStatus::Blocked;
            self.sink.put(Item::Step(s));
        }
    }

    fn watches(&self, pid: u32) -> bool {
        self.targets.contains_key(&pid)
            || self.pythons.contains_key(&pid)
            || self.residents.contains_key(&pid)
    }

    /// How many processes are watched.
    fn watched(&self) -> usize {
        self.targets.len() + self.pythons.len() + self.residents.len()
    }

    /// Attach to what is new; gives the number of processes looked at.
    fn rescan(&mut self) -> usize {
        let own = std::process::id();
        let pids = all_pids().unwrap_or_default();
        self.refused.retain(|pid, _| pids.binary_search(pid).is_ok());
        let mut looked = 0;
        for pid in pids {
            if pid == own || self.watches(pid) {
                continue;
            }
            let Ok(process) = Process::open(pid) else { continue };
            if self.refused.get(&pid) == Some(&process.start_ticks) {
                continue;
            }
            looked += 1;
            if let Select::Name(name) = &self.select
                && !name.is_match(&process.name)
            {
                // Not refused for good: it may exec into the one looked for.
                continue;
            }
            self.try_to_start(process);
        }
        looked
    }

    async fn run(&mut self, mut child: Option<&mut Child>) -> Result<(), WatchError> {
        let ring = self.probes.readable()?;
        let mut poll = interval(POLL);
        let mut lives = interval(LIVES);
        let mut rescan = interval(RESCAN);
        let mut tick = interval(self.options.interval);
        let mut refresh = interval(REFRESH);
        let mut judge = interval(JUDGE);
        for i in [&mut poll, &mut lives, &mut rescan, &mut tick, &mut refresh, &mut judge] {
            i.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        tick.tick().await;
        let end = self.options.duration.map(|d| tokio::time::Instant::now() + d);
        let far = tokio::time::Instant::now() + Duration::from_secs(10 * 365 * 86_400);
        loop {
            tokio::select! {
                () = self.stop.received() => break,
                () = self.suspend.received() => self.stand_still(),
                () = sleep_until(end.unwrap_or(far)) => break,
                _ = poll.tick() => {
                    self.drain();
                    self.govern();
                    self.python_windows(false);
                }
                _ = lives.tick() => self.let_go_of_the_dead(),
                ready = ring.readable() => {
                    self.drain();
                    ready?.clear_ready();
                }
                _ = rescan.tick() => self.find_new(),
                _ = tick.tick() => self.tick(),
                _ = refresh.tick() => self.sink.refresh(),
                _ = judge.tick() => judge.reset_after(self.judge()),
            }
            let over = matches!(self.select, Select::Pids(_))
                && self.watched() == 0
                && !(self.options.children && self.family.lives());
            let child_over = child.as_mut().is_some_and(|c| !matches!(c.try_wait(), Ok(None)));
            if over || child_over || self.sink.closed {
                break;
            }
        }
        Ok(())
    }

    fn drain(&mut self) {
        let (targets, sink, stream) = (&mut self.targets, &mut self.sink, &mut self.stream);
        let mut execs = Vec::new();
        let mut undecodable = 0u64;
        self.probes.drain(|bytes| match decode(bytes) {
            Ok(event) => {
                let pid = event.pid;
                if event.what == What::Exec {
                    execs.push(pid);
                }
                if let Some(target) = targets.get_mut(&pid) {
                    if matches!(event.what, What::EveryAlloc { .. }) {
                        let line = target.streamed(&event, &mut |item| sink.put(item));
                        if let (Some(line), Some(stream)) = (line, stream.as_mut()) {
                            stream.line(&line);
                        }
                        return;
                    }
                    target.items(event, &mut |item| sink.put(item));
                }
            }
            Err(_) => undecodable += 1,
        });
        if undecodable > 0 {
            let detail = format!("{undecodable} records could not be understood");
            self.sink.put(failed("Decoding", detail));
        }
        for pid in execs {
            let Some(was) = self.targets.get(&pid) else { continue };
            if !was.process.is_alive() {
                // The pid was given to another process before anyone noticed.
                self.gone(pid, "it ended");
                continue;
            }
            self.gone(pid, "it replaced its program (exec)");
            // The same process may go on as another Go program.
            let again = Process::open(pid).map_err(StartError::from).and_then(|process| {
                if self.wants(&process) { self.start(process) } else { Ok(()) }
            });
            if let Err(e) = again {
                self.sink.put(failed("Attaching", e.to_string()));
            }
        }
    }

    fn wants(&self, process: &Process) -> bool {
        match &self.select {
            Select::Pids(pids) => {
                pids.contains(&process.pid) || self.options.children && self.family.has(process)
            }
            Select::Name(name) => name.is_match(&process.name),
            Select::All => true,
        }
    }

    fn let_go_of_the_dead(&mut self) {
        let dead: Vec<u32> = self
            .targets
            .values()
            .filter(|t| !t.process.is_alive())
            .map(|t| t.process.pid)
            .collect();
        for pid in dead {
            self.gone(pid, "it ended");
        }
        let pythons = self.pythons.iter().filter_map(|(pid, p)| Some((*pid, p.gone()?)));
        let residents = self.residents.iter().filter_map(|(pid, p)| Some((*pid, p.gone()?)));
        let gone: Vec<(u32, &str)> = pythons.chain(residents).collect();
        for (pid, why) in gone {
            if let Some(python) = self.pythons.remove(&pid).as_mut() {
                self.python_window(pid, python, true);
            }
            self.residents.remove(&pid);
            self.sink.put(Item::TargetGone { pid, t_ns: monotonic_ns(), why: why.to_owned() });
            self.sink.put(step("Target gone", format!("process {pid}: {why}"), Instant::now()));
            // The same process may go on as another program.
            if let Ok(process) = Process::open(pid)
                && self.wants(&process)
                && let Err(e) = self.start(process)
            {
                self.sink.put(failed("Attaching", e.to_string()));
            }
        }
    }

    fn gone(&mut self, pid: u32, why: &str) {
        let Some(mut target) = self.targets.remove(&pid) else { return };
        let began = Instant::now();
        self.close_windows(&mut target);
        for detail in target.stop(&mut self.probes) {
            self.sink.put(step("Restoring", detail, began));
        }
        self.sink.put(Item::TargetGone { pid, t_ns: monotonic_ns(), why: why.to_owned() });
        self.sink.put(step("Target gone", format!("process {pid}: {why}"), began));
    }

    fn finish(mut self) -> Finished {
        // Windows first: what they saw last belongs to the report, and to the
        // stream what is still in the ring.
        self.targets.values_mut().for_each(Watched::stop_windows);
        self.drain();
        let mut targets = std::mem::take(&mut self.targets);
        for target in targets.values_mut() {
            self.close_windows(target);
        }
        self.targets = targets;
        self.python_windows(true);
        self.collect();
        // Letting many targets go takes its time, in which nothing is seen: what
        // is judged ends here.
        let t_ns = monotonic_ns();
        let failed = self.stream.take().and_then(|s| s.finish().err());
        if let Some(e) = failed {
            self.sink.note(&e);
        }
        let began = Instant::now();
        for (_, target) in std::mem::take(&mut self.targets) {
            for detail in target.stop(&mut self.probes) {
                self.sink.put(step("Restoring", detail, began));
            }
        }
        let watched = self.started.elapsed().as_secs_f64();
        self.sink.put(step("Detached", format!("after {watched:.0} s"), began));
        self.sink.put(Item::End { t_ns });
        self.sink.finish()
    }
}
