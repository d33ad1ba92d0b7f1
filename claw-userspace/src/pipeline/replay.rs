//! A recording through the engine: what `watch` found, again, without root.

use std::path::Path;

use super::{Finished, View, WatchError, sink::Sink};
use crate::{
    detect::fleet::Profiles,
    record::Reader,
    stream::{Item, Step, StepStatus},
};

/// # Errors
/// When the recording cannot be read at all; a cut one is replayed as far as
/// it is whole, and says so.
pub fn replay(path: &Path, view: View, baseline: Profiles) -> Result<Finished, WatchError> {
    let (session, mut reader) = Reader::open(path)?;
    let mut last_ns = session.t_ns;
    let mut sink = Sink::new(session, None, view, baseline);
    let mut ended = false;
    for item in reader.by_ref() {
        match &item {
            Item::Tick { t_ns } => last_ns = *t_ns,
            Item::End { .. } => ended = true,
            _ => {}
        }
        sink.put(item);
    }
    if !ended {
        let detail = match reader.tail() {
            Some(t) => format!("cut at byte {}: {}; what is whole was replayed", t.offset, t.why),
            None => "it ends before the watch did; what is there was replayed".to_owned(),
        };
        sink.note(&format!("recording {}: {detail}", path.display()));
        sink.put(Item::Step(Step {
            t_ns: last_ns,
            action: "Replaying".into(),
            detail,
            status: StepStatus::Error,
            elapsed_ms: 0,
        }));
    }
    Ok(sink.finish())
}
