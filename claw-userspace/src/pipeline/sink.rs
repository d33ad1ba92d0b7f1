//! Where the stream goes: the engine, the recording, and what a person or a
//! script sees meanwhile.

use std::io::{IsTerminal, Write};

use super::{memory::Memory, screen::Screen};
use crate::{
    baseline::StoreError,
    detect::fleet::Profiles,
    engine::Engine,
    ledger::Bounds,
    record::Writer,
    report::{
        json, live,
        model::{JsonLine, Report},
        output::{Output, OutputError},
        text,
    },
    stream::{Item, Session, Step, StepStatus},
};

/// What is written to stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdout {
    Text(text::Style),
    Json,
    JsonLines,
}

/// How the report is shown.
#[derive(Clone, Debug)]
pub struct View {
    pub stdout: Stdout,
    pub progress: bool,
    pub out: Vec<Output>,
}

pub struct Sink {
    engine: Engine,
    recorder: Option<Writer>,
    memory: Option<Memory>,
    view: View,
    /// Where progress goes to a terminal.
    screen: Option<Screen>,
    /// stdout is closed: nobody reads any more.
    pub closed: bool,
}

/// A run that is over.
pub struct Finished {
    pub report: Report,
    /// Files that could not be written.
    pub failed: Vec<OutputError>,
}

impl Sink {
    pub fn new(session: Session, recorder: Option<Writer>, view: View, baseline: Profiles) -> Self {
        let engine = Engine::new(session.clone(), Bounds::default()).with_baseline(baseline);
        let screen = (view.progress && std::io::stderr().is_terminal()).then(Screen::default);
        let mut sink = Self { engine, recorder, memory: None, view, screen, closed: false };
        sink.put(Item::Session(session));
        sink
    }

    /// Go on from what earlier runs saw; gives words for the log.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn remember(&mut self, memory: Memory) -> Result<String, StoreError> {
        let words = memory.recall(&mut self.engine)?;
        self.memory = Some(memory);
        Ok(words)
    }

    /// A full disk ends what is kept, not the watch.
    fn keep(&mut self, t_ns: u64, now: bool) {
        let Some(memory) = &mut self.memory else { return };
        if let Err(e) = memory.keep(&mut self.engine, t_ns, now) {
            self.memory = None;
            self.note(&e.to_string());
            self.engine.apply(Item::Step(Step {
                t_ns,
                action: "Keeping rolling baselines".into(),
                detail: format!("{e}: nothing more is kept, the watch goes on"),
                status: StepStatus::Error,
                elapsed_ms: 0,
            }));
        }
    }

    pub fn put(&mut self, item: Item) {
        self.record(&item);
        let tick = if let Item::Tick { t_ns } = &item { Some(*t_ns) } else { None };
        self.take(item);
        if let Some(t_ns) = tick {
            self.keep(t_ns, false);
        }
    }

    fn take(&mut self, item: Item) {
        let announce = match &item {
            Item::Step(_) => true,
            Item::Target(info) => {
                self.announce_target(info.pid, item.clone());
                return;
            }
            _ => false,
        };
        let outcome = self.engine.apply(item);
        if self.view.stdout != Stdout::JsonLines {
            if outcome.tick {
                self.progress();
            }
            return;
        }
        if announce && let Some(step) = self.engine.report().execution_log.pop() {
            self.line(&JsonLine::Step(step));
        }
        for finding in outcome.changed {
            self.line(&JsonLine::Finding(Box::new(finding)));
        }
        if outcome.tick {
            let r = self.engine.report();
            let events = r.targets.first().map(|t| t.events.clone()).unwrap_or_default();
            self.line(&JsonLine::Interval { duration_s: r.duration_s, tenants: r.tenants, events });
            self.progress();
        }
    }

    /// Types of a CPython process that are found to grow.
    pub fn grows_outside(&self, pid: u32) -> bool {
        self.engine.grows_outside(pid)
    }

    pub fn growing_types(&self, pid: u32) -> Vec<String> {
        self.engine.growing_types(pid)
    }

    fn announce_target(&mut self, pid: u32, item: Item) {
        self.engine.apply(item);
        if self.view.stdout == Stdout::JsonLines {
            let found = self.engine.report().targets.into_iter().find(|t| t.pid == pid);
            if let Some(target) = found {
                self.line(&JsonLine::Target(Box::new(target)));
            }
        }
    }

    /// A full disk ends the recording, not the watch.
    fn record(&mut self, item: &Item) {
        let Some(writer) = &mut self.recorder else { return };
        if let Err(e) = writer.write(item) {
            self.recorder = None;
            self.note(&e.to_string());
            let step = Step {
                t_ns: 0,
                action: "Recording".into(),
                detail: format!("{e}: the recording ends here, the watch goes on"),
                status: StepStatus::Error,
                elapsed_ms: 0,
            };
            self.engine.apply(Item::Step(step));
        }
    }

    fn line(&mut self, event: &JsonLine) {
        if let Ok(line) = json::line(event) {
            self.print(&line);
        }
    }

    fn print(&mut self, text: &str) {
        let mut out = std::io::stdout();
        if !self.closed && out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            self.closed = true;
        }
    }

    fn progress(&mut self) {
        if self.view.progress && self.screen.is_none() {
            eprintln!("{}", live::progress(&self.engine.report()));
        }
    }

    /// Show on a terminal how things stand.
    pub fn refresh(&mut self) {
        if let Some(screen) = &mut self.screen {
            let style = match self.view.stdout {
                Stdout::Text(style) => style,
                _ => text::Style::Plain,
            };
            screen.draw(&live::view(&self.engine.report(), style));
        }
    }

    /// A line for people, beside the report.
    pub fn note(&mut self, text: &str) {
        if let Some(screen) = &mut self.screen {
            screen.clear();
        }
        eprintln!("claw-ebpf: {text}");
    }

    /// The stream is over: write the report everywhere it is wanted.
    pub fn finish(mut self) -> Finished {
        if let Some(screen) = &mut self.screen {
            screen.clear();
        }
        self.keep(u64::MAX, true);
        let report = self.engine.report();
        match self.view.stdout {
            Stdout::Text(style) => self.print(&text::render(&report, style)),
            Stdout::Json => {
                if let Ok(document) = json::document(&report) {
                    self.print(&document);
                }
            }
            Stdout::JsonLines => self.line(&JsonLine::Report(Box::new(report.clone()))),
        }
        let failed = self.view.out.iter().filter_map(|o| o.write(&self.engine).err()).collect();
        Finished { report, failed }
    }
}
