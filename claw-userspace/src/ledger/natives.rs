//! Who allocates what stays outside the pools of a CPython process, summed up
//! over its windows.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{Site, writers::keeps_staying};
use crate::stream::{NativeWindow, NativeWriter};

/// Writers that are kept apart.
const MOST: usize = 512;
/// Share of all that was kept from which on one is named.
const SHARE: f64 = 0.1;
/// Share of the growth that the windows have to account for.
const EXPLAINED: f64 = 0.5;

/// A tenant at a site.
#[derive(Clone, Debug)]
pub struct NativeSite {
    pub tenant: Option<String>,
    pub site: Site,
    /// File of the function that asks for the memory, and whether that is the
    /// interpreter.
    pub library: String,
    pub interpreter: bool,
    /// See [`NativeWriter`].
    pub allocated: u64,
    pub stayed: u64,
    pub early: u64,
    pub kept_bytes: f64,
}

#[derive(Clone, Debug, Default)]
pub struct Natives {
    pub windows: u64,
    /// In which everything was written down, ns.
    open_ns: u64,
    /// All together.
    pub kept_bytes: f64,
    by: BTreeMap<(Option<String>, String), NativeSite>,
    /// Allocations of writers that found no room.
    pub forgotten: u64,
    /// Probe hits, and the target's work that they cost, ns (estimate).
    pub hits: u64,
    pub lost_work_ns: f64,
    pub lost: BTreeMap<String, u64>,
}

impl Natives {
    pub fn add(&mut self, w: &NativeWindow) {
        self.hits += w.hits;
        self.lost_work_ns += w.lost_work_ns;
        for (reason, n) in &w.lost {
            *self.lost.entry(reason.clone()).or_default() += n;
        }
        self.windows += 1;
        self.open_ns += w.to_ns.saturating_sub(w.from_ns);
        self.kept_bytes += w.kept_bytes.max(0.0);
        for by in &w.by {
            let frames = w.stacks.get(by.stack as usize).cloned().unwrap_or_default();
            self.write(by, Site::from_stack(frames));
        }
    }

    fn write(&mut self, by: &NativeWriter, site: Site) {
        let room = self.by.len() < MOST;
        match self.by.entry((by.tenant.clone(), site.id.clone())) {
            Entry::Occupied(mut e) => {
                let n = e.get_mut();
                n.allocated += by.allocated;
                n.stayed += by.stayed;
                n.early += by.early;
                n.kept_bytes += by.kept_bytes.max(0.0);
            }
            Entry::Vacant(e) if room => {
                e.insert(NativeSite {
                    tenant: by.tenant.clone(),
                    site,
                    library: by.library.clone(),
                    interpreter: by.interpreter,
                    allocated: by.allocated,
                    stayed: by.stayed,
                    early: by.early,
                    kept_bytes: by.kept_bytes.max(0.0),
                });
            }
            Entry::Vacant(_) => self.forgotten += by.stayed,
        }
    }

    /// Those that are to be named, the largest first.
    pub fn leaking(&self) -> Vec<&NativeSite> {
        let leaks = |n: &&NativeSite| {
            keeps_staying(n.stayed, n.early)
                && n.kept_bytes >= self.kept_bytes * SHARE
                && n.kept_bytes > 0.0
        };
        let mut found: Vec<&NativeSite> = self.by.values().filter(leaks).collect();
        found.sort_by(|a, b| b.kept_bytes.total_cmp(&a.kept_bytes));
        found
    }

    /// What stayed in the windows, bytes per minute; `None` without any.
    pub fn per_minute(&self) -> Option<f64> {
        (self.open_ns > 0).then(|| self.kept_bytes * 60e9 / self.open_ns as f64)
    }

    /// Whether what stayed in windows, and is named, accounts for growth by so
    /// many bytes per minute.
    pub fn explain(&self, bytes_per_minute: f64) -> bool {
        !self.leaking().is_empty()
            && self.per_minute().is_some_and(|rate| rate >= bytes_per_minute * EXPLAINED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbol::{Frame, Origin};

    fn frame(function: &str, line: u32, origin: Origin) -> Frame {
        Frame {
            function: function.into(),
            file: "f".into(),
            line,
            start_line: 1,
            inlined: false,
            origin,
        }
    }

    fn window(by: Vec<NativeWriter>) -> NativeWindow {
        let stacks = (1..=3)
            .map(|line| vec![frame("grow", 0, Origin::Native), frame("handle", line, Origin::Main)])
            .collect();
        let kept_bytes = by.iter().map(|w| w.kept_bytes).sum();
        NativeWindow { to_ns: 6_000_000_000, stacks, kept_bytes, by, ..NativeWindow::default() }
    }

    fn writer(stack: u32, stayed: u64, early: u64, kept_bytes: f64) -> NativeWriter {
        NativeWriter { stack, stayed, early, kept_bytes, allocated: 50, ..NativeWriter::default() }
    }

    #[test]
    fn windows_add_up_and_the_leak_is_named() {
        let mut n = Natives::default();
        assert!(!n.explain(1.0) && n.per_minute().is_none());
        for _ in 0..2 {
            // A leak; work at hand; a cache that is full.
            n.add(&window(vec![
                writer(0, 3, 2, 6000.0),
                writer(1, 9, 0, 5000.0),
                writer(2, 40, 20, 0.0),
            ]));
        }
        let leaking = n.leaking();
        assert_eq!(leaking.len(), 1);
        assert_eq!(leaking[0].site.culprit_frame().map(|f| f.line), Some(1));
        assert_eq!((leaking[0].stayed, leaking[0].allocated), (6, 100));
        assert!((n.per_minute().unwrap() - 110_000.0).abs() < 1.0);
        assert!(n.explain(200_000.0) && !n.explain(300_000.0));
    }

    #[test]
    fn bounded() {
        let mut n = Natives::default();
        for tenant in 0..1000 {
            let by = NativeWriter { tenant: Some(tenant.to_string()), ..writer(0, 1, 1, 1.0) };
            n.add(&window(vec![by]));
        }
        assert_eq!((n.by.len(), n.forgotten), (MOST, 1000 - MOST as u64));
    }
}
