//! The ways along which the objects of a type are held, put together by what
//! they have in common: the root, and of each step the type and the name.

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::{BUFFER, Graph, NOBODY, Node, ROOT, Root, Source, label::Label};
use crate::{
    report::clean::clean,
    target::{
        cpython::{
            layout,
            object::Objects,
            regions::Region,
            threads::{Function, Offsets, interpreters},
        },
        memory::Memory,
    },
};

/// One step of a chain: label, type, objects like it, one of them.
type Link = (Label, u32, u64, Node);

/// Ways told apart, and steps of one; what lies beyond counts as the last.
const MOST_PATTERNS: usize = 1 << 16;
const MOST_STEPS: u32 = 24;
/// Ways given for a type, those with the most objects.
const MOST_PATHS: usize = 8;

/// What a way begins at, in the terms of the language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootKind {
    #[default]
    Global,
    ClassAttribute,
    Closure,
    DefaultArgument,
    LruCache,
    Local,
    /// Memory of the interpreter or a C extension.
    Native,
    /// Nothing leads there: garbage that was not collected.
    Unreachable,
}

/// One step: an object, and under which name the one before holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub type_name: String,
    pub field: Option<String>,
    /// Different objects at this step.
    pub count: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    pub kind: RootKind,
    /// `module.NAME`, `module.Class.attribute`, `variable of module.function` …
    pub root: String,
    pub file: Option<String>,
    pub line: Option<u32>,
    /// From the root's value to the object itself.
    pub steps: Vec<Step>,
    pub objects: u64,
    /// Of the objects themselves, without what they hold.
    pub bytes: u64,
    /// Most entries that the container on the way ever keeps, where it says so.
    pub bound: Option<u64>,
}

/// Who holds the objects of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeHolders {
    pub type_name: String,
    pub objects: u64,
    /// Most objects first.
    pub paths: Vec<Path>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Root(Root),
    Unreachable,
    Step(u32, Label, u32),
}

#[derive(Debug)]
struct Pattern {
    key: Key,
    depth: u32,
    /// Objects with this way, and one of them.
    nodes: u64,
    sample: Node,
}

struct Paths<'g, 'a, M> {
    graph: &'g mut Graph<'a, M>,
    patterns: Vec<Pattern>,
    known: FxHashMap<Key, u32>,
    of_node: FxHashMap<Node, u32>,
}

/// Objects and bytes by type and way.
type Ends = FxHashMap<(u32, u32), (u64, u64)>;

/// What a memory that stands still says of holders.
#[derive(Clone, Debug, Default)]
pub struct HeldTypes {
    pub types: Vec<TypeHolders>,
    /// Everything was followed: what was not reached is unreachable.
    pub whole: bool,
    /// The collector is switched off (`gc.disable()`).
    pub gc_off: bool,
    /// A collection was under way: links are not what they were made to be.
    pub collecting: bool,
}

/// The holders, in a memory that stands still, of all types of which `wanted`
/// says so, by name. `runtime` is the address of `_PyRuntime`.
pub fn held<M: Memory>(
    objects: Objects<'_, M>,
    runtime: u64,
    regions: &[Region],
    wanted: &dyn Fn(&str) -> bool,
) -> HeldTypes {
    let minor = objects.layout.minor;
    let offsets = Offsets::of(minor, objects.memory, runtime);
    let state = offsets.map(|o| interpreters(objects.memory, runtime, minor, &o));
    let gc_off = state.as_ref().is_some_and(|s| !s.gc_enabled);
    let state = state.unwrap_or_default();
    let mut graph = Graph::new(&Source { objects, regions, frames: &state.frames });
    HeldTypes {
        types: holders(&mut graph, wanted),
        whole: graph.is_whole(),
        gc_off,
        collecting: state.collecting,
    }
}

/// The holders of all types of which `wanted` says so, by name.
pub fn holders<M: Memory>(
    graph: &mut Graph<'_, M>,
    wanted: &dyn Fn(&str) -> bool,
) -> Vec<TypeHolders> {
    let mut rows: FxHashMap<u32, u64> = (0u32..)
        .zip(graph.types.all())
        .filter(|(_, t)| wanted(&t.name))
        .map(|(row, _)| (row, 0))
        .collect();
    let mut paths = Paths {
        graph,
        patterns: Vec::new(),
        known: FxHashMap::default(),
        of_node: FxHashMap::default(),
    };
    let mut ends = Ends::default();
    for node in 0..paths.graph.rows.len() as Node {
        let Some(row) = paths.graph.rows.get(node as usize).copied() else { break };
        let Some(objects) = rows.get_mut(&row) else { continue };
        *objects += 1;
        let end = paths.end(node);
        let bytes = paths.graph.size(node);
        let sum = ends.entry((row, end)).or_default();
        *sum = (sum.0 + 1, sum.1 + bytes);
    }
    let mut order: Vec<(u32, u64)> = rows.into_iter().filter(|(_, n)| *n > 0).collect();
    order.sort_unstable_by_key(|(row, objects)| (std::cmp::Reverse(*objects), *row));
    order
        .into_iter()
        .map(|(row, objects)| {
            let mut of: Vec<(u32, (u64, u64))> =
                ends.iter().filter(|((r, _), _)| *r == row).map(|((_, p), v)| (*p, *v)).collect();
            of.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
            let of = of.into_iter().take(MOST_PATHS);
            TypeHolders {
                type_name: paths.type_name(row),
                objects,
                paths: of.map(|(pattern, held)| paths.path(pattern, held)).collect(),
            }
        })
        .collect()
}

