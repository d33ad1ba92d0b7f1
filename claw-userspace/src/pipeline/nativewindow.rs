//! One window on the C allocator of a CPython process: what is allocated while
//! it is open, and not freed by its end or some seconds later.
//!
//! First everything is written down, until the time or most of the budget is
//! used. Then nothing new is, and only what frees stays probed: work that was
//! under way ends, and what it had is taken out.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use claw_common::{
    NativeTarget, PyTarget,
    native::{MAPPED, OFF, RECORDING, SETTLING},
};

use super::{
    account::Account,
    clock::monotonic_ns,
    duty::Duty,
    nativegain::{Gain, Left, gains},
    pyready::{learn_node, target},
    pystacks::Stacks,
    pywindow::{LOOK, NoWindow, SAVED_NS, Watch, gone},
    windows::Usage,
};
use crate::{
    probe::NativePlan,
    report::clean::clean,
    stream::{NativeWindow, Placed},
    symbol::{Frame, Origin, native_frames},
    target::{
        allocator::Allocator,
        cpython::{
            census::Census,
            live::{Inside, LivePython},
            members::Members,
        },
        process::Mapping,
    },
};

/// Everything is written down for this long at the latest, ns …
const LONGEST_NS: u64 = 5_000_000_000;
/// … or until this share of what was saved up for the window is used.
const RECORDED: f64 = 0.6;
/// From there to its end, ns.
const SETTLE_NS: u64 = 5_000_000_000;
/// `struct pthread.tid` of glibc (`nptl/descr.h`).
const PTHREAD_TID: u32 = 720;
/// Arenas of pymalloc (`ARENA_SIZE`, 3.8 and 3.9, later): its pools are in the
/// census.
const ARENAS: [u64; 2] = [256 << 10, 1 << 20];

struct Ready {
    live: LivePython,
    inside: Inside,
    plan: NativePlan,
    allocator: String,
    python: PyTarget,
    native: NativeTarget,
    mappings: Vec<Mapping>,
}

fn prepare(watch: &Watch) -> Result<Ready, NoWindow> {
    let live = LivePython::open(watch.process.clone()).map_err(gone)?;
    let inside = live.inside().map_err(NoWindow::Passing)?;
    let allocator = Allocator::of(&watch.process).map_err(NoWindow::Lasting)?;
    let plan = NativePlan::of(&allocator).map_err(NoWindow::Lasting)?;
    let passing = |e: &dyn std::fmt::Display| NoWindow::Passing(e.to_string());
    let ns = format!("/proc/{}/ns/pid", watch.process.pid);
    let ns = Path::new(&ns).metadata().map_err(|e| passing(&e))?;
    let r = inside.running;
    let native = NativeTarget {
        ns_dev: ns.dev(),
        ns_ino: ns.ino(),
        ts_tid: r.ts_native.unwrap_or(0),
        ts_pthread: r.ts_thread,
        pthread_tid: PTHREAD_TID,
        active: OFF,
    };
    // Variables that name tenants are objects like others.
    let census: Census = live.census().map_err(gone)?.census;
    let python = target(watch, &live, &inside, &census, &Members::default());
    let mappings = watch.process.mappings().map_err(|e| passing(&e))?;
    Ok(Ready { live, inside, plan, allocator: allocator.file, python, native, mappings })
}

