//! From a snapshot of goroutines to groups by stack, with names.

use std::{collections::hash_map::Entry, sync::Arc};

use rustc_hash::FxHashMap;

use crate::{
    report::{
        clean::clean,
        goroutines::{Frame, Group, Labels, Member, Unseen},
    },
    symbol::{self, Symbolizer},
    target::{
        go::{
            binary::GoBinary,
            goroutines::{Found, Goroutine, State, at},
            labels,
            layout::GoLayout,
            snapshot::{Snapshot, StackState},
            waits,
        },
        memory::Memory,
    },
};

/// Names of addresses, each looked up once: a look-up is some twenty reads of
/// the file, and a hundred thousand goroutines start at a few dozen places.
pub(super) struct Names {
    symbolizer: Symbolizer,
    bias: u64,
    frames: FxHashMap<u64, Arc<[Frame]>>,
    functions: FxHashMap<u64, Option<Arc<str>>>,
}

impl Names {
    pub(super) fn new(pid: u32, binary: Arc<GoBinary>, bias: u64) -> Self {
        Self {
            symbolizer: Symbolizer::new(pid, binary, bias),
            bias,
            frames: FxHashMap::default(),
            functions: FxHashMap::default(),
        }
    }

    /// Frames of a return address, innermost first.
    fn of(&mut self, address: u64) -> Arc<[Frame]> {
        if let Some(frames) = self.frames.get(&address) {
            return Arc::clone(frames);
        }
        let call = address.wrapping_sub(1);
        let step = self.symbolizer.binary().unwind_step(call.wrapping_sub(self.bias));
        let entry = step.map_or(call, |s| s.entry.wrapping_add(self.bias));
        let frames: Arc<[Frame]> = self
            .symbolizer
            .frames(address)
            .into_iter()
            .map(|f: symbol::Frame| Frame {
                file: (!f.file.is_empty()).then(|| clean(&f.file).into()),
                line: (f.line > 0).then_some(f.line),
                function: clean(&f.function).into(),
                inlined: f.inlined,
                address: call,
                offset: address.saturating_sub(entry),
                start_line: f.start_line,
            })
            .collect();
        self.frames.insert(address, Arc::clone(&frames));
        frames
    }

    /// The function itself, also a wrapper.
    fn function(&mut self, entry: u64) -> Option<Arc<str>> {
        if let Some(name) = self.functions.get(&entry) {
            return name.clone();
        }
        let step = self.symbolizer.binary().unwind_step(entry.wrapping_sub(self.bias));
        let name: Option<Arc<str>> = step.map(|s| clean(&s.function).into());
        self.functions.insert(entry, name.clone());
        name
    }
}

/// Distinct labels. Equal ones lie at many addresses.
#[derive(Default)]
struct LabelSets {
    numbers: FxHashMap<Arc<Labels>, u32>,
    /// By number.
    sets: Vec<Arc<Labels>>,
    /// By `g.labels`; `None` where they could not be read.
    by_address: FxHashMap<u64, Option<u32>>,
}

impl LabelSets {
    fn intern(&mut self, labels: Labels) -> u32 {
        let next = u32::try_from(self.sets.len()).unwrap_or(u32::MAX);
        match self.numbers.entry(Arc::new(labels)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                self.sets.push(Arc::clone(new.key()));
                *new.insert(next)
            }
        }
    }

    /// Read those of all goroutines. They are believed when a goroutine that
    /// had them has them still: then they were not let go in between, and what
    /// is not let go never changes.
    fn read(&mut self, memory: &impl Memory, layout: &GoLayout, all: &[Goroutine]) {
        let mut holders: FxHashMap<u64, &Goroutine> = FxHashMap::default();
        for g in all {
            // The oldest, which come first, live longest.
            holders.entry(g.labels).or_insert(g);
        }
        let addresses: Vec<u64> = holders.keys().copied().collect();
        labels::all(memory, layout.labels, &addresses, |i, found| {
            let number = found.ok().map(|labels| {
                self.intern(labels.iter().map(|(k, v)| (clean(k), clean(v))).collect())
            });
            self.by_address.extend(addresses.get(i).map(|address| (*address, number)));
        });
        let holders: Vec<&Goroutine> = holders.into_values().filter(|g| g.labels != 0).collect();
        let places: Vec<u64> = holders.iter().map(|g| g.address).collect();
        at(memory, layout, &places, |i, found| {
            let Some(g) = holders.get(i) else { return };
            let same = |now: &Goroutine| (now.id, now.labels) == (g.id, g.labels);
            if !matches!(found, Found::Alive(now) if same(&now)) {
                self.by_address.insert(g.labels, None);
            }
        });
    }
}

pub(super) struct Grouper {
    layout: &'static GoLayout,
    names: Names,
    labels: LabelSets,
    /// By `g.startpc`.
    starts: FxHashMap<u64, Start>,
    now_ns: Option<u64>,
    pub(super) unseen: Unseen,
}

