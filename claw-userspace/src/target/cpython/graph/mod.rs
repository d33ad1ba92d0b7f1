//! Who holds what: the objects of a heap as a graph, and for each the object
//! that holds it on the shortest way from something that has a name.
//!
//! Roots come in turns, and a later turn gets only what no earlier one has
//! reached: modules, those of the service before those of the library; the
//! local variables of running functions; memory of C code. What is left is
//! reachable from nowhere. The way is that of "merge shortest paths to GC
//! roots" in heap analysers.
//!
//! The memory is a copy taken while the process stood still, or a core dump.
//! All of it may be wild: nodes are bounded by the memory's size, the words
//! that are followed by a budget.

mod children;
mod kind;
mod label;
mod owned;
pub mod paths;

pub use owned::owned;
use rustc_hash::FxHashMap;

use self::{
    children::{Children, Subject},
    kind::Kind,
};
use super::{
    census::for_each_pool,
    object::{Objects, TypeInfo},
    pool::{OVERHEAD, Pool},
    regions::Region,
    threads::{self, Active, Function},
    types::TypeTable,
};
use crate::target::memory::Memory;

/// A node: a block of a pool, or an object outside the pools.
type Node = u32;

/// Rows of blocks that are free, and of those that are in use and no objects.
const FREE: u32 = u32::MAX;
const BUFFER: u32 = u32::MAX - 1;
/// Not reached yet; reached from the root whose number is in the other bits.
const NOBODY: u32 = u32::MAX;
const ROOT: u32 = 1 << 31;
/// Nodes at most, so that a number fits beside [`ROOT`].
const MOST_NODES: usize = 1 << 30;
/// Objects outside the pools.
const MOST_LARGE: usize = 1 << 24;
/// How often each word of the memory may be read, on average.
const TIMES: u64 = 16;

#[derive(Clone, Copy, Debug)]
struct PoolNodes {
    address: u64,
    first: Node,
    block_size: u32,
    carved: u32,
}

/// What a way begins at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Root {
    Module { name: String, file: Option<String> },
    Local { function: Function, name: Option<String> },
    Native,
}

/// What a graph is made of.
#[derive(Debug)]
pub struct Source<'a, M> {
    pub objects: Objects<'a, M>,
    /// The memory that holds objects.
    pub regions: &'a [Region],
    pub frames: &'a [Active],
}

pub struct Graph<'a, M> {
    reader: Children<'a, M>,
    regions: Vec<Region>,
    types: TypeTable,
    /// By row of `types`.
    kinds: Vec<Kind>,
    pools: Vec<PoolNodes>,
    by_address: FxHashMap<u64, u32>,
    rows: Vec<u32>,
    parents: Vec<u32>,
    large: Vec<u64>,
    large_by_address: FxHashMap<u64, Node>,
    roots: Vec<Root>,
    queue: Vec<Node>,
}

impl<'a, M: Memory> Graph<'a, M> {
    /// Read the heap and follow everything from the roots.
    pub fn new(source: &Source<'a, M>) -> Self {
        let bytes: u64 = source.regions.iter().map(|r| r.end - r.start).sum();
        let budget = (bytes / 8).saturating_mul(TIMES);
        let mut graph = Self {
            reader: Children { objects: source.objects, budget },
            regions: source.regions.to_vec(),
            types: TypeTable::default(),
            kinds: Vec::new(),
            pools: Vec::new(),
            by_address: FxHashMap::default(),
            rows: Vec::new(),
            parents: Vec::new(),
            large: Vec::new(),
            large_by_address: FxHashMap::default(),
            roots: Vec::new(),
            queue: Vec::new(),
        };
        graph.regions.sort_unstable_by_key(|r| r.start);
        graph.find_pools();
        graph.parents = vec![NOBODY; graph.rows.len()];
        graph.root_modules();
        graph.root_frames(source.frames);
        graph.root_native();
        graph
    }

