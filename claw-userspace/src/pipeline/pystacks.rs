//! The stacks that a window sees, named as they come: the code objects in them
//! run at that moment, later their memory may be another's.

use claw_common::{PyEntry, PyFrame, RecordedLabel};
use rustc_hash::FxHashMap;

use super::pyready::local;
use crate::{
    probe::PyWindows,
    report::clean::clean,
    symbol::{Frame, Origin, origin::of_python_file},
    target::cpython::{
        code::{self, Code},
        live::{Inside, LivePython},
    },
    tenant::Rule,
};

pub struct Stacks<'a> {
    live: &'a LivePython,
    inside: &'a Inside,
    rules: &'a [(u8, Rule)],
    /// Hash → place in `seen`.
    known: FxHashMap<u64, u32>,
    seen: Vec<Named>,
    codes: FxHashMap<u64, Option<Code>>,
    /// Frames whose code object could not be read.
    pub unreadable: u64,
}

struct Named {
    frames: Vec<Frame>,
    allocated: u64,
}

impl<'a> Stacks<'a> {
    pub fn new(live: &'a LivePython, inside: &'a Inside, rules: &'a [(u8, Rule)]) -> Self {
        Self {
            live,
            inside,
            rules,
            known: FxHashMap::default(),
            seen: Vec::new(),
            codes: FxHashMap::default(),
            unreadable: 0,
        }
    }

    /// Name the stacks that are new.
    pub fn look(&mut self, windows: &PyWindows, pid: u32) {
        let fresh = windows.stacks(pid, |hash| self.known.contains_key(&hash));
        for stack in fresh {
            let mut frames = Vec::with_capacity(stack.frames.len());
            for frame in stack.frames.iter().filter(|f| f.code != 0) {
                self.learn(windows, pid, frame.code);
                frames.push(self.frame(frame));
            }
            let id = u32::try_from(self.seen.len()).unwrap_or(u32::MAX);
            self.known.insert(stack.hash, id);
            self.seen.push(Named { frames, allocated: stack.count });
        }
    }

    /// How often each was seen in the end.
    pub fn count(&mut self, windows: &PyWindows, pid: u32) {
        for stack in windows.stacks(pid, |_| false) {
            let id = self.known.get(&stack.hash);
            if let Some(named) = id.and_then(|i| self.seen.get_mut(*i as usize)) {
                named.allocated = stack.count;
            }
        }
    }

    /// A code object that has been looked at may have been freed since, and
    /// another be at its address: it is one function as long as its first line
    /// and table are the same.
    fn learn(&mut self, windows: &PyWindows, pid: u32, at: u64) {
        let objects = self.live.objects();
        let now = Code::read(&objects, self.inside.running, at);
        if self.codes.get(&at).is_some_and(|known| *known == now) {
            return;
        }
        if self.rules.iter().any(|(_, r)| matches!(r, Rule::Local(_))) {
            let names = code::local_names(&objects, self.inside.running, at).unwrap_or_default();
            windows.local(pid, at, local(self.rules, &names));
        }
        self.unreadable += u64::from(now.is_none());
        self.codes.insert(at, now);
    }

    fn frame(&self, frame: &PyFrame) -> Frame {
        let Some(Some(code)) = self.codes.get(&frame.code) else {
            return Frame {
                function: format!("code at {:#x}", frame.code),
                file: String::new(),
                line: 0,
                start_line: 0,
                inlined: false,
                origin: Origin::Unknown,
            };
        };
        Frame {
            function: clean(&code.function),
            file: clean(&code.file),
            line: code.line(self.inside.running, frame.code, frame.instruction),
            start_line: code.first_line,
            inlined: false,
            origin: of_python_file(&code.file),
        }
    }

    pub fn id(&self, hash: u64) -> Option<u32> {
        self.known.get(&hash).copied()
    }

    /// Of the stack with that hash, leaf first; empty when it has none.
    pub fn of(&self, hash: u64) -> &[Frame] {
        let seen = self.id(hash).and_then(|id| self.seen.get(id as usize));
        seen.map_or(&[], |s| &s.frames)
    }

    pub fn allocated(&self, id: u32) -> u64 {
        self.seen.get(id as usize).map_or(0, |s| s.allocated)
    }

    pub fn frames(self) -> Vec<Vec<Frame>> {
        self.seen.into_iter().map(|s| s.frames).collect()
    }
}

/// A label as text; `None` when there is none.
pub fn tenant(label: &RecordedLabel) -> Option<String> {
    if label.key == RecordedLabel::NONE {
        return None;
    }
    let value = label.value.get(..usize::from(label.len))?;
    let text = if label.key & PyEntry::INT != 0 {
        u64::from_ne_bytes(value.try_into().ok()?).to_string()
    } else if label.key & PyEntry::LATIN1 != 0 {
        value.iter().map(|b| char::from(*b)).collect()
    } else {
        String::from_utf8_lossy(value).into_owned()
    };
    Some(clean(&text)).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_as_text() {
        let label = |key, value: &[u8]| {
            let mut l =
                RecordedLabel { key, len: value.len() as u8, full_len: 0, _pad: 0, value: [0; 64] };
            l.value[..value.len()].copy_from_slice(value);
            tenant(&l)
        };
        assert_eq!(label(3, b"acme"), Some("acme".into()));
        assert_eq!(label(1 | PyEntry::LATIN1, b"caf\xe9"), Some("café".into()));
        assert_eq!(label(1 | PyEntry::INT, &77u64.to_ne_bytes()), Some("77".into()));
        assert_eq!(label(RecordedLabel::NONE, b""), None);
        assert_eq!(label(1 | PyEntry::INT, b"short"), None);
        assert_eq!(label(1, b"\x1b"), None);
    }
}
