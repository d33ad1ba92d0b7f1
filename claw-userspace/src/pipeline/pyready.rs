//! What a window on a CPython process has to know before it opens: the types
//! and containers that grow, the allocators they pass, and how the process's
//! frames and context variables are read.

use std::collections::BTreeSet;

use claw_common::{
    PyLocal, PyStore, PyTarget,
    python::{MAX_VARIABLES, PyVariable, type_word},
};
use rustc_hash::FxHashSet;

use super::{
    pystores,
    pywindow::{NoWindow, Watch, gone},
};
use crate::{
    probe::{Passes, PyPlan},
    report::clean::clean,
    target::{
        cpython::{
            census::Census,
            layout::{self, flags},
            live::{Inside, LivePython},
            members::{self, Members, Wanted},
        },
        memory::Memory,
    },
    tenant::Rule,
};

const ALL_CLASSES: u32 = u32::MAX;

/// Everything that has to be known before it opens.
pub struct Ready {
    pub live: LivePython,
    pub inside: Inside,
    pub names: Vec<String>,
    pub wanted: Vec<Wanted>,
    /// An entry is that of the very object.
    pub exact: Vec<bool>,
    /// Size classes of their objects.
    pub classes: u32,
    pub plan: PyPlan,
    pub target: PyTarget,
    pub types: Vec<(u64, u32)>,
    /// Containers that are watched, with how each is read.
    pub containers: Vec<(u64, PyStore)>,
}

pub fn prepare(watch: &Watch) -> Result<Ready, NoWindow> {
    let live = LivePython::open(watch.process.clone()).map_err(gone)?;
    let inside = live.inside().map_err(NoWindow::Passing)?;
    let objects = live.objects();
    let census = live.census().map_err(gone)?.census;
    let rows = || census.rows.iter().filter(|r| watch.types.contains(&clean(&r.type_name)));
    let (mut names, mut wanted) = (Vec::new(), Vec::new());
    for row in rows() {
        if let Some(w) = Wanted::at(&objects, inside.layout, row.type_at) {
            names.push(clean(&row.type_name));
            wanted.push(w);
        }
    }
    if wanted.is_empty() {
        return Err(NoWindow::Passing("of the types that grow no object is left".into()));
    }
    let regions = live.regions().map_err(gone)?;
    let before = members::find(&objects, &regions, &wanted, ALL_CLASSES);
    let containers = pystores::readable(&live, &watch.containers);
    let allocators = watch.allocators || containers.is_empty();
    let dealloc = |w: &Wanted| live.word(w.address + layout::TP_DEALLOC).unwrap_or(0);
    let of = |w: &Wanted| {
        objects.type_at(w.address).map_or(&[][..], |t| passes(&live, t.address, t.flags))
    };
    // What makes and drops lists, dicts and strings all the time costs too much
    // to be looked at where the containers tell the same.
    let probed = || wanted.iter().filter(|w| allocators || of(w) == [Passes::Instances]);
    let passed: FxHashSet<Passes> = probed().flat_map(of).copied().collect();
    let passed: Vec<Passes> = Passes::ALL.into_iter().filter(|p| passed.contains(p)).collect();
    // Without this the next object at an address would be taken for the one
    // whose allocation was seen: freed ones are kept for reuse.
    let kept = probed().filter(|w| of(w).contains(&Passes::Collected));
    let deallocs: BTreeSet<u64> = kept.map(dealloc).collect();
    let plan = PyPlan::of(&live.python, &passed, &deallocs).map_err(NoWindow::Lasting)?;
    let exact =
        wanted.iter().map(|w| of(w) == [Passes::Instances] || plan.sees_end(dealloc(w))).collect();
    let types = wanted
        .iter()
        .enumerate()
        .filter_map(|(i, w)| Some((w.address, type_word(before.class(i)?, w.before as u32))))
        .collect();
    let target = target(watch, &live, &inside, &census, &before);
    let classes = before.all_classes();
    Ok(Ready { live, inside, names, wanted, exact, classes, plan, target, types, containers })
}

/// Which allocators the objects of a type come from.
fn passes(live: &LivePython, at: u64, type_flags: u64) -> &'static [Passes] {
    let of_any_size = live.word(at + layout::TP_ITEMSIZE).is_some_and(|s| s != 0);
    if type_flags & flags::HEAPTYPE != 0 && !of_any_size {
        &[Passes::Instances]
    } else if type_flags & flags::HAVE_GC != 0 && !of_any_size {
        &[Passes::Instances, Passes::Collected]
    } else {
        &[Passes::Blocks]
    }
}

