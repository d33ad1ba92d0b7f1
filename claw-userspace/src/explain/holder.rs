//! What to change in a CPython service, from the way along which the objects
//! that grow are held. The first pattern that fits is named.

use crate::target::cpython::graph::paths::{Path, RootKind, Step};

/// Names under which callables are registered.
const REGISTRIES: [&str; 8] =
    ["handler", "callback", "listener", "hook", "observer", "subscriber", "receiver", "watcher"];
const CALLABLES: [&str; 4] = ["function", "method", "functools.partial", "weakref.WeakMethod"];
const TASKS: [&str; 3] = ["_asyncio.Task", "asyncio.tasks.Task", "coroutine"];

/// In one or two sentences. `subject` is the type that grows, `gc_off` whether
/// the collector is switched off.
pub fn holder_remedy(subject: &str, path: &Path, gc_off: bool) -> String {
    let place = place(path);
    let through = |names: &[&str]| path.steps.iter().any(|s| names.contains(&s.type_name.as_str()));
    let text = match path.kind {
        RootKind::Unreachable if gc_off => {
            return format!(
                "Objects of {subject} refer to one another in cycles that nothing else refers to, \
                 and the collector is switched off (`gc.disable()`): nobody frees them. Switch it \
                 on, call `gc.collect()` when there is time, or break the cycle (`weakref.ref` \
                 for the way back, `__del__` replaced by `weakref.finalize` or a context manager)."
            );
        }
        RootKind::Unreachable => {
            return format!(
                "Objects of {subject} lie in reference cycles that wait for the collector longer \
                 than they come: look for `gc.set_threshold` or `gc.freeze`, and break the cycle \
                 (`weakref.ref` for the way back, `weakref.finalize` instead of `__del__`)."
            );
        }
        RootKind::Native => {
            return format!(
                "Objects of {subject} are held by the interpreter or a C extension: look for a \
                 registration that is never undone (`atexit.register`, a callback given to a \
                 library, an object that has to be closed)."
            );
        }
        _ if through(&["traceback"]) => {
            "keeps exceptions, and the traceback of each keeps the local variables of all \
             functions that it passed. Keep `str(e)` or `traceback.format_exception(e)` instead, \
             or `e.with_traceback(None)`"
        }
        RootKind::LruCache if is_key(path) => {
            "is an `lru_cache` on a method: each instance is part of a key, and the cache keeps \
             it. Cache in the instance (`functools.cached_property`), or on a function of what \
             the result depends on"
        }
        RootKind::LruCache if path.bound.is_some() => {
            "keeps results up to its `maxsize` and drops the oldest then. If that many are too \
             much memory, lower `maxsize`"
        }
        RootKind::LruCache => {
            "is a cache without a bound (`functools.cache`, `lru_cache(maxsize=None)`): every \
             different argument stays. Give it a `maxsize`, or call its `cache_clear()`"
        }
        RootKind::DefaultArgument => {
            "has a default value that is one object for all calls, and calls add to it. Make the \
             default `None` and create the object inside"
        }
        _ if through(&["_thread._local", "_thread._localdummy", "_threading_local.local"]) => {
            "is data of a `threading.local`: it stays as long as its thread does, and threads of \
             a pool never end. Delete the attribute when the work is done"
        }
        _ if is_registry(path, subject) => {
            "registers callables that are never removed, and each keeps what it is bound to. \
             Remove them when they are done with (`remove`, `disconnect`, `unsubscribe`), or \
             register a `weakref.WeakMethod`"
        }
        _ if through(&TASKS) || subject == "_asyncio.Task" => {
            "holds tasks or coroutines that do not end, with all their local variables. Give what \
             they wait for a timeout (`asyncio.timeout`), or cancel them"
        }
        _ if path.bound.is_some() => {
            "drops the oldest when it is full. If that many are too much memory, lower its bound"
        }
        RootKind::Local => {
            "is a variable of a function that does not return: bound what it collects, or hand it \
             on and drop it in each round"
        }
        RootKind::Closure => {
            "lives as long as the function that closes over it: bound what it collects, or clear \
             it"
        }
        _ => match container(path).map_or("", |s| s.type_name.as_str()) {
            "dict" | "collections.OrderedDict" | "collections.defaultdict" => {
                "is a cache or table without eviction: entries are put in and never deleted. Bound \
                 it by size or age (`functools.lru_cache(maxsize=…)`, an OrderedDict with \
                 `popitem(last=False)`), or delete each entry when it is done with"
            }
            "list" | "collections.deque" if path.kind == RootKind::Global => {
                "is a list that outlives every request: elements are appended and never removed. \
                 Use a `collections.deque(maxlen=…)`, or remove them when they are done with"
            }
            "list" | "collections.deque" => {
                "is shared by all that use it, appended to and never shortened. Make it an \
                 attribute of what is done with sooner, or remove what is done with"
            }
            "set" | "weakref.WeakSet" => {
                "is a set whose members are added and never discarded. Discard them when they are \
                 done with, or use a `weakref.WeakSet`"
            }
            _ if path.steps.iter().any(|s| s.type_name == subject && s.field.is_some()) => {
                "is the head of a chain that only grows: cut it where its elements are done with"
            }
            _ => "is added to and never cleared: remove what is done with",
        },
    };
    format!("{place} {text}.")
}