impl<M: Memory> Paths<'_, '_, M> {
    fn type_name(&self, row: u32) -> String {
        self.graph.types.get(row).map_or_else(String::new, |t| t.name.clone())
    }

    fn intern(&mut self, key: Key, sample: Node) -> u32 {
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let parent = match &key {
            Key::Step(parent, label, row) => {
                let above = self.patterns.get(*parent as usize);
                // A chain of the same step (a linked list) is one step, and so
                // is whatever does not fit.
                let same = above.is_some_and(|p| {
                    p.depth >= MOST_STEPS
                        || matches!(&p.key, Key::Step(_, l, r) if l == label && r == row)
                });
                if same || self.patterns.len() >= MOST_PATTERNS {
                    return *parent;
                }
                above.map_or(0, |p| p.depth)
            }
            Key::Root(_) | Key::Unreachable => 0,
        };
        let number = self.patterns.len() as u32;
        self.patterns.push(Pattern { key: key.clone(), depth: parent + 1, nodes: 0, sample });
        self.known.insert(key, number);
        number
    }

    /// The way of an object that is asked about.
    fn end(&mut self, node: Node) -> u32 {
        if let Some(known) = self.of_node.get(&node) {
            return *known;
        }
        match self.graph.parents.get(node as usize).copied() {
            None | Some(NOBODY) => self.intern(Key::Unreachable, node),
            Some(parent) => {
                let above = self.of_holder(parent);
                self.below(above, parent, node).unwrap_or(above)
            }
        }
    }

    /// The way of an object on the way to one that is asked about.
    fn of_holder(&mut self, from: u32) -> u32 {
        let mut climbed = Vec::new();
        let mut at = from;
        let mut pattern = loop {
            if at == NOBODY {
                break self.intern(Key::Unreachable, 0);
            }
            if at & ROOT != 0 {
                let root = self.graph.roots.get((at & !ROOT) as usize).cloned();
                break self.intern(Key::Root(root.unwrap_or(Root::Native)), 0);
            }
            if let Some(known) = self.of_node.get(&at) {
                break *known;
            }
            let parent = self.graph.parents.get(at as usize).copied().unwrap_or(NOBODY);
            climbed.push((at, parent));
            at = parent;
        };
        while let Some((node, parent)) = climbed.pop() {
            if let Some(below) = self.below(pattern, parent, node) {
                pattern = below;
                if let Some(p) = self.patterns.get_mut(pattern as usize) {
                    p.nodes += 1;
                }
            }
            self.of_node.insert(node, pattern);
        }
        pattern
    }

    /// The way of `node`, whose parent has the way `above`; `None` when it is
    /// no step of its own.
    fn below(&mut self, above: u32, parent: u32, node: Node) -> Option<u32> {
        let row = self.graph.rows.get(node as usize).copied().unwrap_or(BUFFER);
        if row == BUFFER {
            return None;
        }
        let label = if parent & ROOT != 0 {
            match self.graph.roots.get((parent & !ROOT) as usize) {
                // The root is the module itself.
                Some(Root::Module { .. }) => return None,
                _ => Label::Unknown,
            }
        } else {
            match self.graph.label(parent, node) {
                Label::Through if self.graph.rows.get(parent as usize) == Some(&BUFFER) => {
                    Label::Each
                }
                Label::Through => return None,
                label => label,
            }
        };
        Some(self.intern(Key::Step(above, label, row), node))
    }

    /// Root and steps of a pattern, from the root on.
    fn chain(&self, pattern: u32) -> (Option<Root>, Vec<Link>) {
        let mut steps = Vec::new();
        let mut at = pattern;
        let root = loop {
            let Some(p) = self.patterns.get(at as usize) else { break None };
            match &p.key {
                Key::Root(root) => break Some(root.clone()),
                Key::Unreachable => break None,
                Key::Step(parent, label, row) => {
                    steps.push((label.clone(), *row, p.nodes, p.sample));
                    at = *parent;
                }
            }
        };
        steps.reverse();
        (root, steps)
    }