pub fn window(
    watch: &Watch,
    duty: &mut Duty,
    stopped: &AtomicBool,
) -> Result<(NativeWindow, Placed), NoWindow> {
    let pid = watch.process.pid;
    let native = watch.windows.native().map_err(NoWindow::Lasting)?;
    let mut ready = prepare(watch)?;
    let refused = |e: crate::probe::ProbeError| NoWindow::Lasting(e.to_string());
    let full = |e: crate::probe::ProbeError| NoWindow::Passing(e.to_string());
    watch.windows.set(pid, ready.python).map_err(full)?;
    let mut usage = Usage::new(pid, monotonic_ns());
    let mut stacks = Stacks::new(&ready.live, &ready.inside, &watch.rules);
    let trap = if ready.plan.stepped { watch.cost.stepped } else { watch.cost.emulated };
    let mut account = Account::new(trap);
    let with = |active| NativeTarget { active, ..ready.native };
    let mut placed = Placed { pid, from_ns: monotonic_ns(), ..Placed::default() };
    let opened = native.open(pid, with(OFF), &ready.plan).map_err(refused)?;
    native.set(pid, with(RECORDING)).map_err(full)?;
    let from_ns = monotonic_ns();
    let mut to_ns;
    loop {
        thread::park_timeout(LOOK);
        to_ns = monotonic_ns();
        duty.advance(to_ns, 0.0);
        usage.look(to_ns);
        account.pay(native.stat(pid).cost, duty, usage.used);
        stacks.look(&watch.windows, pid);
        let met = native.stat(pid).unknown_node;
        if learn_node(&ready.live, met, &mut ready.python) {
            watch.windows.set(pid, ready.python).map_err(full)?;
        }
        let used = account.lost_ns >= watch.max_overhead * SAVED_NS * RECORDED;
        let over = to_ns.saturating_sub(from_ns) >= LONGEST_NS;
        if over || used || duty.must_close() || stopped.load(Ordering::Relaxed) {
            break;
        }
    }
    native.set(pid, with(SETTLING)).map_err(full)?;
    drop(opened.allocate);
    let mut checked_ns;
    loop {
        thread::park_timeout(LOOK * 4);
        checked_ns = monotonic_ns();
        duty.advance(checked_ns, 0.0);
        usage.look(checked_ns);
        account.pay(native.stat(pid).cost, duty, usage.used);
        let over = checked_ns.saturating_sub(to_ns) >= SETTLE_NS;
        if over || duty.must_close() || stopped.load(Ordering::Relaxed) {
            break;
        }
    }
    native.set(pid, with(OFF)).map_err(full)?;
    stacks.look(&watch.windows, pid);
    drop(opened.release);
    placed.to_ns = monotonic_ns();
    duty.advance(placed.to_ns, 0.0);
    let stat = native.stat(pid);
    let tail = account.pay(stat.cost, duty, usage.used);
    duty.closed(account.lost_ns, tail, false);
    placed.lost_work_ns = account.lost_ns;
    // Libraries may have been loaded since.
    ready.mappings = watch.process.mappings().unwrap_or(ready.mappings);
    let names = Names::new(pid, &ready.mappings, &ready.live.python.file);
    let (mut entries, made_by) = (native.entries(pid), native.stacks(pid));
    entries.retain(|e| {
        let caller = made_by.get(&e.stack).map_or(0, |s| s.caller);
        !names.is_its_own(caller, e.class, &ready.allocator)
    });
    let half_ns = from_ns + (to_ns - from_ns) / 2;
    let left = Left { entries, stacks: made_by, freed: native.freed(pid), half_ns };
    let (gains, kept_bytes) = gains(&left);
    let (mut by, mut all) = (Vec::new(), Vec::new());
    for Gain { stack, caller, mut writer } in gains {
        let (mut frames, library, interpreter) = names.of(caller);
        frames.extend(stacks.of(stack).iter().cloned());
        writer.stack = u32::try_from(all.len()).unwrap_or(u32::MAX);
        (writer.library, writer.interpreter) = (clean(&library), interpreter);
        all.push(frames);
        by.push(writer);
    }
    let lost = [
        ("native_no_room", stat.no_room),
        ("python_tenant_unreadable", stat.label_unreadable),
        ("python_code_unreadable", stacks.unreadable),
    ];
    let seen = NativeWindow {
        pid,
        from_ns,
        to_ns,
        checked_ns,
        allocator: clean(&ready.allocator),
        functions: ready.plan.functions.iter().map(|f| (*f).to_owned()).collect(),
        hits: stat.cost.hits,
        lost_work_ns: account.lost_ns,
        lost: lost.into_iter().map(|(n, v)| (n.to_owned(), v)).collect::<BTreeMap<_, _>>(),
        stacks: all,
        kept_bytes,
        by,
    };
    Ok((seen, placed))
}

/// What C code in a process is called.
struct Names<'a> {
    pid: u32,
    mappings: &'a [Mapping],
    /// File that holds CPython.
    python: &'a str,
    symbolizer: blazesym::symbolize::Symbolizer,
}

impl<'a> Names<'a> {
    fn new(pid: u32, mappings: &'a [Mapping], python: &'a str) -> Self {
        Self { pid, mappings, python, symbolizer: blazesym::symbolize::Symbolizer::new() }
    }

    fn library(&self, pc: u64) -> Option<&Mapping> {
        self.mappings.iter().find(|m| (m.start..m.end).contains(&pc) && !m.path.is_empty())
    }

    /// Whether a mapping is none of the service's: an arena of pymalloc, or what
    /// the C library keeps itself, such as stacks of threads.
    fn is_its_own(&self, caller: u64, class: u64, allocator: &str) -> bool {
        if class & MAPPED == 0 {
            return false;
        }
        self.library(caller.wrapping_sub(1)).is_some_and(|m| {
            m.path == allocator || m.path == self.python && ARENAS.contains(&(class & !MAPPED))
        })
    }

    /// Frames of a return address, its file, and whether that is CPython's.
    fn of(&self, caller: u64) -> (Vec<Frame>, String, bool) {
        let pc = caller.wrapping_sub(1);
        let mapping = self.library(pc);
        let library = mapping.map_or_else(|| "(unknown)".to_owned(), |m| m.path.clone());
        let mut frames = native_frames(&self.symbolizer, self.pid, pc);
        for f in &mut frames {
            f.function = clean(&f.function);
            f.file = clean(if f.file.is_empty() { &library } else { &f.file });
        }
        if frames.is_empty() {
            let offset = mapping.map_or(pc, |m| pc - m.start + m.offset);
            frames.push(Frame {
                function: format!(
                    "{}+{offset:#x}",
                    clean(library.rsplit('/').next().unwrap_or(""))
                ),
                file: clean(&library),
                line: 0,
                start_line: 0,
                inlined: false,
                origin: Origin::Native,
            });
        }
        let interpreter = library == self.python;
        (frames, library, interpreter)
    }
}
