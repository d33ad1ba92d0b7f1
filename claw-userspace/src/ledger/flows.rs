//! Threads or tasks of one CPython process: for each function that they are
//! started with, how many of those that stay there are.

use std::collections::BTreeMap;

use super::Series;
use crate::stream::{FlowGroup, FlowLine, PyFlows};

/// Groups whose history is kept.
const MOST_GROUPS: usize = 2048;

#[derive(Clone, Debug, Default)]
pub struct FlowHistory {
    /// Of those that were seen twice.
    pub old: Series,
    /// Of such, over since the first look.
    pub old_ended: u64,
    pub last: FlowGroup,
}

#[derive(Clone, Debug, Default)]
pub struct FlowHistories {
    pub groups: BTreeMap<(FlowLine, Option<String>), FlowHistory>,
    pub last_ns: u64,
    /// Groups that found no room.
    pub forgotten: u64,
}

impl FlowHistories {
    pub fn add(&mut self, flows: PyFlows) {
        self.last_ns = flows.t_ns;
        let whole = flows.left_out == 0;
        for group in flows.groups {
            let key = (group.start.clone(), group.tenant.clone());
            if self.groups.len() >= MOST_GROUPS && !self.groups.contains_key(&key) {
                self.forgotten += 1;
                continue;
            }
            let h = self.groups.entry(key).or_default();
            // At the first look nothing is old.
            if flows.looks > 1 {
                h.old.add(flows.t_ns, group.old as f64);
            }
            h.old_ended = h.old_ended.saturating_add(group.old_ended);
            h.last = group;
        }
        if whole {
            let now = flows.t_ns;
            self.groups
                .retain(|_, h| h.last.alive > 0 && h.old.last().is_none_or(|(t, _)| t == now));
        }
    }
}
