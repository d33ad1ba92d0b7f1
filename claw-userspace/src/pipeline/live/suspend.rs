//! What Ctrl-Z does. An agent that stands still closes no window, and one that
//! stays open would keep its target from working, so all are closed before.

use std::time::Instant;

use super::Live;
use crate::pipeline::{steps::step, watched::Watched};

impl Live<'_> {
    /// Until a signal says to go on.
    pub(super) fn stand_still(&mut self) {
        let began = Instant::now();
        self.python_windows(true);
        let paused: Vec<_> = self.targets.values().filter_map(Watched::pause_windows).collect();
        self.suspend.obey();
        drop(paused);
        self.sink.put(step("Suspended", "all windows were closed meanwhile".into(), began));
    }
}
