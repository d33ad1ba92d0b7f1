//! CPython processes that begin to be watched.

use std::time::Instant;

use super::Live;
use crate::{
    pipeline::{python::WatchedPython, resident::WatchedMemory, steps::step, watched::StartError},
    stream::Item,
    target::{cpython::live::LiveError, process::Process},
};

impl Live<'_> {
    pub(super) fn start_python(
        &mut self,
        process: Process,
        began: Instant,
    ) -> Result<(), StartError> {
        let (pid, name) = (process.pid, process.name.clone());
        let (watched, info) = match WatchedPython::start(process.clone(), self.options) {
            Err(LiveError::Python { source, .. }) if source.is_not_python() => {
                return Err(StartError::Neither { pid, name });
            }
            Err(e) if e.is_unknown() => {
                self.start_resident(process, &e, began);
                return Ok(());
            }
            other => other?,
        };
        let detail =
            format!("nothing to attach: the memory of {name} (pid {pid}) is read from outside");
        self.sink.put(Item::Target(info));
        self.sink.put(step("Watching CPython", detail, began));
        self.pythons.insert(pid, watched);
        Ok(())
    }

    /// `why` no more of it can be watched.
    fn start_resident(&mut self, process: Process, why: &LiveError, began: Instant) {
        let pid = process.pid;
        let (watched, info) = WatchedMemory::start(process, why, self.options);
        self.put_blocked("Watching CPython", &info, began);
        self.sink.put(Item::Target(info));
        self.residents.insert(pid, watched);
    }
}