    fn path(&self, pattern: u32, (objects, bytes): (u64, u64)) -> Path {
        let (root, chain) = self.chain(pattern);
        let mut steps: Vec<Step> = chain
            .iter()
            .map(|(label, row, count, _)| Step {
                type_name: self.type_name(*row),
                field: field(label),
                count: *count,
            })
            .collect();
        if let Some(last) = steps.last_mut() {
            last.count = last.count.max(objects);
        }
        let (kind, root, file, line, skip) = match root {
            None => (RootKind::Unreachable, String::new(), None, None, 0),
            Some(Root::Native) => (RootKind::Native, String::new(), None, None, 0),
            Some(Root::Local { function, name }) => {
                let Function { name: of, file, line } = function;
                let text = match name {
                    Some(name) => format!("{name} of {of}"),
                    None => format!("of {of}"),
                };
                (RootKind::Local, text, Some(file), Some(line), 0)
            }
            Some(Root::Module { name, file }) => {
                let (kind, place, skip) = self.place(name, &chain);
                (kind, place, file, None, skip)
            }
        };
        let bound = chain.iter().find_map(|(_, row, _, sample)| self.bound(*row, *sample));
        steps.drain(..skip.min(steps.len()));
        if let Some(first) = steps.first_mut()
            && !root.is_empty()
        {
            first.field = Some(root.clone());
        }
        Path { kind, root, file, line, steps, objects, bytes, bound }
    }

    /// The name of what a module holds, as far as it is names, and how many
    /// steps that takes up before the one that is named.
    fn place(
        &self,
        module: String,
        chain: &[(Label, u32, u64, Node)],
    ) -> (RootKind, String, usize) {
        let label = |i: usize| match chain.get(i) {
            Some((Label::Name(name), ..)) => Some(name.as_str()),
            _ => None,
        };
        let type_of = |i: usize| chain.get(i).and_then(|(_, row, ..)| self.graph.types.get(*row));
        let mut place = module;
        let mut at = 0;
        let mut kind = RootKind::Global;
        if let Some(name) = label(0) {
            place = format!("{place}.{name}");
        }
        let is_class =
            |i: usize| type_of(i).is_some_and(|t| t.flags & layout::flags::TYPE_SUBCLASS != 0);
        while is_class(at)
            && let Some(name) = label(at + 1)
        {
            place = format!("{place}.{name}");
            kind = RootKind::ClassAttribute;
            at += 1;
        }
        let type_name = |i: usize| type_of(i).map_or("", |t| t.name.as_str());
        if matches!(type_name(at), "staticmethod" | "classmethod") && chain.len() > at + 1 {
            at += 1;
        }
        match (type_name(at), label(at + 1)) {
            ("function", Some("__closure__")) if type_name(at + 2) == "cell" => {
                let variable = match (chain.get(at), chain.get(at + 2)) {
                    (Some((.., function)), Some((Label::Key(i), ..))) => {
                        i.parse().ok().and_then(|i| self.graph.free_variable(*function, i))
                    }
                    _ => None,
                };
                let variable = variable.unwrap_or_else(|| "a variable".to_owned());
                (RootKind::Closure, format!("{variable} of {place}"), at + 3)
            }
            ("function", Some("__defaults__" | "__kwdefaults__")) => {
                (RootKind::DefaultArgument, place, at + 2)
            }
            ("functools._lru_cache_wrapper", Some("cache")) => (RootKind::LruCache, place, at + 1),
            _ => (kind, place, at),
        }
    }

    /// How many entries an `lru_cache` or a deque keeps at most.
    fn bound(&self, row: u32, sample: Node) -> Option<u64> {
        let offset = match self.graph.types.get(row)?.name.as_str() {
            "functools._lru_cache_wrapper" => layout::LRU_MAXSIZE,
            "collections.deque" => layout::DEQUE_MAXLEN,
            _ => return None,
        };
        let at = self.graph.address(sample).checked_add(offset)?;
        let most = self.graph.objects().memory.u64_at(at).ok()?;
        (most < 1 << 62).then_some(most)
    }
}

/// As a reader would write it.
fn field(label: &Label) -> Option<String> {
    Some(match label {
        Label::Name(name) => format!(".{name}"),
        Label::Key(key) => format!("[{key:?}]"),
        Label::Each => "[…]".to_owned(),
        Label::Through | Label::Unknown => return None,
    })
}

/// Names from the target, as they may be shown.
pub fn cleaned(mut held: TypeHolders) -> TypeHolders {
    held.type_name = clean(&held.type_name);
    for path in &mut held.paths {
        path.root = clean(&path.root);
        path.file = path.file.take().map(|f| clean(&f));
        for s in &mut path.steps {
            s.type_name = clean(&s.type_name);
            s.field = s.field.take().map(|f| clean(&f));
        }
    }
    held
}