pub fn target(
    watch: &Watch,
    live: &LivePython,
    inside: &Inside,
    census: &Census,
    before: &Members,
) -> PyTarget {
    let r = inside.running;
    let named = |name: &str| {
        census.rows.iter().find(|row| row.type_name == name).map_or(0, |row| row.type_at)
    };
    let rank = |wanted: fn(&Rule) -> bool| {
        watch.rules.iter().find(|(_, r)| wanted(r)).map(|(rank, _)| u32::from(*rank))
    };
    let mut target = PyTarget {
        tstate_at: inside.thread_at,
        used_pools: inside.used_pools,
        type_str: live.python.types.str_,
        type_int: live.python.types.int,
        type_bitmap: named("hamt_bitmap_node"),
        type_array: named("hamt_array_node"),
        ts_frame: r.ts_frame,
        cframe_frame: r.cframe_frame.unwrap_or(u32::MAX),
        f_code: r.f_code,
        f_previous: r.f_previous,
        f_instruction: r.f_instruction,
        f_locals: r.f_locals,
        f_owner: r.f_owner.unwrap_or(r.f_instruction),
        owner_mask: r.f_owner.map_or(0, |_| 0xff),
        ts_context: r.ts_context,
        str_ascii: inside.layout.ascii_size as u32,
        str_compact: inside.layout.compact_size as u32,
        int_tag: u32::from(inside.layout.minor >= 12),
        classes: before.all_classes(),
        thread_rank: rank(|r| *r == Rule::ThreadName).unwrap_or(u32::MAX),
        locals: u32::from(rank(|r| matches!(r, Rule::Local(_))).is_some()),
        ..PyTarget::default()
    };
    for (slot, variable) in target.variables.iter_mut().zip(variables(watch, live, census)) {
        *slot = variable;
    }
    target
}

/// The types of a context's nodes are found where they are met: a context may
/// live too shortly for a census. Gives whether `target` has changed.
pub fn learn_node(live: &LivePython, met: u64, target: &mut PyTarget) -> bool {
    if met == 0 || met == target.type_bitmap || met == target.type_array {
        return false;
    }
    let slot = match live.objects().type_at(met).map(|t| t.name).as_deref() {
        Some("hamt_bitmap_node") => &mut target.type_bitmap,
        Some("hamt_array_node") => &mut target.type_array,
        _ => return false,
    };
    *slot = met;
    true
}

/// The context variables that rules name, best first.
fn variables(watch: &Watch, live: &LivePython, census: &Census) -> Vec<PyVariable> {
    let objects = live.objects();
    let types: Vec<Wanted> = census
        .rows
        .iter()
        .filter(|r| matches!(r.type_name.as_str(), "ContextVar" | "_contextvars.ContextVar"))
        .filter_map(|r| Wanted::at(&objects, objects.layout, r.type_at))
        .collect();
    let Ok(regions) = live.regions() else { return Vec::new() };
    let all = members::find(&objects, &regions, &types, ALL_CLASSES);
    let mut found: Vec<PyVariable> = all
        .objects
        .keys()
        .filter_map(|at| {
            let name = objects.string(live.word(at + layout::CV_NAME)?)?;
            let rule = Rule::ContextVar(name);
            let (rank, _) = watch.rules.iter().find(|(_, r)| *r == rule)?;
            let hash = hamt_hash(live.word(at + layout::CV_HASH)?);
            Some(PyVariable { address: *at, hash, rank: u32::from(*rank) })
        })
        .collect();
    found.sort_by_key(|v| (v.rank, v.address));
    found.truncate(MAX_VARIABLES);
    found
}

/// `hamt_hash` (`Python/hamt.c`): a `Py_hash_t` folded to 32 bits.
fn hamt_hash(hash: u64) -> u32 {
    let folded = (hash as u32) ^ ((hash >> 32) as u32);
    if folded == u32::MAX { u32::MAX - 1 } else { folded }
}

/// What a local variable is to the BPF side.
pub fn local(rules: &[(u8, Rule)], names: &[(String, u16, bool)]) -> PyLocal {
    let best = rules.iter().find_map(|(rank, rule)| {
        let Rule::Local(wanted) = rule else { return None };
        let (_, index, cell) = names.iter().find(|(name, _, _)| name == wanted)?;
        Some(PyLocal { index: *index, cell: u16::from(*cell), rank: u32::from(*rank) })
    });
    best.unwrap_or(PyLocal { index: PyLocal::NONE, cell: 0, rank: 0 })
}

impl LivePython {
    fn word(&self, at: u64) -> Option<u64> {
        self.objects().memory.u64_at(at).ok()
    }
}
