//! What a goroutine that stands still waits for, and what that asks for.

use crate::{
    ledger::Site,
    report::{
        clean::clean,
        model::{BlockedOn, Remedy},
    },
};

/// The reason in words that are the same for all Go versions: older ones have
/// one word for several things, which the functions on the stack tell apart.
pub fn waits_on(reason: &str, site: &Site) -> String {
    let on_stack =
        |name: &str| site.runtime.iter().chain(&site.frames).any(|f| f.function.starts_with(name));
    let name = match reason {
        "semacquire" if on_stack("sync.(*WaitGroup).Wait") => "sync.WaitGroup.Wait",
        "semacquire" if on_stack("sync.(*RWMutex).RLock") => "sync.RWMutex.RLock",
        "sync.Mutex.Lock" | "semacquire" if on_stack("sync.(*RWMutex).Lock") => "sync.RWMutex.Lock",
        "semacquire" if on_stack("sync.(*Mutex).") => "sync.Mutex.Lock",
        "syscall" if on_stack("runtime.cgocall") => "cgo call",
        other => other,
    };
    name.to_owned()
}

/// It holds an OS thread while it waits.
pub fn holds_thread(reason: &str) -> bool {
    matches!(reason, "syscall" | "cgo call")
}

pub fn blocked_on(reason: &str, site: &Site) -> BlockedOn {
    let f = site.culprit_frame();
    BlockedOn {
        reason: reason.to_owned(),
        function: f.map(|f| clean(&f.function)),
        file: f.filter(|f| !f.file.is_empty()).map(|f| clean(&f.file)),
        line: f.map(|f| f.line).filter(|l| *l > 0),
    }
}

/// Reason, what never happens, and what to do about it.
const REMEDIES: [(&str, &str); 17] = [
    (
        "chan send",
        "nobody receives from this channel any more: give it room for what is sent \
         (`make(chan T, 1)` for one answer), or send in a `select` with `<-ctx.Done()`; whoever \
         received has returned early and should cancel or drain",
    ),
    (
        "chan receive",
        "nobody sends to this channel or closes it: whoever sends should `defer close(ch)`, or \
         receive in a `select` with `<-ctx.Done()` and cancel where the work ends",
    ),
    (
        "chan send (nil chan)",
        "this channel was never made: assign `make(chan T)` before the goroutine starts",
    ),
    (
        "chan receive (nil chan)",
        "this channel was never made: assign `make(chan T)` before the goroutine starts",
    ),
    (
        "select (no cases)",
        "`select {}` never ends: wait for `<-ctx.Done()` instead, and cancel where the work ends",
    ),
    (
        "select",
        "none of its cases comes true any more: add `case <-ctx.Done()`, and call the context's \
         cancel function (or close the channel that means stop) where the work ends",
    ),
    (
        "sync.WaitGroup.Wait",
        "the counter never gets to zero: every `Add` needs a `Done` on every path, so make \
         `defer wg.Done()` the first statement of each goroutine that was counted, and call `Add` \
         before `go`",
    ),
    (
        "sync.Mutex.Lock",
        "whoever holds this lock never gives it back: `defer mu.Unlock()` right after `Lock`, no \
         blocking call while it is held, and always take several locks in the same order",
    ),
    (
        "sync.RWMutex.RLock",
        "a writer holds this lock, or waits for readers that never let go: `defer mu.Unlock()` \
         right after `Lock`, `defer mu.RUnlock()` right after `RLock`, and no `RLock` within \
         another",
    ),
    (
        "sync.RWMutex.Lock",
        "a reader or writer never gives this lock back: `defer mu.RUnlock()` right after `RLock`, \
         `defer mu.Unlock()` right after `Lock`, and no blocking call while it is held",
    ),
    (
        "sync.Cond.Wait",
        "no `Signal` or `Broadcast` comes: call `Broadcast` under the lock wherever the condition \
         changes, and once more when the work is given up",
    ),
    (
        "IO wait",
        "the other side neither answers nor closes: set a deadline on the connection (or a \
         timeout on the client or server), and close it where the work ends",
    ),
    (
        "sleep",
        "it sleeps again and again with no way out: wait for a timer and `<-ctx.Done()` in one \
         `select`, and cancel where the work ends",
    ),
    (
        "semacquire",
        "what it waits for is never released: look for a path that returns without releasing it, \
         and release it with `defer`",
    ),
    (
        "syscall",
        "each holds an OS thread in a system call that does not return: use a file or socket that \
         the network poller knows (`os.File` with a deadline), or close it from elsewhere",
    ),
    (
        "cgo call",
        "each holds an OS thread in a C function that does not return: give the C side a timeout, \
         and bound the calls that run at once",
    ),
    (
        "finalizer wait",
        "it waits for a finalizer, which may never run: close the resource explicitly instead",
    ),
];

/// The remedy for goroutines created at `creation` that wait at `blocked`.
pub fn waiting_remedy(reason: &str, creation: &Site, blocked: &Site) -> Option<Remedy> {
    let plain = reason.strip_suffix(" (durable)").unwrap_or(reason);
    let (_, text) = REMEDIES.iter().find(|(r, _)| *r == plain)?;
    let f = blocked.culprit_frame()?;
    let created = creation.culprit_frame().map_or_else(String::new, |c| {
        format!(" They are started in {} ({}:{}).", clean(&c.function), clean(&c.file), c.line)
    });
    Some(Remedy {
        text: format!("In {} they wait ({reason}), and {text}.{created}", clean(&f.function)),
        file: (!f.file.is_empty()).then(|| clean(&f.file)),
        line: (f.line > 0).then_some(f.line),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbol::{Frame, Origin};

    fn site(functions: &[(&str, Origin)]) -> Site {
        let frames = functions
            .iter()
            .map(|(function, origin)| Frame {
                function: (*function).to_owned(),
                file: "/a.go".into(),
                line: 7,
                start_line: 1,
                inlined: false,
                origin: *origin,
            })
            .collect();
        Site { id: String::new(), frames, runtime: Vec::new(), culprit: functions.len() - 1 }
    }

    #[test]
    fn old_words_become_the_new_ones() {
        let wait = site(&[("sync.(*WaitGroup).Wait", Origin::Std), ("main.f", Origin::Main)]);
        assert_eq!(waits_on("semacquire", &wait), "sync.WaitGroup.Wait");
        assert_eq!(waits_on("select", &wait), "select");
        let lock = site(&[("sync.(*RWMutex).Lock", Origin::Std), ("main.f", Origin::Main)]);
        assert_eq!(waits_on("sync.Mutex.Lock", &lock), "sync.RWMutex.Lock");
    }

    #[test]
    fn remedy_names_both_places() {
        let (creation, blocked) =
            (site(&[("main.start", Origin::Main)]), site(&[("main.f", Origin::Main)]));
        let r = waiting_remedy("chan send", &creation, &blocked).unwrap();
        assert!(r.text.contains("main.start (/a.go:7)") && r.text.starts_with("In main.f"));
        assert_eq!(r.line, Some(7));
        assert_eq!(waiting_remedy("GC worker (idle)", &creation, &blocked), None);
    }
}
