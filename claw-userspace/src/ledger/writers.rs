//! Who allocated what grows in a CPython process, summed up over its windows.

use std::collections::{BTreeMap, btree_map::Entry};

use super::Site;
use crate::stream::{PyWindow, PyWriter, is_unclear};

/// Types, and writers of one type, that are kept apart.
const MOST_TYPES: usize = 256;
const MOST_WRITERS: usize = 512;
/// Objects that one is judged by, at least …
const FEWEST: u64 = 4;
/// … and the share of them that was allocated in the first half of a window.
/// What is at work when a window ends began shortly before; what stays began at
/// any time.
const EARLY: f64 = 0.2;
/// Share of what stayed and has a known writer from which on one is named.
const SHARE: f64 = 0.05;

/// Whether what stayed of one writer, of it so much from the first half of a
/// window, goes on staying.
pub(super) fn keeps_staying(stayed: u64, early: u64) -> bool {
    stayed >= FEWEST && early as f64 >= stayed as f64 * EARLY
}

/// A tenant at a site.
#[derive(Clone, Debug)]
pub struct Writer {
    pub tenant: Option<String>,
    pub site: Site,
    /// Objects that stayed, and of those the ones from the first half of a
    /// window.
    pub stayed: u64,
    pub early: u64,
    /// All that the site allocated, whoever's.
    pub allocated: u64,
}

/// One type.
#[derive(Clone, Debug, Default)]
pub struct Written {
    pub windows: u64,
    /// Objects that came in a window and stayed, and those with a known writer.
    pub stayed: u64,
    pub entered: u64,
    /// The end of objects was not seen: a writer may be that of the one before
    /// at the same address.
    pub reused: bool,
    /// Of the objects in containers that grow alone.
    pub held: bool,
    by: BTreeMap<(Option<String>, String), Writer>,
    /// Of writers that found no room.
    forgotten: u64,
}

#[derive(Clone, Debug, Default)]
pub struct Writers {
    types: BTreeMap<String, Written>,
    /// Probe hits, and the target's work that they cost, ns (estimate).
    pub hits: u64,
    pub lost_work_ns: f64,
    /// What was not written down, by reason, all windows together.
    pub lost: BTreeMap<String, u64>,
}

impl Writers {
    pub fn add(&mut self, w: &PyWindow) {
        self.hits += w.hits;
        self.lost_work_ns += w.lost_work_ns;
        for (reason, n) in &w.lost {
            *self.lost.entry(reason.clone()).or_default() += n;
        }
        for gain in &w.gains {
            if self.types.len() >= MOST_TYPES && !self.types.contains_key(&gain.type_name) {
                continue;
            }
            let t = self.types.entry(gain.type_name.clone()).or_default();
            t.windows += 1;
            t.stayed += gain.stayed;
            t.entered += gain.entered.min(gain.stayed);
            t.reused = gain.reused;
            t.held = gain.held;
            // A window carries the largest alone.
            let carried: u64 = gain.by.iter().map(|by| by.stayed).sum();
            t.forgotten += gain.entered.saturating_sub(carried);
            for by in &gain.by {
                let frames = w.stacks.get(by.stack as usize).cloned().unwrap_or_default();
                t.write(by, Site::from_stack(frames));
            }
        }
    }

    pub fn of(&self, type_name: &str) -> Option<&Written> {
        self.types.get(type_name)
    }

    /// Objects of writers that found no room.
    pub fn forgotten(&self) -> u64 {
        self.types.values().map(|t| t.forgotten).sum()
    }
}

impl Written {
    fn write(&mut self, by: &PyWriter, site: Site) {
        let room = self.by.len() < MOST_WRITERS;
        match self.by.entry((by.tenant.clone(), site.id.clone())) {
            Entry::Occupied(mut e) => {
                let w = e.get_mut();
                w.stayed += by.stayed;
                w.early += by.early;
                w.allocated += by.allocated;
            }
            Entry::Vacant(e) if room => {
                e.insert(Writer {
                    tenant: by.tenant.clone(),
                    site,
                    stayed: by.stayed,
                    early: by.early,
                    allocated: by.allocated,
                });
            }
            Entry::Vacant(_) => self.forgotten += by.stayed,
        }
    }

    /// Share of what stayed whose writer is known, 0 to 1.
    pub fn coverage(&self) -> f64 {
        self.entered as f64 / self.stayed.max(1) as f64
    }

    /// Those whose objects keep staying, most first. Where the end of objects was
    /// not seen and too many have no writer there are none: the build has
    /// allocators that are not probed, and what they hand out may bear the mark
    /// of an earlier object.
    pub fn leaking(&self) -> Vec<&Writer> {
        if self.reused && is_unclear(self.entered, self.stayed) {
            return Vec::new();
        }
        let mut found: Vec<&Writer> = self
            .by
            .values()
            .filter(|w| keeps_staying(w.stayed, w.early))
            .filter(|w| w.stayed as f64 >= self.entered as f64 * SHARE)
            .collect();
        found.sort_by(|a, b| {
            let key = |w: &Writer| (w.tenant.clone(), w.site.id.clone());
            b.stayed.cmp(&a.stayed).then_with(|| key(a).cmp(&key(b)))
        });
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        stream::PyGain,
        symbol::{Frame, Origin},
    };

    fn frame(function: &str, line: u32, origin: Origin) -> Frame {
        let (file, start_line) = ("/app/x.py".to_owned(), 1);
        Frame { function: function.into(), file, line, start_line, inlined: false, origin }
    }

    fn window(by: Vec<PyWriter>, stayed: u64) -> PyWindow {
        let stacks = vec![
            vec![frame("append", 9, Origin::Std), frame("leak", 10, Origin::Main)],
            vec![frame("work", 20, Origin::Main)],
        ];
        let entered = by.iter().map(|w| w.stayed).sum();
        let type_name = "app.Session".to_owned();
        let gain = PyGain { type_name, stayed, entered, reused: false, held: true, by };
        PyWindow { stacks, gains: vec![gain], ..PyWindow::default() }
    }

    fn writer(tenant: &str, stack: u32, stayed: u64, early: u64) -> PyWriter {
        PyWriter { tenant: Some(tenant.into()), stack, stayed, early, allocated: stayed * 2 }
    }

    #[test]
    fn what_stays_is_told_from_work_at_hand() {
        let mut writers = Writers::default();
        for _ in 0..3 {
            let by = vec![writer("acme", 0, 100, 50), writer("b", 0, 20, 9), writer("b", 1, 40, 0)];
            writers.add(&window(by, 165));
        }
        let written = writers.of("app.Session").unwrap();
        assert!((written.coverage() - 160.0 / 165.0).abs() < 1e-9);
        let leaking = written.leaking();
        let told: Vec<_> =
            leaking.iter().map(|w| (w.tenant.as_deref().unwrap(), w.stayed)).collect();
        assert_eq!(told, [("acme", 300), ("b", 60)]);
        let culprit = leaking[0].site.culprit_frame().unwrap();
        assert_eq!((culprit.function.as_str(), culprit.line), ("leak", 10));
    }

    #[test]
    fn bounded() {
        let mut writers = Writers::default();
        let many = (0..2000).map(|i| writer(&i.to_string(), 0, 5, 5)).collect();
        writers.add(&window(many, 10_000));
        let written = writers.of("app.Session").unwrap();
        assert_eq!((written.by.len(), written.forgotten), (512, (2000 - 512) * 5));
        assert!(written.leaking().is_empty(), "none has a share worth naming");
    }
}
