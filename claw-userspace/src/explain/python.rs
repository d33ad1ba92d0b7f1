//! What to change in a CPython service, from what grows and what holds it.

use crate::{
    report::model::Kind,
    stream::Grown,
    symbol::{Frame, Origin},
};

const RSS: &str = "bound what keeps large buffers, strings or tables; if none of the service's \
                   code does, look at the C extensions it uses (an object that has to be closed, \
                   a cache inside the library)";

/// In one sentence or two.
pub fn python_remedy(kind: Kind, subject: &str, held: Option<&Grown>) -> String {
    let Some(h) = held else {
        return match kind {
            Kind::Rss => format!("Memory outside the object pools grows: {RSS}."),
            _ => format!(
                "Objects of {subject} are made and stay reachable: find what stores them (no \
                 module global or class attribute of the same growth was found: a closure, an \
                 instance or a running frame), and drop them there when they are done with."
            ),
        };
    };
    if let Some(bound) = h.bound() {
        return format!(
            "{} keeps {bound} entries at most: make sure that there is memory for so many, or \
             lower the bound.",
            h.place
        );
    }
    if h.type_name.starts_with("functools.lru_cache") {
        return format!(
            "{} has an `lru_cache` without a bound: each call with new arguments adds an entry \
             that stays, with the arguments (on a method: the instance). Give it a `maxsize`.",
            h.place
        );
    }
    let what = match (h.type_name.as_str(), h.on_class) {
        ("dict" | "collections.OrderedDict" | "collections.defaultdict", false) => {
            "a module-level dict: entries are put in and never deleted. Bound it by size or age \
             (`functools.lru_cache(maxsize=…)`, an OrderedDict with `popitem(last=False)`), or \
             delete each entry when it is done with"
        }
        ("list" | "collections.deque", false) => {
            "a module-level list: elements are appended and never removed. Use a \
             `collections.deque(maxlen=…)`, or remove them when they are done with"
        }
        ("set", false) => {
            "a module-level set: members are added and never discarded. Discard them when they \
             are done with, or use a `weakref.WeakSet`"
        }
        (_, true) => {
            "a class attribute, which all instances share: it is added to and never cleared. \
             Make it an attribute of the instance, or remove what is done with"
        }
        _ => "a global that is added to and never cleared. Remove what is done with",
    };
    format!("{} is {what}.", h.place)
}

/// Where what stays was put into a queue of the standard library
/// (`Lib/queue.py`, `Lib/asyncio/queues.py`, `Lib/multiprocessing/queues.py`).
pub fn queue_remedy(frames: &[Frame]) -> Option<String> {
    let put = frames.iter().find(|f| {
        let name = f.function.rsplit('.').next().unwrap_or_default();
        f.origin == Origin::Std
            && ["/queue.py", "/queues.py"].iter().any(|file| f.file.ends_with(file))
            && matches!(name, "put" | "put_nowait" | "_put")
    })?;
    let queue =
        if put.file.ends_with("/asyncio/queues.py") { "an asyncio queue" } else { "a queue" };
    Some(format!(
        "They are put into {queue} faster than they are taken from it, or nobody takes \
         them: see that its consumers run and keep up, and give it a `maxsize`, so that the \
         producer waits or is refused."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_of_the_library_is_told_from_the_services_own() {
        let frame = |function: &str, file: &str, origin| Frame {
            function: function.into(),
            file: file.into(),
            line: 1,
            start_line: 1,
            inlined: false,
            origin,
        };
        let put = frame("Queue._put", "/usr/lib/python3.11/asyncio/queues.py", Origin::Std);
        let own = frame("Queue.put", "/app/queue.py", Origin::Main);
        let text = queue_remedy(&[put, own.clone()]).unwrap();
        assert!(text.contains("an asyncio queue") && text.contains("maxsize"), "{text}");
        let get = frame("Queue.get", "/usr/lib/python3.11/queue.py", Origin::Std);
        assert_eq!(queue_remedy(&[get, own]), None);
    }
}
