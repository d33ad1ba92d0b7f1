//! Flows of control: threads and asyncio tasks, each with the function that it
//! was started with, where it stands now, and whose it is.
//!
//! The process runs on while they are read: a flow that moves meanwhile may
//! show a place that it has left. What matters are those that stand still.

mod context;
mod tasks;
mod threads;

use rustc_hash::FxHashMap;

use super::{
    code::{self, Code},
    layout::OB_TYPE,
    live::LivePython,
    object::Objects,
    running::Running,
    threads::Active,
    types::TypeTable,
};
use crate::{
    symbol::{Origin, origin::of_python_file},
    target::memory::{Memory, ProcessMemory},
    tenant::Rule,
};

/// Frames of one flow that are followed.
const MOST_FRAMES: usize = 1 << 10;
/// Frames and code objects of one look; a line table costs one more for each of
/// these bytes.
const MOST_READS: u64 = 1 << 18;
const TABLE_BYTES: u64 = 64;
/// Longest tenant, characters: as in windows.
const MOST_TENANT: usize = 64;

/// A line of the program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Line {
    pub function: String,
    pub file: String,
    /// 0: not known.
    pub line: u32,
}

/// A thread or task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Never that of another one, as far as the runtime tells.
    pub id: u64,
    /// The function that it was started with, at its definition.
    pub start: Line,
    /// The service's own line that it stands at, else the library's.
    pub at: Option<Line>,
    /// What it waits for, in words.
    pub waits_for: Option<String>,
    pub tenant: Option<String>,
}

/// All threads of a process, or its pending tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    pub all: Vec<Flow>,
    /// Those whose frames could not be read.
    pub unknown: u64,
}

/// Reads flows of one process, in one look.
pub struct Reader<'a, M> {
    objects: Objects<'a, M>,
    running: &'static Running,
    rules: &'a [(u8, Rule)],
    /// Asked of the kernel, for what it knows of threads.
    pid: Option<u32>,
    types: TypeTable,
    codes: FxHashMap<u64, Option<(Code, code::LocalNames)>>,
    /// Frames and code objects that may still be read, for all flows together:
    /// made-up threads could share a stack without end.
    budget: u64,
}

impl LivePython {
    /// Whether threads and tasks can be read.
    ///
    /// # Errors
    /// In words, what is not known of the process.
    pub fn knows_flows(&self) -> Result<(), String> {
        self.reader(&[])?.offsets(self.python.runtime).map(drop)
    }

    /// Threads that run Python, with the tenant that `rules` give them.
    ///
    /// # Errors
    /// In words, what is not known of the process.
    pub fn threads(&self, rules: &[(u8, Rule)]) -> Result<Flows, String> {
        self.reader(rules)?.threads(self.python.runtime)
    }

    /// The asyncio tasks at `tasks` that are pending.
    ///
    /// # Errors
    /// In words, what is not known of the process.
    pub fn tasks(&self, rules: &[(u8, Rule)], tasks: &[u64]) -> Result<Flows, String> {
        Ok(self.reader(rules)?.tasks(tasks))
    }

    fn reader<'a>(&'a self, rules: &'a [(u8, Rule)]) -> Result<Reader<'a, ProcessMemory>, String> {
        Reader::new(self.objects(), rules, Some(self.process.pid))
            .ok_or_else(|| format!("frames of CPython {} are not known", self.python.version))
    }
}

impl<'a, M: Memory> Reader<'a, M> {
    /// `None` when the frames of the version are not known.
    pub fn new(objects: Objects<'a, M>, rules: &'a [(u8, Rule)], pid: Option<u32>) -> Option<Self> {
        Some(Self {
            objects,
            running: Running::of(objects.layout.minor)?,
            rules,
            pid,
            types: TypeTable::default(),
            codes: FxHashMap::default(),
            budget: MOST_READS,
        })
    }

    fn word(&self, base: u64, offset: u64) -> Option<u64> {
        self.objects.memory.u64_at(base.checked_add(offset)?).ok()
    }

    /// Name of the type of an object.
    fn type_name(&mut self, object: u64) -> Option<&str> {
        let typ = self.word(object, OB_TYPE)?;
        let row = self.types.of(&self.objects, typ)?;
        self.types.get(row).map(|t| t.name.as_str())
    }

