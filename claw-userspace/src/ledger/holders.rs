//! Who holds what grows in a CPython process: some looks at each type, so that
//! what grew is told from what was there and from work at hand.

use std::collections::BTreeMap;

use crate::{
    stream::HoldersItem,
    target::cpython::graph::paths::{Path, RootKind, TypeHolders},
};

/// Types that are kept, and looks at one: the first and the latest.
const MOST_TYPES: usize = 256;
const MOST_LOOKS: usize = 8;
/// A way to which so many times as many objects came as the censuses counted in
/// all has them from work at hand, which was seen by chance …
const AT_ONCE: f64 = 2.0;
/// … if there is one to which this share of them came.
const AS_EXPECTED: f64 = 0.25;

#[derive(Clone, Debug)]
struct Look {
    t_ns: u64,
    of: TypeHolders,
}

/// The looks at one type, oldest first.
#[derive(Clone, Debug, Default)]
struct Looks(Vec<Look>);

/// What came to a way, or to all, from the earlier looks to the later ones.
#[derive(Clone, Copy, Debug)]
struct Gain {
    by: u64,
    after_ns: u64,
}

/// The way along which a type grows.
#[derive(Clone, Copy, Debug)]
pub struct HeldBy<'a> {
    pub path: &'a Path,
    /// Of all objects of the type.
    pub all: u64,
    /// Objects that came to the way between the looks, and to all ways; `None`
    /// when there was one look alone, or nothing came.
    pub grown: Option<(u64, u64)>,
    pub pause_ns: u64,
    pub bytes: u64,
    pub gc_off: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Holders {
    types: BTreeMap<String, Looks>,
    last: Option<(u64, u64, bool)>,
    /// Times that the process stood still, and for how long in all, ns.
    pub pauses: u64,
    pub paused_ns: u64,
}

impl Holders {
    pub fn add(&mut self, item: HoldersItem) {
        self.pauses += 1;
        self.paused_ns += item.pause_ns;
        self.last = Some((item.pause_ns, item.bytes, item.gc_off));
        for mut t in item.types {
            if !item.whole {
                // What was not reached may not have been looked for.
                t.paths.retain(|p| p.kind != RootKind::Unreachable);
            }
            if self.types.len() < MOST_TYPES || self.types.contains_key(&t.type_name) {
                let looks = self.types.entry(t.type_name.clone()).or_default();
                if looks.0.len() >= MOST_LOOKS {
                    looks.0.remove(1);
                }
                looks.0.push(Look { t_ns: item.t_ns, of: t });
            }
        }
    }

    /// The way of the type that grew most, without those that grew far faster
    /// than the type does (objects `per_minute`); where none grew one that is
    /// `likely`, or else that with most objects.
    pub fn of(
        &self,
        type_name: &str,
        per_minute: f64,
        likely: impl Fn(&Path) -> bool,
    ) -> Option<HeldBy<'_>> {
        let looks = self.types.get(type_name)?;
        let (pause_ns, bytes, gc_off) = self.last?;
        let last = &looks.0.last()?.of;
        let gains: Vec<(&Path, Gain)> =
            last.paths.iter().map(|p| (p, looks.gain(|t| objects_of(t, p)))).collect();
        let of_expected = |g: &Gain| g.by as f64 / (per_minute * g.after_ns as f64 / 60e9);
        let at_once = |g: &Gain| of_expected(g) > AT_ONCE;
        let steady = gains.iter().any(|(_, g)| (AS_EXPECTED..AT_ONCE).contains(&of_expected(g)));
        let by = |g: &Gain| if steady && at_once(g) { 0 } else { g.by };
        let (path, gain) =
            gains.iter().max_by_key(|(p, g)| (by(g), likely(p), p.objects)).copied()?;
        let left_out: u64 = gains.iter().map(|(_, g)| g.by - by(g)).sum();
        // Of ways that are not listed as well.
        let whole = looks.gain(|t| t.objects).by.saturating_sub(left_out);
        let listed: u64 = gains.iter().map(|(_, g)| by(g)).sum();
        Some(HeldBy {
            path,
            all: last.objects,
            grown: (listed > 0).then(|| (by(&gain), whole.max(listed))),
            pause_ns,
            bytes,
            gc_off,
        })
    }
}

impl Looks {
    /// How much the least that the later half counted is above the least that
    /// the earlier half did: what comes and goes is not in it, unless half of
    /// the looks saw it.
    fn gain(&self, count: impl Fn(&TypeHolders) -> u64) -> Gain {
        let (earlier, later) = self.0.split_at(self.0.len() / 2);
        let least = |looks: &[Look]| looks.iter().map(|l| (count(&l.of), l.t_ns)).min();
        match (least(earlier), least(later)) {
            (Some((before, from_ns)), Some((after, to_ns))) => {
                Gain { by: after.saturating_sub(before), after_ns: to_ns.saturating_sub(from_ns) }
            }
            _ => Gain { by: 0, after_ns: 0 },
        }
    }
}

