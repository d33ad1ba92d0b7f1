//! What to change, from the way the memory was allocated.

use crate::{
    ledger::Site,
    report::{
        clean::clean,
        model::{Kind, Remedy},
    },
};

/// A function on the stack, below or at the site, and what its presence means.
const PATTERNS: [(&str, &str); 14] = [
    (
        "context.(*cancelCtx).propagateCancel",
        "a context is derived here and its cancel function is not called on every path: \
         `defer cancel()` right after it is made",
    ),
    (
        "context.withCancel",
        "a context is derived here and its cancel function is not called on every path: \
         `defer cancel()` right after it is made",
    ),
    (
        "time.newTimer",
        "a timer or ticker is made here and not stopped: `defer t.Stop()`, and reuse one timer \
         instead of `time.After` in a loop",
    ),
    ("runtime.mapassign", MAP),
    ("internal/runtime/maps.", MAP),
    ("sync.(*Map).", MAP),
    ("internal/sync.(*HashTrieMap", MAP),
    (
        "container/list.(*List)",
        "elements are put on a list here and never removed: remove them when they are done with, \
         or bound the list",
    ),
    (
        "runtime.growslice",
        "a slice that outlives the request is appended to here and never shortened: bound it, or \
         drop the elements that are done with (and set them to nil, so that what they point to \
         is freed)",
    ),
    (
        "bytes.(*Buffer)",
        "a buffer grows here and is kept: release it after use, or bound its size before it goes \
         back to a pool",
    ),
    (
        "strings.(*Builder)",
        "a string is built here and kept by someone: find who stores it, and drop it there",
    ),
    (
        "bufio.NewReader",
        "a buffered reader is made here for something that is not closed: close the connection \
         or body that it reads",
    ),
    (
        "bufio.NewWriter",
        "a buffered writer is made here for something that is not closed: close what it writes \
         to",
    ),
    (
        "net/http.(*Transport)",
        "connections of a client are made here and not given back: read the response body to its \
         end and close it, and share one http.Client",
    ),
];

const MAP: &str = "entries are put into a map here and never deleted: delete them when they are \
                   done with, or bound the map by size or age";

const HEAP: &str = "what is allocated here is stored somewhere that outlives the request and \
                    never lets go of it: find where it is stored, and delete it there or bound \
                    the store by size or age";

const GOROUTINE: &str = "goroutines are started here and never end: give each a way out (a \
                         context that is cancelled, a channel that is closed, a timeout), and \
                         make sure that whoever they wait for always answers";

/// The remedy for a site, from the runtime and library functions on its stack.
pub fn remedy(kind: Kind, site: &Site) -> Option<Remedy> {
    let culprit = site.culprit_frame()?;
    let text = match kind {
        Kind::Goroutine => GOROUTINE,
        _ => {
            let own = site.frames.iter().take(site.culprit + 1);
            let functions: Vec<&str> =
                own.chain(&site.runtime).map(|f| f.function.as_str()).collect();
            PATTERNS
                .iter()
                .find(|(name, _)| functions.iter().any(|f| f.starts_with(name)))
                .map_or(HEAP, |(_, text)| *text)
        }
    };
    Some(Remedy {
        text: format!("In {}: {text}.", clean(&culprit.function)),
        file: (!culprit.file.is_empty()).then(|| clean(&culprit.file)),
        line: (culprit.line > 0).then_some(culprit.line),
    })
}
