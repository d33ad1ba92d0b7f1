//! Lines of the execution log.

use std::time::Instant;

use super::{clock::monotonic_ns, sink::Sink};
use crate::stream::{Item, Step, StepStatus};

/// What the governor of exact mode did.
pub fn say(sink: &mut Sink, notes: Vec<Result<String, String>>, began: Instant) {
    for note in notes {
        match note {
            Ok(detail) => sink.put(step("Governing overhead", detail, began)),
            Err(why) => sink.put(failed("Exact mode", why)),
        }
    }
}

pub fn make_step(action: &str, detail: String, began: Instant) -> Step {
    Step {
        t_ns: monotonic_ns(),
        action: action.to_owned(),
        detail,
        status: StepStatus::Success,
        elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
    }
}

pub fn step(action: &str, detail: String, began: Instant) -> Item {
    Item::Step(make_step(action, detail, began))
}

pub fn failed(action: &str, detail: String) -> Item {
    let mut s = make_step(action, detail, Instant::now());
    s.status = StepStatus::Error;
    Item::Step(s)
}
