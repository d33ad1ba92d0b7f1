//! How objects of a type hold others.

use crate::target::{
    cpython::{
        layout::flags,
        object::{Objects, TypeInfo},
        types::TypeTable,
    },
    memory::Memory,
};

/// Types above one that are looked at.
const MOST_BASES: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Holds nothing.
    Leaf,
    List,
    Dict,
    Set,
    Deque,
    /// Holds its callback, not what it refers to.
    Weak,
    Class,
    Module,
    Closure,
    /// Has local variables behind its fixed part: a generator, a frame.
    Frame,
    Lru,
    /// Its caches point to what it does not hold.
    Code,
    /// Holds what the words in it point to.
    Plain,
}

impl Kind {
    pub fn of<M: Memory>(
        objects: &Objects<'_, M>,
        types: &mut TypeTable,
        t: &TypeInfo,
        modern_frames: bool,
    ) -> Self {
        let has = |flag| t.flags & flag != 0;
        if has(flags::TYPE_SUBCLASS) {
            return Self::Class;
        }
        if has(flags::LIST_SUBCLASS) {
            return Self::List;
        }
        if has(flags::DICT_SUBCLASS) {
            return Self::Dict;
        }
        let scalar = flags::LONG_SUBCLASS | flags::BYTES_SUBCLASS | flags::UNICODE_SUBCLASS;
        if !has(flags::HAVE_GC) && (has(scalar) || matches!(&*t.name, "float" | "bytearray")) {
            return Self::Leaf;
        }
        let mut base = t.clone();
        for _ in 0..MOST_BASES {
            if base.address == objects.types.module {
                return Self::Module;
            }
            match base.name.as_str() {
                "set" | "frozenset" => return Self::Set,
                "collections.deque" => return Self::Deque,
                "function" => return Self::Closure,
                "functools._lru_cache_wrapper" => return Self::Lru,
                "code" => return Self::Code,
                "frame" => return Self::Frame,
                "generator" | "coroutine" | "async_generator" if modern_frames => {
                    return Self::Frame;
                }
                "weakref"
                | "weakref.ReferenceType"
                | "weakproxy"
                | "weakref.ProxyType"
                | "weakcallableproxy"
                | "weakref.CallableProxyType" => return Self::Weak,
                _ => {}
            }
            match types.of(objects, base.base).and_then(|row| types.get(row)) {
                Some(next) => base = next.clone(),
                None => break,
            }
        }
        Self::Plain
    }
}
