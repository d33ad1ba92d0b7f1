//! `goroutines --for TIME`: several looks at the same goroutines, and what the
//! engine makes of them. Nothing is probed and nothing is written.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{DumpError, live, opened};
use crate::{
    engine::Engine,
    ledger::Bounds,
    pipeline::{
        clock::monotonic_ns,
        live::{JUDGE, JUDGE_SHARE},
        looks::Looks,
        naming::Naming,
        owner::Owner,
        pace::Pace,
        session,
        steps::{failed, step},
        still::StillLooks,
        stop::Stop,
    },
    report::{clean::clean, goroutines::Dump},
    stream::{Blocked, GOROUTINES_MODE, Item, Part, TargetInfo},
    symbol::Symbolizer,
    target::{
        go::{goroutines::LookError, program::GoProgram},
        memory::ProcessMemory,
        process::Process,
    },
    tenant::Rules,
};

/// Between two turns: whether a look is due, and whether it ended.
const TURN: Duration = Duration::from_millis(200);
/// Time between two points of a series.
const INTERVAL: Duration = Duration::from_secs(10);
/// Growth of the heap, which is not looked at, decides nothing.
const THRESHOLD: f64 = 0.0;

/// How goroutines are judged.
#[derive(Clone, Debug)]
pub struct Judging {
    pub time: Duration,
    pub environment: Option<String>,
    pub tenants: Rules,
}

/// Look at a process's goroutines for as long as asked, or until a signal says
/// stop or it ends, and judge which leak; gives the goroutines as they are then,
/// and the report.
///
/// # Errors
/// One line, why they cannot be read.
pub fn judged_goroutines(pid: u32, system: bool, how: &Judging) -> Result<Dump, DumpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let first = live(pid, system)?;
        let mut outside = Outside::begin(pid, how)?;
        let end = Instant::now() + how.time;
        while outside.over.is_none() && Instant::now() < end {
            outside.turn();
            let left = end.saturating_duration_since(Instant::now());
            tokio::select! {
                () = stop.received() => break,
                () = tokio::time::sleep(TURN.min(left)) => {}
            }
        }
        outside.turn();
        let listing = Instant::now();
        let last = if outside.over.is_none() { live(pid, system) } else { Ok(first.clone()) };
        let mut dump = match last {
            Ok(dump) => dump,
            Err(_) if !outside.process.is_alive() => first,
            Err(e) => return Err(e),
        };
        if let Some(why) = &outside.over {
            let detail = format!("as they were at the beginning: {why}");
            outside.engine.apply(failed("Listing goroutines", detail));
        } else {
            let detail = format!("{} in {} groups", dump.goroutines, dump.groups.len());
            outside.engine.apply(step("Listing goroutines", detail, listing));
        }
        outside.engine.apply(Item::End { t_ns: monotonic_ns() });
        dump.report = Some(Box::new(outside.engine.report()));
        Ok(dump)
    })
}

/// A process seen from outside only.
struct Outside {
    process: Process,
    program: GoProgram<ProcessMemory>,
    naming: Naming,
    looks: Looks,
    still: StillLooks,
    engine: Engine,
    judging: Pace,
    tick_ns: u64,
    /// Why it cannot be looked at any more.
    over: Option<String>,
}

impl Outside {
    fn begin(pid: u32, how: &Judging) -> Result<Self, DumpError> {
        let began = Instant::now();
        let (process, program) = opened(pid)?;
        let allgs = super::allgs(&program)?;
        let session = session::begin(how.environment.clone(), INTERVAL, THRESHOLD);
        let mut engine = Engine::new(session, Bounds::default());
        let owner = Owner::of(&process, &how.tenants);
        let t_ns = monotonic_ns();
        let name = clean(&process.name);
        engine.apply(Item::Target(TargetInfo {
            pid,
            start_ticks: process.start_ticks,
            uptime_ns: process.uptime_ns().unwrap_or(0),
            t_ns,
            name: name.clone(),
            exe: clean(&process.exe),
            runtime: "go".into(),
            version: clean(&program.binary.version.raw),
            stripped: program.binary.stripped(),
            container: owner.container,
            mode: GOROUTINES_MODE.into(),
            sample_rate: None,
            heap_bytes: None,
            default_tenant: owner.tenant,
            labels_before_default: owner.labels_before,
            blocked: vec![Blocked {
                what: Part::Heap.name().to_owned(),
                why: "goroutines alone are looked at; `claw-ebpf watch` sees both".to_owned(),
            }],
        }));
        let detail = format!("process {pid} ({name}), without probes");
        engine.apply(step("Looking at goroutines", detail, began));
        let keys = how.tenants.keys();
        Ok(Self {
            looks: Looks::new(pid, allgs, program.layout, keys.clone()),
            still: StillLooks::new(pid, allgs, program.layout, keys),
            naming: Naming::new(
                pid,
                Symbolizer::new(pid, Arc::clone(&program.binary), program.bias),
            ),
            process,
            program,
            engine,
            judging: Pace::new(JUDGE, JUDGE_SHARE),
            tick_ns: t_ns,
            over: None,
        })
    }

    /// Look and judge, where that is due.
    fn turn(&mut self) {
        if self.over.is_some() {
            return;
        }
        let (pid, t_ns) = (self.process.pid, monotonic_ns());
        let why = match self.look() {
            _ if !self.process.is_alive() => "it ended".to_owned(),
            Ok(()) => {
                self.judge();
                return;
            }
            Err(e) => format!("its memory cannot be read any more: {e}"),
        };
        self.engine.apply(Item::TargetGone { pid, t_ns, why: why.clone() });
        self.over = Some(why);
    }

    fn look(&mut self) -> Result<(), LookError> {
        let began = monotonic_ns();
        if self.looks.pace.is_due(began) {
            for event in self.looks.look(&self.program.memory, began)? {
                self.put(Item::Event(event));
            }
            self.looks.pace.took(began, monotonic_ns());
        }
        let began = monotonic_ns();
        if self.still.pace.is_due(began) {
            let GoProgram { memory, binary, bias, .. } = &self.program;
            for item in self.still.look(memory, (binary, *bias), began)? {
                self.put(item);
            }
            self.still.pace.took(began, monotonic_ns());
        }
        Ok(())
    }

    fn judge(&mut self) {
        let t_ns = monotonic_ns();
        if !self.judging.is_due(t_ns) {
            return;
        }
        let interval_ns = u64::try_from(INTERVAL.as_nanos()).unwrap_or(u64::MAX);
        let tick = t_ns.saturating_sub(self.tick_ns) >= interval_ns;
        if tick {
            self.tick_ns = t_ns;
        }
        self.engine.apply(if tick { Item::Tick { t_ns } } else { Item::Judge { t_ns } });
        self.judging.took(t_ns, monotonic_ns());
    }

    fn put(&mut self, item: Item) {
        let engine = &mut self.engine;
        self.naming.put(item, &mut |item| {
            engine.apply(item);
        });
    }
}