    fn objects(&self) -> Objects<'a, M> {
        self.reader.objects
    }

    /// Everything in the budget was followed: what was not reached is
    /// unreachable.
    pub fn is_whole(&self) -> bool {
        self.reader.budget > 0
    }

    fn find_pools(&mut self) {
        let objects = self.objects();
        let regions = self.regions.clone();
        for_each_pool(objects.memory, objects.layout.pool_size, &regions, |pool, address| {
            if let Some(pool) = pool {
                self.add_pool(pool, address);
            }
        });
    }

    fn add_pool(&mut self, bytes: &[u8], address: u64) {
        let Some(pool) = Pool::parse(bytes, address) else { return };
        let (first, carved) = (self.rows.len(), pool.carved());
        let Some(blocks) = pool.blocks().filter(|_| first + carved <= MOST_NODES) else { return };
        self.rows.resize(first + carved, FREE);
        let objects = self.objects();
        for offset in blocks {
            let block = bytes.get(offset..offset + pool.block_size).unwrap_or_default();
            let row = self.types.object(&objects, block).map_or(BUFFER, |(row, _)| row);
            if let Some(r) = self.rows.get_mut(first + (offset - OVERHEAD) / pool.block_size) {
                *r = row;
            }
        }
        self.by_address.insert(address, self.pools.len() as u32);
        self.pools.push(PoolNodes {
            address,
            first: first as Node,
            block_size: pool.block_size as u32,
            carved: carved as u32,
        });
    }

    /// The node that a pointer leads to.
    fn node_at(&mut self, pointer: u64) -> Option<Node> {
        if pointer < 0x1_0000 || pointer & 7 != 0 || pointer >> 47 != 0 {
            return None;
        }
        let layout = self.reader.objects.layout;
        let base = pointer & !(layout.pool_size as u64 - 1);
        let Some(pool) = self.by_address.get(&base).and_then(|i| self.pools.get(*i as usize))
        else {
            return self.large_at(pointer);
        };
        let offset = u32::try_from(pointer - base).ok()?.checked_sub(OVERHEAD as u32)?;
        let (i, within) = (offset / pool.block_size, offset % pool.block_size);
        let node = pool.first.checked_add(i).filter(|_| i < pool.carved)?;
        match self.rows.get(node as usize).copied()? {
            FREE => None,
            BUFFER => Some(node),
            row => (self.types.get(row)?.before(layout) == within as usize).then_some(node),
        }
    }

    /// An object outside the pools.
    fn large_at(&mut self, pointer: u64) -> Option<Node> {
        if let Some(node) = self.large_by_address.get(&pointer) {
            return Some(*node);
        }
        let i = self.regions.partition_point(|r| r.start <= pointer);
        let region = i.checked_sub(1).and_then(|i| self.regions.get(i))?;
        if pointer >= region.end || self.large.len() >= MOST_LARGE {
            return None;
        }
        let objects = self.objects();
        let mut head = [0u8; 16];
        objects.memory.read(pointer, &mut head).ok()?;
        let row = self.types.head(&objects, &head)?;
        let node = Node::try_from(self.rows.len()).ok().filter(|n| (*n as usize) < MOST_NODES)?;
        self.rows.push(row);
        self.parents.push(NOBODY);
        self.large.push(pointer);
        self.large_by_address.insert(pointer, node);
        Some(node)
    }

    fn first_large(&self) -> usize {
        self.rows.len() - self.large.len()
    }

    /// Address of a node's object, or of its block when it is none.
    fn address(&self, node: Node) -> u64 {
        if let Some(i) = (node as usize).checked_sub(self.first_large()) {
            return self.large.get(i).copied().unwrap_or(0);
        }
        let i = self.pools.partition_point(|p| p.first <= node);
        let Some(pool) = i.checked_sub(1).and_then(|i| self.pools.get(i)) else { return 0 };
        let block = u64::from(node - pool.first) * u64::from(pool.block_size);
        let before = self.type_of(node).map_or(0, |t| t.before(self.reader.objects.layout) as u64);
        pool.address + OVERHEAD as u64 + block + before
    }

    /// Bytes of the block that a node lies in; of an object outside the pools
    /// those of its fixed part.
    fn size(&self, node: Node) -> u64 {
        if (node as usize) >= self.first_large() {
            return self.type_of(node).map_or(0, |t| t.basic_size);
        }
        let i = self.pools.partition_point(|p| p.first <= node);
        i.checked_sub(1).and_then(|i| self.pools.get(i)).map_or(0, |p| u64::from(p.block_size))
    }

    fn type_of(&self, node: Node) -> Option<&TypeInfo> {
        self.types.get(*self.rows.get(node as usize)?)
    }

    fn kind(&mut self, row: u32) -> Option<Kind> {
        let objects = self.objects();
        while self.kinds.len() <= row as usize {
            let t = self.types.get(self.kinds.len() as u32)?.clone();
            let kind = Kind::of(&objects, &mut self.types, &t, objects.layout.minor >= 11);
            self.kinds.push(kind);
        }
        self.kinds.get(row as usize).copied()
    }

    /// The pointers that a node holds.
    fn children(&mut self, node: Node, f: &mut impl FnMut(children::Edge, u64)) {
        let row = self.rows.get(node as usize).copied().unwrap_or(FREE);
        let (address, size) = (self.address(node), self.size(node));
        if row == BUFFER {
            return self.reader.block(address, size, f);
        }
        let Some(kind) = self.kind(row) else { return };
        let Some(type_info) = self.types.get(row) else { return };
        self.reader.of(Subject { address, type_info, kind }, f);
    }

    /// Reach a node from a parent or a root; false when it was reached before.
    fn reach(&mut self, node: Node, from: u32) -> bool {
        match self.parents.get_mut(node as usize) {
            Some(parent) if *parent == NOBODY => {
                *parent = from;
                self.queue.push(node);
                true
            }
            _ => false,
        }
    }

    fn root(&mut self, root: Root) -> u32 {
        self.roots.push(root);
        ROOT | (self.roots.len() - 1) as u32
    }

    /// Follow everything that was reached and not followed yet, nearest first.
    fn spread(&mut self) {
        let mut found = Vec::new();
        let mut next = 0;
        while let Some(node) = self.queue.get(next).copied() {
            next += 1;
            self.children(node, &mut |_, pointer| found.push(pointer));
            for pointer in found.drain(..) {
                if let Some(child) = self.node_at(pointer) {
                    self.reach(child, node);
                }
            }
        }
        self.queue.clear();
    }

    fn root_modules(&mut self) {
        let module = self.objects().types.module;
        let mut modules = Vec::new();
        for node in 0..self.rows.len() {
            let row = self.rows.get(node).copied().unwrap_or(FREE);
            let is_module = self.types.get(row).is_some_and(|t| t.address == module)
                || (row < BUFFER && self.kind(row) == Some(Kind::Module));
            if is_module {
                modules.push(node as Node);
            }
        }
        let mut named: Vec<(bool, Node, u64, Root)> = modules
            .into_iter()
            .filter_map(|node| {
                let (dict, root) = self.module(node)?;
                let Root::Module { file, .. } = &root else { return None };
                let library = file.as_ref().is_none_or(|f| f.contains("/lib/python3"));
                Some((library, node, dict, root))
            })
            .collect();
        named.sort_by_key(|(library, node, ..)| (*library, *node));
        for (_, node, dict, root) in named {
            let root = self.root(root);
            self.reach(node, root);
            // Reached as well, or a function would lead from one module into
            // another by way of its globals.
            if let Some(dict) = self.node_at(dict) {
                self.reach(dict, node);
            }
        }
        self.spread();
    }

    fn module(&self, node: Node) -> Option<(u64, Root)> {
        let objects = self.objects();
        let at = self.address(node).checked_add(super::layout::MD_DICT)?;
        let dict = objects.memory.u64_at(at).ok()?;
        let string = |name: &str| objects.find_item(dict, name).and_then(|v| objects.string(v));
        Some((dict, Root::Module { name: string("__name__")?, file: string("__file__") }))
    }

    fn root_frames(&mut self, frames: &[Active]) {
        let objects = self.objects();
        for frame in frames {
            let Some(function) = threads::function(&objects, frame.code) else { continue };
            for (i, name) in (0u64..).zip(threads::local_names(&objects, frame.code)) {
                let at = frame.locals.checked_add(i * 8);
                let Some(value) = at.and_then(|at| objects.memory.u64_at(at).ok()) else {
                    continue;
                };
                // Tag bits of a stack reference.
                let Some(node) = self.node_at(value & !7) else { continue };
                if self.parents.get(node as usize) == Some(&NOBODY) {
                    let root = self.root(Root::Local { function: function.clone(), name });
                    self.reach(node, root);
                }
            }
        }
        self.spread();
    }

    /// Words outside the pools that point to objects: structures of C code.
    fn root_native(&mut self) {
        let root = self.root(Root::Native);
        let objects = self.objects();
        let size = objects.layout.pool_size as u64;
        let mut buf = vec![0u8; size as usize];
        for region in self.regions.clone() {
            let mut at = region.start;
            while at < region.end {
                let end = ((at & !(size - 1)) + size).min(region.end);
                let bytes = buf.get_mut(..(end - at) as usize).unwrap_or_default();
                let pool = self.by_address.contains_key(&(at & !(size - 1)));
                if !pool && objects.memory.read(at, bytes).is_ok() {
                    for word in bytes.as_chunks::<8>().0 {
                        let word = u64::from_le_bytes(*word);
                        if let Some(node) = self.node_in_pool(word) {
                            self.reach(node, root);
                        }
                    }
                }
                at = end;
            }
        }
        self.spread();
    }

    /// As `node_at`, for objects in pools alone: they are told for certain.
    fn node_in_pool(&mut self, pointer: u64) -> Option<Node> {
        let base = pointer & !(self.objects().layout.pool_size as u64 - 1);
        self.by_address.contains_key(&base).then(|| self.node_at(pointer)).flatten()
    }
}