fn objects_of(held: &TypeHolders, path: &Path) -> u64 {
    held.paths.iter().find(|p| same(p, path)).map_or(0, |p| p.objects)
}

/// Whether two looks saw the same way.
fn same(a: &Path, b: &Path) -> bool {
    fn names(p: &Path) -> impl Iterator<Item = (&str, Option<&str>)> {
        p.steps.iter().map(|s| (s.type_name.as_str(), s.field.as_deref()))
    }
    a.kind == b.kind && a.root == b.root && names(a).eq(names(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(root: &str, objects: u64) -> Path {
        Path { root: root.into(), objects, ..Path::default() }
    }

    fn look(t_s: u64, paths: Vec<Path>) -> HoldersItem {
        let objects = paths.iter().map(|p| p.objects).sum();
        let types = vec![TypeHolders { type_name: "T".into(), objects, paths }];
        let t_ns = t_s * 1_000_000_000;
        HoldersItem { t_ns, whole: true, pause_ns: 5, types, ..HoldersItem::default() }
    }

    /// Root, gain and the gain of all, where 1000 a minute come.
    fn of(h: &Holders, likely: &str) -> (String, Option<(u64, u64)>) {
        let of = h.of("T", 1000.0, |p| p.root == likely).unwrap();
        (of.path.root.clone(), of.grown)
    }

    #[test]
    fn what_grew_is_told_from_what_was_there() {
        let mut h = Holders::default();
        assert!(h.of("T", 1000.0, |_| false).is_none());
        h.add(look(0, vec![path("app.TABLE", 9000), path("app.LEAK", 100)]));
        assert_eq!(of(&h, ""), ("app.TABLE".into(), None));
        assert_eq!(h.of("T", 1000.0, |_| false).unwrap().all, 9100);
        // What is known to grow is not the largest.
        assert_eq!(of(&h, "app.LEAK"), ("app.LEAK".into(), None));
        h.add(look(15, vec![path("app.TABLE", 9000), path("app.LEAK", 350)]));
        assert_eq!(of(&h, "app.TABLE"), ("app.LEAK".into(), Some((250, 250))));
        assert_eq!((h.pauses, h.paused_ns), (2, 10));
    }

    /// A request that makes many of what leaks.
    #[test]
    fn what_grew_is_told_from_work_at_hand() {
        let table = || path("app.TABLE", 9000);
        let rows = || path("rows of report", 5000);
        let leak = |n| path("app.LEAK", n);
        let told = |by| ("app.LEAK".to_owned(), Some((by, by)));
        // Seen in the first look.
        let mut h = Holders::default();
        h.add(look(0, vec![table(), rows(), leak(100)]));
        h.add(look(15, vec![table(), leak(350)]));
        assert_eq!(of(&h, ""), told(250));
        // In the last, too.
        h.add(look(45, vec![table(), rows(), leak(850)]));
        assert_eq!(of(&h, ""), told(250));
        // In the last of two, and of many.
        let mut h = Holders::default();
        h.add(look(0, vec![table(), leak(100)]));
        h.add(look(15, vec![table(), rows(), leak(350)]));
        assert_eq!(of(&h, ""), told(250));
        for (t_s, n) in [(45, 850), (105, 1850), (600, 10_100)] {
            h.add(look(t_s, vec![table(), leak(n)]));
        }
        h.add(look(1200, vec![table(), rows(), leak(20_100)]));
        assert_eq!(of(&h, ""), told(1750));
        // What comes at once has nothing beside it that grows as fast.
        let mut h = Holders::default();
        h.add(look(0, vec![table(), leak(100)]));
        h.add(look(15, vec![table(), rows(), leak(150)]));
        assert_eq!(of(&h, ""), ("rows of report".into(), Some((5000, 5050))));
    }

    #[test]
    fn looks_are_bounded() {
        let mut h = Holders::default();
        for t_s in 0..100 {
            h.add(look(t_s, vec![path("app.LEAK", t_s)]));
        }
        assert_eq!(h.types["T"].0.len(), MOST_LOOKS);
        assert_eq!(of(&h, "").1, Some((96, 96)), "the first, and the least of the latest four");
    }

    #[test]
    fn what_was_not_looked_for_is_not_unreachable() {
        let unreachable = Path { kind: RootKind::Unreachable, objects: 7, ..Path::default() };
        let mut h = Holders::default();
        h.add(HoldersItem { whole: false, ..look(0, vec![unreachable.clone()]) });
        assert!(h.of("T", 1000.0, |_| false).is_none());
        let mut h = Holders::default();
        h.add(look(0, vec![unreachable]));
        assert_eq!(h.of("T", 1000.0, |_| false).unwrap().path.kind, RootKind::Unreachable);
    }
}
