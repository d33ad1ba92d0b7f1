//! The pure half: the stream goes in item by item, the report comes out. Live
//! and replayed runs go through here alike.

mod assemble;
mod assess;
mod census;
mod exact;
mod flows;
mod holder;
mod native;
mod part;
mod series;
mod trend;
mod waiting;
mod writer;

use std::collections::BTreeMap;

use crate::{
    decode::What,
    detect::{
        fleet::Profiles,
        rolling::Hour,
        series::{Point, Subject},
    },
    ledger::{Bounds, Ledger, Opened, Process},
    report::model::{Finding, Kind, LogEntry, Report, Verdict},
    stream::{Counters, Item, Placed, Session, Step, StepStatus},
};

/// Consumes the stream.
#[derive(Debug)]
pub struct Engine {
    session: Session,
    ledger: Ledger,
    now_ns: u64,
    counters: Counters,
    previous: Counters,
    log: Vec<LogEntry>,
    log_dropped: u64,
    findings: BTreeMap<String, Finding>,
    ended: Vec<Ended>,
    events: u64,
    long_view: series::LongView,
}

/// A process that is no longer watched.
#[derive(Debug)]
struct Ended {
    process: Process,
    why: String,
}

/// Lines of the execution log that are kept.
const MOST_LOG: usize = 1000;
/// Ended processes that are still reported.
const MOST_ENDED: usize = 64;

/// What a step of the stream brought about.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Findings that are new or changed their verdict or severity.
    pub changed: Vec<Finding>,
    /// The stream reached the end of an interval.
    pub tick: bool,
}

impl Engine {
    pub fn new(session: Session, bounds: Bounds) -> Self {
        Self {
            now_ns: session.t_ns,
            session,
            ledger: Ledger::new(bounds),
            counters: Counters::default(),
            previous: Counters::default(),
            log: Vec::new(),
            log_dropped: 0,
            findings: BTreeMap::new(),
            ended: Vec::new(),
            events: 0,
            long_view: series::LongView::default(),
        }
    }

    /// Hold what is seen against a baseline.
    #[must_use]
    pub fn with_baseline(mut self, profiles: Profiles) -> Self {
        self.long_view = series::LongView::new(profiles);
        self
    }

    /// The time of the stream on the wall, hours since the Unix epoch.
    pub fn hour(&self) -> u64 {
        let passed = self.now_ns.saturating_sub(self.session.t_ns);
        self.session.wall_ns.saturating_add(passed) / 3_600_000_000_000
    }

    /// What earlier runs saw of tenants, by process name and tenant.
    pub fn remember(&mut self, process: String, tenant: String, hour: u64, seen: Hour) {
        self.long_view.remember(process, tenant, hour, seen);
    }

    /// What was learned of tenants in this hour, since the last call.
    pub fn learned(&mut self) -> Vec<(String, String, Hour)> {
        let hour = self.hour();
        self.long_view.learned(hour)
    }

    /// What each (tenant, site) has in use now.
    pub fn series(&self) -> Vec<(Subject, Point)> {
        series::series(&self.ledger, self.now_ns)
    }