/// Whose goroutine it is, by the function that it starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Users,
    Systems,
    /// The runtime's own, unless it calls back into the user's code.
    CallsBack,
}

type Key = (StackState, State, u8, u64, u64, u32);

impl Grouper {
    /// `now_ns` is on the clock of `g.waitsince`.
    pub(super) fn new(
        layout: &'static GoLayout,
        names: Names,
        now_ns: Option<u64>,
        unseen: Unseen,
    ) -> Self {
        let (labels, starts) = (LabelSets::default(), FxHashMap::default());
        Self { layout, names, labels, starts, now_ns, unseen }
    }

    pub(super) fn groups(
        &mut self,
        memory: &impl Memory,
        s: &Snapshot,
        system: bool,
    ) -> Vec<Group> {
        self.labels.read(memory, self.layout, &s.goroutines);
        let none = self.labels.intern(Labels::new());
        let mut members: FxHashMap<Key, Vec<Member>> = FxHashMap::default();
        for (g, stack) in s.all() {
            if !system && self.is_system(g, stack, s) {
                self.unseen.system += 1;
                continue;
            }
            match stack {
                StackState::Running => self.unseen.running += 1,
                StackState::Torn => self.unseen.torn += 1,
                StackState::Partial(_) => self.unseen.partial += 1,
                StackState::Known(_) => {}
            }
            let reason = if g.state.waits() { g.wait_reason } else { 0 };
            let labels = self.labels.by_address.get(&g.labels).copied().flatten();
            self.unseen.labels += usize::from(labels.is_none());
            let key = (stack, g.state, reason, g.gopc, g.startpc, labels.unwrap_or(none));
            members.entry(key).or_default().push(self.member(g));
        }
        let mut groups: Vec<Group> =
            members.into_iter().map(|(key, members)| self.group(s, key, members)).collect();
        groups.sort_by_cached_key(|g| {
            (std::cmp::Reverse(g.count), g.members.first().map_or(0, |m| m.id))
        });
        groups
    }

    fn member(&self, g: &Goroutine) -> Member {
        let blocked = g.state.waits() || g.state == State::Syscall;
        let since = Some(g.wait_since).filter(|since| *since > 0 && blocked);
        let waited = since.zip(self.now_ns).and_then(|(since, now)| now.checked_sub(since));
        Member {
            id: g.id,
            parent: (g.parent > 0).then_some(g.parent),
            waiting_at_most_s: waited.map(|ns| (ns / 1_000_000) as f64 / 1e3),
            locked_to_thread: g.locked,
        }
    }

    fn group(&mut self, s: &Snapshot, key: Key, members: Vec<Member>) -> Group {
        let (stack, state, reason, gopc, startpc, labels) = key;
        let labels = self.labels.sets.get(labels as usize).cloned();
        let (addresses, stack_is): (&[u64], _) = match stack {
            StackState::Known(i) => (stack_at(s, i), "complete"),
            StackState::Partial(i) => (stack_at(s, i), "could not be followed further"),
            StackState::Running => (&[], "not known: it was running"),
            StackState::Torn => (&[], "not known: it changed whenever it was read"),
        };
        let stack = addresses.iter().flat_map(|pc| self.names.of(*pc).to_vec()).collect();
        let reason = state.waits().then(|| waits::reason(self.layout.minor, reason)).flatten();
        Group {
            count: members.len(),
            state: state.name(),
            wait_reason: reason.filter(|r| !r.is_empty()),
            leaked: state == State::Leaked,
            stack_is,
            stack,
            created_by: (gopc > 0).then(|| self.names.of(gopc).last().cloned()).flatten(),
            start_function: self.names.function(startpc),
            labels: labels.unwrap_or_default(),
            members,
        }
    }

    /// `isSystemGoroutine`: the runtime's own, unless it calls back into the
    /// user's code.
    fn is_system(&mut self, g: &Goroutine, stack: StackState, s: &Snapshot) -> bool {
        let start = match self.starts.get(&g.startpc) {
            Some(start) => *start,
            None => {
                let start = Start::of(self.names.function(g.startpc).as_deref().unwrap_or(""));
                self.starts.insert(g.startpc, start);
                start
            }
        };
        match (start, stack) {
            (Start::Users, _) => false,
            (Start::Systems, _) => true,
            (Start::CallsBack, StackState::Known(i) | StackState::Partial(i)) => stack_at(s, i)
                .iter()
                .all(|pc| self.names.of(*pc).iter().all(|f| f.function.starts_with("runtime."))),
            (Start::CallsBack, StackState::Running | StackState::Torn) => false,
        }
    }
}

impl Start {
    fn of(function: &str) -> Self {
        match function.strip_prefix("runtime.") {
            None | Some("main" | "corostart" | "handleAsyncEvent") => Self::Users,
            Some("runfinq" | "runFinalizers" | "runCleanups") => Self::CallsBack,
            Some(_) => Self::Systems,
        }
    }
}

fn stack_at(s: &Snapshot, i: u32) -> &[u64] {
    s.stacks.get(i as usize).map_or(&[], Vec::as_slice)
}