    fn code(&mut self, at: u64) -> Option<&(Code, code::LocalNames)> {
        let (objects, running) = (self.objects, self.running);
        let read = || {
            let code = Code::read(&objects, running, at)?;
            Some((code, code::local_names(&objects, running, at).unwrap_or_default()))
        };
        if self.budget == 0 {
            return None;
        }
        let mut cost = 1;
        let code = self.codes.entry(at).or_insert_with(|| {
            let code = read();
            cost += code.as_ref().map_or(0, |(c, _)| c.table_bytes() / TABLE_BYTES);
            code
        });
        self.budget = self.budget.saturating_sub(cost);
        code.as_ref()
    }

    /// Where a frame stands; `None` when it is none of a Python function.
    fn line(&mut self, frame: &Active) -> Option<Line> {
        let running = self.running;
        let (code, _) = self.code(frame.code)?;
        Some(Line {
            function: code.function.clone(),
            file: code.file.clone(),
            line: code.line(running, frame.code, frame.instruction),
        })
    }

    /// Definition of a frame's function.
    fn definition(&mut self, frame: &Active) -> Option<Line> {
        let (code, _) = self.code(frame.code)?;
        let (function, file) = (code.function.clone(), code.file.clone());
        Some(Line { function, file, line: code.first_line })
    }

    /// Where a flow stands, from its lines, innermost first.
    fn place(lines: &[Line]) -> Option<Line> {
        lines.iter().find(|l| !is_library(&l.file)).or(lines.first()).cloned()
    }

    /// The library's function that waits for the service: the innermost.
    fn library_wait(lines: &[Line]) -> Option<String> {
        lines.first().filter(|l| is_library(&l.file)).map(named)
    }

    /// The library's function that the service called and that waits: a queue's
    /// `get`, not the condition in it. Where none of the service's functions
    /// runs, the innermost.
    fn library_call(lines: &[Line]) -> Option<String> {
        let within = lines.iter().take_while(|l| is_library(&l.file)).count();
        match within.checked_sub(1) {
            Some(called) if within < lines.len() => lines.get(called).map(named),
            _ => Self::library_wait(lines),
        }
    }

    /// By the first rule that has a value; `frames` innermost first.
    fn tenant(
        &mut self,
        context: u64,
        frames: &[Active],
        name: impl Fn() -> Option<String>,
    ) -> Option<String> {
        let mut variables: Option<Vec<(String, String)>> = None;
        for (_, rule) in self.rules {
            let found = match rule {
                Rule::ContextVar(wanted) => {
                    if variables.is_none() {
                        variables = Some(self.variables(context));
                    }
                    let all = variables.iter().flatten();
                    all.into_iter().find(|(name, _)| name == wanted).map(|(_, v)| v.clone())
                }
                Rule::Local(wanted) => self.local(frames, wanted),
                Rule::ThreadName => name(),
                _ => None,
            };
            let found = found.map(|t| t.chars().take(MOST_TENANT).collect::<String>());
            if let Some(found) = found.filter(|t| !t.is_empty()) {
                return Some(found);
            }
        }
        None
    }

    fn local(&mut self, frames: &[Active], wanted: &str) -> Option<String> {
        /// `PyCellObject.ob_ref`.
        const CELL: u64 = 16;
        for frame in frames {
            let Some((_, names)) = self.code(frame.code) else { continue };
            let place = names.iter().find(|(name, ..)| name == wanted);
            let Some((place, cell)) = place.map(|(_, place, cell)| (*place, *cell)) else {
                continue;
            };
            let value = self.word(frame.locals, u64::from(place) * 8).map(|v| v & !7);
            let value = if cell { value.and_then(|v| self.word(v, CELL)) } else { value };
            return value.and_then(|v| context::text(&self.objects, v));
        }
        None
    }
}

/// Module and function.
fn named(line: &Line) -> String {
    let module = line.file.rsplit('/').next().unwrap_or_default().trim_end_matches(".py");
    format!("{module}.{}", line.function)
}

/// Whether a file is of Python's own library.
fn is_library(file: &str) -> bool {
    of_python_file(file) == Origin::Std
}
