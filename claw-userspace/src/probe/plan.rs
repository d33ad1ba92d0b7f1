//! From a Go binary to the list of places to probe: pure, so that it can be
//! checked on binaries of every Go version without attaching to anything.

use crate::{
    stream::{Blocked, Part},
    target::go::binary::{FuncRange, GoBinary},
};

use super::site;

/// The BPF programs, by what they report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    ProfileAlloc,
    FreeSpecial,
    /// The new goroutine is in the result register.
    NewprocResult,
    /// The new goroutine is `runqput`'s second argument.
    NewprocRunqput,
    GoExit,
    Gc,
}

impl Program {
    pub const ALL: [Self; 6] = [
        Self::ProfileAlloc,
        Self::FreeSpecial,
        Self::NewprocResult,
        Self::NewprocRunqput,
        Self::GoExit,
        Self::Gc,
    ];

    /// Name of the program in the BPF object.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProfileAlloc => "go_profilealloc",
            Self::FreeSpecial => "go_freespecial",
            Self::NewprocResult => "go_newproc_result",
            Self::NewprocRunqput => "go_newproc_runqput",
            Self::GoExit => "go_goexit",
            Self::Gc => "go_gc",
        }
    }

    pub fn part(self) -> Part {
        match self {
            Self::NewprocResult | Self::NewprocRunqput | Self::GoExit => Part::Goroutines,
            Self::ProfileAlloc | Self::FreeSpecial | Self::Gc => Part::Heap,
        }
    }
}

/// One probe: a program at an offset into the binary's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub program: Program,
    pub function: &'static str,
    pub file_offset: u64,
    /// The kernel emulates the instruction there instead of single-stepping
    /// it, which makes a hit several times cheaper.
    pub emulated: bool,
}

/// Everything sampled mode needs from one binary, and what it cannot have.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub points: Vec<Point>,
    pub blocked: Vec<Blocked>,
}

impl Plan {
    /// The probes of sampled mode. Heap and goroutine probes are each left out
    /// whole when one of theirs is missing: half of them would count wrongly.
    pub fn sampled(binary: &GoBinary) -> Self {
        let mut plan = Self::default();
        let heap = plan.group(
            Part::Heap.name(),
            |find| {
                Ok(vec![
                    find.entry("runtime.profilealloc", Program::ProfileAlloc)?,
                    find.entry("runtime.freeSpecial", Program::FreeSpecial)?,
                    find.entry("runtime.gcMarkTermination", Program::Gc)?,
                ])
            },
            binary,
        );
        let goroutines = plan.group(
            Part::Goroutines.name(),
            |find| {
                let mut points = find.creations()?;
                points.push(
                    find.entry("runtime.gdestroy", Program::GoExit)
                        .or_else(|_| find.entry("runtime.goexit0", Program::GoExit))?,
                );
                Ok(points)
            },
            binary,
        );
        plan.points = heap.into_iter().chain(goroutines).collect();
        plan
    }

    fn group(
        &mut self,
        what: &str,
        points: impl FnOnce(&Finder) -> Result<Vec<Point>, String>,
        binary: &GoBinary,
    ) -> Vec<Point> {
        points(&Finder { binary }).unwrap_or_else(|why| {
            self.blocked.push(Blocked { what: what.to_owned(), why });
            Vec::new()
        })
    }
}

pub(super) struct Finder<'a> {
    pub(super) binary: &'a GoBinary,
}

impl Finder<'_> {
    fn function(&self, name: &'static str) -> Result<(FuncRange, Vec<u8>), String> {
        let range = self
            .binary
            .function(name)
            .ok_or_else(|| format!("the binary has no function {name}"))?;
        let code = self.binary.code(range).map_err(|e| format!("code of {name}: {e}"))?;
        Ok((range, code))
    }

    fn point(
        &self,
        program: Program,
        function: &'static str,
        address: u64,
    ) -> Result<Point, String> {
        let file_offset = self
            .binary
            .file_offset(address)
            .ok_or_else(|| format!("{function} at {address:#x} lies in no segment of the file"))?;
        let mut opcode = [0];
        let emulated = self
            .binary
            .elf()
            .read(address, &mut opcode)
            .is_ok_and(|()| site::is_emulated(opcode[0]));
        Ok(Point { program, function, file_offset, emulated })
    }

    pub(super) fn entry(&self, name: &'static str, program: Program) -> Result<Point, String> {
        let (range, code) = self.function(name)?;
        self.point(program, name, site::after_stack_check(&code, range.entry))
    }

    /// After the stack check of a function whose place is known.
    pub(super) fn after_check(
        &self,
        range: FuncRange,
        name: &'static str,
        program: Program,
    ) -> Result<Point, String> {
        let code = self.binary.code(range).map_err(|e| format!("code of {name}: {e}"))?;
        self.point(program, name, site::after_stack_check(&code, range.entry))
    }

    /// `newproc` calls `runqput` with the new goroutine right after it made it:
    /// a call, which the kernel emulates. Coroutines (`newcoro`, Go ≥ 1.23) are
    /// made without `runqput`; theirs is where `newproc1` returns to. Where the
    /// pattern is not found, all returns of `newproc1` serve both.
    pub(super) fn creations(&self) -> Result<Vec<Point>, String> {
        const NEWPROC: &str = "runtime.newproc.func1";
        const NEWCORO: &str = "runtime.newcoro";
        const NEWPROC1: &str = "runtime.newproc1";
        let (newproc1, newproc1_code) = self.function(NEWPROC1)?;
        let cheap = || -> Option<Vec<Point>> {
            let runqput = self.binary.function("runtime.runqput")?;
            let (range, code) = self.function(NEWPROC).ok()?;
            let call = site::call_after(&code, range.entry, newproc1.entry, runqput.entry)?;
            let mut points = vec![self.point(Program::NewprocRunqput, NEWPROC, call).ok()?];
            for name in [NEWCORO, "runtime.newcoro.func1"] {
                let Ok((range, code)) = self.function(name) else { continue };
                for address in site::returns_of_call(&code, range.entry, newproc1.entry) {
                    points.push(self.point(Program::NewprocResult, NEWCORO, address).ok()?);
                }
            }
            Some(points)
        };
        if let Some(points) = cheap() {
            return Ok(points);
        }
        let returns = site::returns(&newproc1_code, newproc1.entry);
        if returns.is_empty() {
            return Err(format!("{NEWPROC1} has no return instruction"));
        }
        returns.into_iter().map(|a| self.point(Program::NewprocResult, NEWPROC1, a)).collect()
    }
}