    /// Take one item. Time only moves forward: an item that is older than the
    /// latest one does not turn it back.
    pub fn apply(&mut self, item: Item) -> Outcome {
        let mut outcome = Outcome::default();
        match item {
            Item::Session(_) => {}
            Item::Target(info) => {
                self.advance(info.t_ns);
                if let Some(old) = self.ledger.remove(info.pid) {
                    self.end(old, "replaced by a new program".to_owned());
                }
                self.ledger.target(info);
            }
            Item::Frames { pid, pc, frames } => {
                if let Some(p) = self.ledger.process_mut(pid) {
                    p.sites.learn(pc, frames);
                }
            }
            Item::Bucket { pid, bucket, stack } => self.ledger.bucket(pid, bucket, &stack),
            Item::Event(event) => {
                self.events += 1;
                if !matches!(event.what, What::Exec | What::Exit) {
                    self.advance(event.t_ns);
                }
                self.ledger.event(&event);
            }
            Item::Counters(counters) => {
                self.advance(counters.t_ns);
                self.previous = std::mem::replace(&mut self.counters, counters);
            }
            Item::Memory { pid, t_ns, rss_bytes, threads, .. } => {
                self.advance(t_ns);
                if let Some(p) = self.ledger.process_mut(pid) {
                    p.rss_bytes = Some(rss_bytes);
                    p.threads = Some(threads);
                }
            }
            Item::Limit { pid, t_ns, limit } => {
                self.advance(t_ns);
                if let Some(p) = self.ledger.process_mut(pid) {
                    p.limit = Some(limit);
                }
            }
            Item::Collections { pid, t_ns, generations, enabled } => {
                self.advance(t_ns);
                if let Some(p) = self.ledger.process_mut(pid) {
                    let (first, _) = p.collections.unwrap_or((generations, generations));
                    p.collections = Some((first, generations));
                    p.collector.looked_at(generations, enabled);
                }
            }
            Item::Census(census) => {
                self.advance(census.t_ns);
                if let Some(p) = self.ledger.process_mut(census.pid) {
                    p.collector.census(census.t_ns);
                    p.censuses.add(census);
                }
            }
            Item::Holders(held) => {
                self.advance(held.t_ns);
                if let Some(p) = self.ledger.process_mut(held.pid) {
                    p.holders.add(held);
                }
            }
            Item::PyWindow(window) => {
                self.advance(window.to_ns.max(window.checked_ns));
                if let Some(p) = self.ledger.process_mut(window.pid) {
                    p.writers.add(&window);
                }
            }
            Item::Placed(Placed { pid, from_ns, to_ns, lost_work_ns: lost_ns }) => {
                if let Some(p) = self.ledger.process_mut(pid) {
                    p.recent.add(Opened { from_ns, to_ns, lost_ns }, true);
                }
            }
            Item::NativeWindow(window) => {
                self.advance(window.to_ns.max(window.checked_ns));
                if let Some(p) = self.ledger.process_mut(window.pid) {
                    p.natives.add(&window);
                }
            }
            Item::Tick { t_ns } => {
                self.advance(t_ns);
                self.ledger.passed(t_ns);
                self.take_stock();
                outcome.changed = self.assess();
                outcome.tick = true;
            }
            Item::Judge { t_ns } => {
                self.advance(t_ns);
                self.ledger.passed(t_ns);
                outcome.changed = self.assess();
            }
            Item::TargetGone { pid, t_ns, why } => {
                self.advance(t_ns);
                // Judge what it did before it is forgotten.
                self.take_stock();
                outcome.changed = self.assess();
                if let Some(p) = self.ledger.remove(pid) {
                    self.end(p, why);
                }
            }
            Item::Blind { pid, t_ns, part, why } => {
                self.advance(t_ns);
                self.ledger.blind(pid, part, t_ns, why);
            }
            Item::Restart { pid, t_ns, part } => {
                self.advance(t_ns);
                self.ledger.restart(pid, part, t_ns);
            }
            Item::ExactSite { pid, id, goroutine, type_name, stack } => {
                self.ledger.exact_site((pid, id), goroutine, type_name, &stack);
            }
            Item::Window(window) => {
                self.advance(window.to_ns);
                self.ledger.window(&window, self.now_ns);
            }
            Item::Before { pid, bucket, size, samples, rate } => {
                self.ledger.before(pid, bucket, size, samples, rate);
            }
            Item::Still(still) => {
                // It began before the look that found it.
                self.ledger.still(&still);
            }
            Item::Moved { pid, id, t_ns } => {
                self.advance(t_ns);
                if let Some(p) = self.ledger.process_mut(pid) {
                    p.places.moved(id, t_ns);
                }
            }
            Item::Flows(flows) => {
                self.advance(flows.t_ns);
                if let Some(p) = self.ledger.process_mut(flows.pid) {
                    p.flows.entry(flows.kind).or_default().add(flows);
                }
            }
            Item::Step(step) => self.log(step),
            Item::End { t_ns } => {
                self.advance(t_ns);
                self.ledger.passed(t_ns);
                self.take_stock();
                outcome.changed = self.assess();
            }
        }
        outcome
    }

    /// Whether memory outside the pools of a CPython process is found to grow.
    pub fn grows_outside(&self, pid: u32) -> bool {
        self.findings.values().any(|f| f.pid == pid && f.kind == Kind::Rss)
    }