/// The root, and the names that follow.
fn place(path: &Path) -> String {
    let mut place = path.root.clone();
    for s in path.steps.iter().skip(1) {
        match s.field.as_deref() {
            Some(field) if field != "[…]" => place += field,
            _ => break,
        }
    }
    match path.kind {
        RootKind::Local => format!("The local variable {place}"),
        RootKind::Closure => format!("The closure variable {place}"),
        _ => place,
    }
}

/// The last list, dict or the like before the object itself.
fn container(path: &Path) -> Option<&Step> {
    let before = path.steps.len().saturating_sub(1);
    path.steps.iter().take(before).rfind(|s| {
        matches!(s.type_name.as_str(), "dict" | "list" | "set")
            || s.type_name.starts_with("collections.")
    })
}

/// Whether the object is an argument in a cache's key.
fn is_key(path: &Path) -> bool {
    path.steps.last().and_then(|s| s.field.as_deref()) == Some("[\"0\"]")
}

fn is_registry(path: &Path, subject: &str) -> bool {
    let callable = |name: &str| CALLABLES.contains(&name);
    let through = path.steps.iter().skip(1).any(|s| callable(&s.type_name)) || callable(subject);
    let fields = path.steps.iter().filter_map(|s| s.field.as_deref());
    let named = fields.chain([path.root.as_str()]).any(|f| {
        let name = f.rsplit('.').next().unwrap_or(f).to_ascii_lowercase();
        REGISTRIES.iter().any(|r| name.contains(r))
    });
    container(path).is_some() && (through || named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(kind: RootKind, root: &str, steps: &[(&str, &str)]) -> Path {
        let step = |(t, f): &(&str, &str)| Step {
            type_name: (*t).to_owned(),
            field: (!f.is_empty()).then(|| (*f).to_owned()),
            count: 1,
        };
        let steps = steps.iter().map(step).collect();
        Path { kind, root: root.to_owned(), steps, ..Path::default() }
    }

    #[test]
    fn each_pattern_has_its_own_words() {
        use RootKind::*;
        let dict = ("dict", "app.X");
        let list = ("list", "app.X");
        let t = ("app.T", "[…]");
        for (p, words) in [
            (path(Global, "app.X", &[dict, t]), "app.X is a cache or table without eviction"),
            (path(Global, "app.X", &[list, t]), "app.X is a list that outlives"),
            (
                path(Global, "app.S", &[("app.Service", "app.S"), ("list", ".pending"), t]),
                "app.S.pending is a list",
            ),
            (path(ClassAttribute, "app.C.all", &[list, t]), "shared by all"),
            (path(Global, "app.on_change_handlers", &[list, t]), "registers callables"),
            (
                path(Global, "app.X", &[list, ("method", "[…]"), ("app.T", ".__self__")]),
                "registers callables",
            ),
            (
                path(Global, "app.X", &[list, ("ValueError", "[…]"), ("traceback", ""), t]),
                "keeps exceptions",
            ),
            (
                path(
                    LruCache,
                    "app.C.f",
                    &[("dict", "app.C.f"), ("tuple", "[…]"), ("app.T", "[\"0\"]")],
                ),
                "on a method",
            ),
            (path(LruCache, "app.f", &[("dict", "app.f"), t]), "without a bound"),
            (path(DefaultArgument, "app.f", &[list, t]), "default `None`"),
            (
                path(Local, "jobs of run", &[list, t]),
                "The local variable jobs of run is a variable",
            ),
            (path(Closure, "kept of app.f", &[list, t]), "closes over it"),
            (path(Global, "app.L", &[("_thread._local", "app.L"), t]), "threading.local"),
            (path(Global, "app.X", &[("set", "app.X"), ("_asyncio.Task", "[…]"), t]), "do not end"),
            (path(Native, "", &[("app.T", "")]), "atexit"),
            (path(Unreachable, "", &[]), "wait for the collector"),
        ] {
            let text = holder_remedy("app.T", &p, false);
            assert!(text.contains(words), "{text}\n{words}");
        }
        assert!(holder_remedy("T", &path(Unreachable, "", &[]), true).contains("gc.disable()"));
        let full = Path { bound: Some(9), ..path(LruCache, "app.f", &[dict, t]) };
        assert!(holder_remedy("T", &full, false).contains("`maxsize`"));
    }
}
