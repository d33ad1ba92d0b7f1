//! asyncio's tasks, found by the census. Where in a task its coroutine stands
//! is told by the types of what its words point to (`TaskObj`,
//! `Modules/_asynciomodule.c`, is in no header): the coroutine is the only one,
//! behind it come the name and the context.

use claw_common::python::STACKREF_TAG;

use super::{Flow, Flows, MOST_FRAMES, Reader};
use crate::target::{
    cpython::{
        layout::{OB_TYPE, TP_BASICSIZE, TP_NAME},
        pool::u64_at,
        running::Suspended,
        threads::Active,
    },
    memory::Memory,
};

/// Bytes of a task that are looked at.
const MOST_TASK: u64 = 256;
/// First word of `TaskObj` that may be the coroutine: behind `FutureObj_HEAD`.
const FIRST: usize = 11;
/// `gi_frame_state`: 0 and below are those of frames that are not over.
const OVER: i8 = 1;
/// `PyCoroWrapper.cw_coroutine`, `PyAsyncGenASend.ags_gen`.
const WRAPPED: u64 = 16;
/// Frames of 3.11 and later: variables and stack within the object.
const MOST_DEPTH: u64 = 1 << 16;

enum Coroutine {
    Pending { frame: u64, awaits: Option<u64> },
    Over,
}

impl<M: Memory> Reader<'_, M> {
    /// Those of the tasks at `tasks` that are pending.
    pub fn tasks(&mut self, tasks: &[u64]) -> Flows {
        let mut found = Flows::default();
        for task in tasks {
            let flow = if self.budget > 0 { self.task(*task) } else { None };
            match flow {
                Some(Some(flow)) => found.all.push(flow),
                Some(None) => {}
                None => found.unknown += 1,
            }
        }
        found
    }

    /// `Some(None)`: it is done.
    fn task(&mut self, task: u64) -> Option<Option<Flow>> {
        let size = self.word(self.word(task, OB_TYPE)?, TP_BASICSIZE)?.min(MOST_TASK);
        let mut bytes = vec![0u8; usize::try_from(size).ok()?];
        self.objects.memory.read(task, &mut bytes).ok()?;
        let words: Vec<u64> = bytes.as_chunks::<8>().0.iter().map(|b| u64_at(b, 0)).collect();
        let is_coroutine = |name: Option<&str>| matches!(name, Some("coroutine" | "generator"));
        let behind = words.iter().enumerate().skip(FIRST).filter(|(_, w)| **w != 0);
        let (i, coroutine) =
            behind.map(|(i, w)| (i, *w)).find(|(_, w)| is_coroutine(self.type_name(*w)))?;
        let mut frames = Vec::new();
        let mut next = Some(coroutine);
        let mut waits_for = None;
        while let Some(at) = next.filter(|_| frames.len() < MOST_FRAMES) {
            let name = self.awaited(at).unwrap_or_default();
            next = match name.as_str() {
                "coroutine" | "generator" | "async_generator" => match self.coroutine(at)? {
                    // The outermost is over: so is the task.
                    Coroutine::Over if frames.is_empty() => return Some(None),
                    Coroutine::Over => None,
                    Coroutine::Pending { frame, awaits } => {
                        self.budget = self.budget.saturating_sub(1);
                        frames.push(Active::at(self.objects.memory, self.running, frame)?);
                        awaits
                    }
                },
                "coroutine_wrapper" | "async_generator_asend" | "async_generator_athrow" => {
                    self.word(at, WRAPPED)
                }
                _ => {
                    waits_for = Some(name);
                    None
                }
            };
        }
        let start = self.definition(frames.first()?)?;
        // Innermost first, as in a thread.
        frames.reverse();
        let lines: Vec<_> = frames.iter().filter_map(|f| self.line(f)).collect();
        let waits_for = Self::library_wait(&lines)
            .or(waits_for.filter(|n| !n.is_empty() && !n.ends_with("FutureIter")))
            .or(Some("a future".into()));
        let name = words.get(i + 1).and_then(|n| self.objects.string(*n));
        let context = words.get(i + 2).copied().unwrap_or(0);
        Some(Some(Flow {
            id: identity(task, coroutine, name.as_deref()),
            start,
            at: Self::place(&lines),
            waits_for,
            tenant: self.tenant(context, &frames, || name.clone()),
        }))
    }

    /// Name of the type of an awaited object. Before 3.9 some of those types
    /// are never made ready.
    fn awaited(&mut self, at: u64) -> Option<String> {
        if let Some(name) = self.type_name(at) {
            return Some(name.to_owned());
        }
        let typ = self.word(at, OB_TYPE)?;
        let is_type = self.word(typ, OB_TYPE) == Some(self.objects.types.type_);
        is_type.then(|| self.objects.c_string(self.word(typ, TP_NAME)?)).flatten()
    }

    /// The frame of a coroutine or generator, and what it awaits.
    fn coroutine(&self, at: u64) -> Option<Coroutine> {
        let pending = |frame, awaits| Some(Coroutine::Pending { frame, awaits });
        match self.running.suspended {
            Suspended::Pointer { frame, top } => {
                let frame = self.word(at, frame)?;
                if frame == 0 {
                    return Some(Coroutine::Over);
                }
                // Null while it runs.
                let top = self.word(frame, top).filter(|t| *t != 0);
                pending(frame, top.and_then(|t| self.word(t.checked_sub(8)?, 0)))
            }
            Suspended::Depth { frame, stack, depth } => {
                let frame = self.word(at, frame)?;
                if frame == 0 {
                    return Some(Coroutine::Over);
                }
                let depth = self.word(frame, depth)? as u32 as i32;
                let last = u64::try_from(depth).ok().and_then(|d| d.checked_sub(1));
                let last = last.filter(|l| *l < MOST_DEPTH);
                let stack = self.word(frame, stack)?;
                pending(frame, last.and_then(|l| self.word(stack, l * 8)))
            }
            Suspended::Within { frame, state, top } => {
                let state = (self.word(at, state & !7)? >> ((state & 7) * 8)) as u8 as i8;
                if state >= OVER {
                    return Some(Coroutine::Over);
                }
                let frame = at.checked_add(frame)?;
                let locals = frame.checked_add(self.running.f_locals.into())?;
                let top = self.word(frame, top)? as u32 as i32;
                let last = u64::try_from(top).ok().and_then(|d| d.checked_sub(1));
                let last = last.filter(|l| *l < MOST_DEPTH);
                pending(frame, last.and_then(|l| self.word(locals, l * 8)))
            }
            Suspended::Stacked { frame, state, over, pointer, above } => {
                let state = (self.word(at, state & !7)? >> ((state & 7) * 8)) as u8 as i8;
                if state >= over {
                    return Some(Coroutine::Over);
                }
                let frame = at.checked_add(frame)?;
                let top = self.word(frame, pointer).filter(|p| *p != 0);
                let awaits = top.and_then(|p| self.word(p.checked_sub(above)?, 0));
                pending(frame, awaits.map(|a| a & !STACKREF_TAG))
            }
        }
    }
}

/// Memory of a task that is done is used again, its name (`Task-7`) is not.
fn identity(task: u64, coroutine: u64, name: Option<&str>) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = rustc_hash::FxHasher::default();
    (task, coroutine, name).hash(&mut hasher);
    hasher.finish()
}