    /// Types of a CPython process that are found to grow.
    pub fn growing_types(&self, pid: u32) -> Vec<String> {
        let of_process = self.findings.values().filter(|f| f.pid == pid);
        let mut types: Vec<String> = of_process.filter_map(|f| f.type_name.clone()).collect();
        types.sort();
        types.dedup();
        types
    }

    fn advance(&mut self, t_ns: u64) {
        self.now_ns = self.now_ns.max(t_ns);
    }

    fn end(&mut self, process: Process, why: String) {
        if self.ended.len() < MOST_ENDED {
            self.ended.push(Ended { process, why });
        }
    }

    fn log(&mut self, step: Step) {
        if self.log.len() >= MOST_LOG {
            self.log_dropped += 1;
            return;
        }
        self.log.push(LogEntry {
            step: u32::try_from(self.log.len() + 1).unwrap_or(u32::MAX),
            action: step.action,
            detail: step.detail,
            status: step.status,
            elapsed_ms: step.elapsed_ms,
        });
    }

    /// What each (tenant, site) has in use now becomes a point of its series.
    fn take_stock(&mut self) {
        let suspected: Vec<(u32, String)> =
            self.findings.values().map(|f| (f.pid, f.tenant.clone())).collect();
        self.long_view.tick(&self.ledger, self.now_ns, self.hour(), &suspected);
    }

    /// Judge everything again; gives what changed.
    fn assess(&mut self) -> Vec<Finding> {
        let lost = self.counters.lost_share();
        let mut fresh =
            assess::findings(&self.session, &mut self.ledger, &self.long_view, lost, self.now_ns);
        for p in self.ledger.processes() {
            let flows = flows::findings(&self.session, p, self.now_ns);
            fresh.extend(census::findings(&self.session, p, &flows, self.now_ns));
            fresh.extend(flows);
        }
        let (ledger, long_view) = (&self.ledger, &self.long_view);
        trend::findings(&self.session, ledger, long_view, self.now_ns, &mut fresh);
        let mut changed = Vec::new();
        let watched: Vec<u32> = self.ledger.processes().map(|p| p.info.pid).collect();
        // A finding whose evidence fell apart is withdrawn; those of processes
        // that ended stand.
        let withdrawn: Vec<String> = self
            .findings
            .iter()
            .filter(|(key, f)| watched.contains(&f.pid) && !fresh.contains_key(*key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in withdrawn {
            if let Some(f) = self.findings.remove(&key) {
                self.alert(&f, "Withdrawing finding", StepStatus::Success);
            }
        }
        for (key, mut finding) in fresh {
            match self.findings.get(&key) {
                Some(old) => {
                    let rank = |f: &Finding| (f.verdict, f.severity);
                    let located = old.site.line.is_none() && finding.site.line.is_some();
                    let news = rank(old) != rank(&finding) || located;
                    if old.verdict == finding.verdict {
                        finding.detected_after_s = old.detected_after_s;
                    }
                    if news {
                        changed.push(finding.clone());
                    }
                }
                None => changed.push(finding.clone()),
            }
            self.findings.insert(key, finding);
        }
        for f in &changed {
            let action = match f.verdict {
                Verdict::Leak => "Leak found",
                _ => "Growth suspected",
            };
            self.alert(f, action, StepStatus::Alert);
        }
        changed
    }

    fn alert(&mut self, f: &Finding, action: &str, status: StepStatus) {
        let place = match (&f.site.file, f.site.line) {
            (Some(file), Some(line)) => format!(" ({file}:{line})"),
            _ => String::new(),
        };
        let detail = format!(
            "tenant {} in {} (pid {}): {}{place}",
            f.tenant, f.process, f.pid, f.site.function
        );
        let elapsed_ms = self.now_ns.saturating_sub(self.session.t_ns) / 1_000_000;
        self.log(Step { t_ns: self.now_ns, action: action.into(), detail, status, elapsed_ms });
    }

    pub fn report(&self) -> Report {
        assemble::report(self)
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Processes that are watched and those that were.
    pub fn all_processes(&self) -> impl Iterator<Item = &Process> {
        self.ledger.processes().chain(self.ended.iter().map(|e| &e.process))
    }
}
