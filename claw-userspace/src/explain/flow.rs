//! What to change where threads or asyncio tasks of a CPython service pile up.

use crate::stream::{FlowGroup, FlowKind};

/// In one sentence or two.
pub fn flow_remedy(kind: FlowKind, group: &FlowGroup) -> String {
    let waits_for = group.waits_for.as_deref().unwrap_or_default();
    let has = |words: &[&str]| words.iter().any(|w| waits_for.contains(w));
    let function = &group.start.function;
    let pool = kind == FlowKind::Thread && function.ends_with("_worker");
    let what = if pool && group.start.file.ends_with("/thread.py") {
        "Executors are made and never shut down: keep one for the whole service, or use each as \
         `with ThreadPoolExecutor(…) as pool:`"
    } else {
        match kind {
            FlowKind::Thread if has(&["queue.", "Queue", "_queue"]) => {
                "Each waits for a queue that nobody fills any more: put one sentinel per worker \
                 when the work is done, or use `get(timeout=…)`"
            }
            FlowKind::Thread if has(&["a lock", "threading."]) => {
                "Each waits for a lock, event or condition that is never given: wait with a \
                 timeout, set the event on every way out of the other side, take locks with `with`"
            }
            FlowKind::Thread if has(&["recv", "read", "accept", "select", "poll", "connect"]) => {
                "Each waits for a peer that does not answer: give the socket a timeout, and close \
                 it when the request is over"
            }
            FlowKind::Thread if has(&["a child process"]) => {
                "Each waits for a child process that does not end: use `wait(timeout=…)` and kill it"
            }
            FlowKind::Thread => {
                "Threads are started and never end: let them end when their work is done (an \
                 `Event` that they look at), or use a pool of a fixed size"
            }
            FlowKind::Task if has(&["queues."]) => {
                "Each waits for an `asyncio.Queue` that nobody fills any more: cancel the consumer \
                 when its producer ends, or wait with `asyncio.timeout(…)`"
            }
            FlowKind::Task if has(&["locks."]) => {
                "Each waits for a lock, event or semaphore that is never given: wait with \
                 `asyncio.timeout(…)`, release it with `async with`"
            }
            FlowKind::Task if has(&["streams.", "StreamReader"]) => {
                "Each waits for a peer that does not answer: read with `asyncio.timeout(…)`, close \
                 the writer when the request is over"
            }
            FlowKind::Task if has(&["tasks.sleep"]) => {
                "Each sleeps in a loop that does not end: cancel the task when what it serves is \
                 gone, e.g. in a `TaskGroup`"
            }
            FlowKind::Task => {
                "Tasks are created and wait for what does not come: keep them in a `TaskGroup`, \
                 cancel them when the request is over, wait with `asyncio.timeout(…)`"
            }
        }
    };
    format!("{what}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::FlowLine;

    #[test]
    fn the_remedy_fits_what_is_waited_for() {
        let text = |kind, function: &str, file: &str, waits_for: Option<&str>| {
            let start = FlowLine { function: function.into(), file: file.into(), line: 1 };
            let waits_for = waits_for.map(str::to_owned);
            flow_remedy(kind, &FlowGroup { start, waits_for, ..FlowGroup::default() })
        };
        let thread = |w| text(FlowKind::Thread, "serve", "/app/a.py", w);
        assert!(thread(Some("threading.Condition.wait (a lock)")).contains("timeout"));
        assert!(thread(Some("recv")).contains("peer") && thread(None).contains("fixed size"));
        let pool = text(FlowKind::Thread, "_worker", "/l/concurrent/futures/thread.py", None);
        assert!(pool.contains("shut down"));
        let task = |w| text(FlowKind::Task, "serve", "/app/a.py", Some(w));
        assert!(task("queues.Queue.get").contains("asyncio.Queue"));
        assert!(task("a future").contains("TaskGroup"));
    }
}
