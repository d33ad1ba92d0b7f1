//! Under which name an object is held by another.

use claw_common::python::STACKREF_TAG;

use super::{BUFFER, Graph, Node, children::Edge, kind::Kind};
use crate::target::{
    cpython::{layout, threads::local_names},
    memory::Memory,
};

/// Entries of a dict up to which its keys are names rather than data.
const FEW: u64 = 64;
/// Longest key that is shown, characters.
const MOST_KEY: usize = 40;

/// How a step of a path is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// An attribute, a global, a variable.
    Name(String),
    /// A key of a small dict.
    Key(String),
    /// One of many.
    Each,
    /// No step of its own: the dict of an instance, the table of a dict.
    Through,
    Unknown,
}

impl<M: Memory> Graph<'_, M> {
    /// How `parent` holds `child`.
    pub(super) fn label(&mut self, parent: Node, child: Node) -> Label {
        let row = self.rows.get(parent as usize).copied().unwrap_or(BUFFER);
        let Some(kind) = self.kind(row).filter(|_| row < BUFFER) else {
            return Label::Through;
        };
        match kind {
            Kind::List | Kind::Set | Kind::Deque => return Label::Each,
            Kind::Dict if !self.has_names(parent) => return Label::Each,
            _ => {}
        }
        let Some(edge) = self.edge(parent, child) else {
            return if kind == Kind::Dict { Label::Each } else { Label::Unknown };
        };
        match edge {
            Edge::Namespace => Label::Through,
            Edge::Element => Label::Each,
            Edge::Value(key) => match self.objects().string(key) {
                Some(name) if self.is_namespace(parent) => Label::Name(name),
                Some(key) => Label::Key(key.chars().take(MOST_KEY).collect()),
                None => Label::Each,
            },
            Edge::Attribute(i) => self.attribute(parent, i).map_or(Label::Unknown, Label::Name),
            Edge::Slot(offset) => self.slot(parent, kind, offset),
        }
    }

    fn edge(&mut self, parent: Node, child: Node) -> Option<Edge> {
        let mut pointers = Vec::new();
        self.children(parent, &mut |edge, pointer| pointers.push((edge, pointer)));
        pointers.into_iter().find(|(_, p)| self.node_at(*p) == Some(child)).map(|(e, _)| e)
    }

    /// Whether the keys of a dict are names: those of a namespace, or few.
    fn has_names(&self, dict: Node) -> bool {
        let used = self.address(dict).checked_add(layout::MA_USED);
        let used = used.and_then(|at| self.objects().memory.u64_at(at).ok());
        used.is_some_and(|n| n <= FEW) || self.is_namespace(dict)
    }

    /// Whether a dict holds the attributes of a module, a class or an instance.
    fn is_namespace(&self, dict: Node) -> bool {
        let Some(owner) = self.parents.get(dict as usize).filter(|p| **p < super::ROOT) else {
            return false;
        };
        let Some(t) = self.type_of(*owner) else { return false };
        let kind = self.rows.get(*owner as usize).and_then(|r| self.kinds.get(*r as usize));
        if matches!(kind, Some(Kind::Module | Kind::Class)) {
            return true;
        }
        let at = self.address(*owner);
        let word = |at: Option<u64>| self.objects().memory.u64_at(at?).ok();
        let dict = self.address(dict);
        let managed = t.flags & self.objects().layout.pre_header & layout::flags::MANAGED_DICT != 0;
        (managed && word(at.checked_sub(24)) == Some(dict))
            || (t.dict_offset != 0 && word(at.checked_add(t.dict_offset)) == Some(dict))
    }

    fn attribute(&self, instance: Node, i: u64) -> Option<String> {
        let table = self.reader.shared_keys(self.type_of(instance)?)?;
        let at = table.entries.checked_add(i.checked_mul(table.step as u64)?)?;
        let key = self.objects().memory.u64_at(at + table.step as u64 - 16).ok()?;
        self.objects().string(key)
    }

    fn slot(&mut self, parent: Node, kind: Kind, offset: u64) -> Label {
        let Some(t) = self.type_of(parent) else { return Label::Unknown };
        let (at, basic) = (self.address(parent), t.basic_size);
        let name = |n: &str| Label::Name(n.to_owned());
        if kind == Kind::Frame {
            return self.local(at, basic, offset).map_or(Label::Unknown, Label::Name);
        }
        if kind == Kind::Lru && offset == layout::LRU_CACHE {
            return name("cache");
        }
        if t.flags & layout::flags::TUPLE_SUBCLASS != 0 {
            return match offset.checked_sub(self.objects().layout.tuple_items).map(|o| o / 8) {
                Some(i) if i < 8 => Label::Key(i.to_string()),
                _ => Label::Each,
            };
        }
        match (t.name.as_str(), offset) {
            ("cell", 16) => name("cell_contents"),
            ("method", 16) => name("__func__"),
            ("method", 24) => name("__self__"),
            ("function", o) if o == self.objects().layout.func_closure => name("__closure__"),
            // `func_defaults` and `func_kwdefaults` lie before it in all versions.
            ("function", o) if o + 16 == self.objects().layout.func_closure => name("__defaults__"),
            ("function", o) if o + 8 == self.objects().layout.func_closure => {
                name("__kwdefaults__")
            }
            ("function", o) if o == self.objects().layout.func_code => name("__code__"),
            _ => {
                let t = t.clone();
                self.reader.member(&t, offset).map_or(Label::Unknown, Label::Name)
            }
        }
    }

    /// The name of a local variable of a frame or generator object.
    fn local(&self, at: u64, basic_size: u64, offset: u64) -> Option<String> {
        let objects = self.objects();
        let minor = objects.layout.minor;
        // The fixed part ends at the first local, or behind it up to 3.10.
        let (first, code) = match minor {
            ..=10 => (basic_size.checked_sub(8)?, 32),
            11 => (basic_size, basic_size.checked_sub(72)? + 32),
            12 | 13 => (basic_size, basic_size.checked_sub(72)?),
            _ => (basic_size, basic_size.checked_sub(80)?),
        };
        let i = offset.checked_sub(first)? / 8;
        let code = objects.memory.u64_at(at.checked_add(code)?).ok()? & !STACKREF_TAG;
        local_names(&objects, code).into_iter().nth(usize::try_from(i).ok()?)?
    }

    /// The name of variable `i` of a closure.
    pub(super) fn free_variable(&self, function: Node, i: usize) -> Option<String> {
        let objects = self.objects();
        let layout = objects.layout;
        let word =
            |offset: u64| objects.memory.u64_at(self.address(function).checked_add(offset)?).ok();
        let cells = objects.tuple(word(layout.func_closure)?)?.len();
        let names = local_names(&objects, word(layout.func_code)?);
        // They come last.
        names.get(names.len().checked_sub(cells)? + i)?.clone()
    }
}
