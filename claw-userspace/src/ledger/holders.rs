//! Who holds what grows in a CPython process: the first and the latest look at
//! each type, so that what grew is told from what was there.

use std::collections::BTreeMap;

use crate::{
    stream::HoldersItem,
    target::cpython::graph::paths::{Path, RootKind, TypeHolders},
};

/// Types that are kept.
const MOST_TYPES: usize = 256;

#[derive(Clone, Debug)]
struct Looks {
    first: TypeHolders,
    last: TypeHolders,
    looks: u32,
}

/// The way along which a type grows.
#[derive(Clone, Copy, Debug)]
pub struct HeldBy<'a> {
    pub path: &'a Path,
    /// Of all objects of the type.
    pub all: u64,
    /// Objects that came to the way since the first look, and to all ways;
    /// `None` when there was one look alone.
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
            let name = t.type_name.clone();
            if let Some(looks) = self.types.get_mut(&name) {
                looks.last = t;
                looks.looks += 1;
            } else if self.types.len() < MOST_TYPES {
                self.types.insert(name, Looks { first: t.clone(), last: t, looks: 1 });
            }
        }
    }

    /// The way of the type that grew most; with one look one that is `likely`,
    /// or else that with most objects.
    pub fn of(&self, type_name: &str, likely: impl Fn(&Path) -> bool) -> Option<HeldBy<'_>> {
        let looks = self.types.get(type_name)?;
        let (pause_ns, bytes, gc_off) = self.last?;
        let before =
            |path: &Path| looks.first.paths.iter().find(|p| same(p, path)).map_or(0, |p| p.objects);
        let by = |path: &Path| path.objects.saturating_sub(before(path));
        let all_grown = looks.last.objects.saturating_sub(looks.first.objects);
        let compared = looks.looks > 1 && all_grown > 0;
        let path = looks
            .last
            .paths
            .iter()
            .max_by_key(|p| (if compared { by(p) } else { 0 }, likely(p), p.objects))?;
        Some(HeldBy {
            path,
            all: looks.last.objects,
            grown: compared.then(|| (by(path), all_grown)),
            pause_ns,
            bytes,
            gc_off,
        })
    }
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

    fn look(paths: Vec<Path>) -> HoldersItem {
        let objects = paths.iter().map(|p| p.objects).sum();
        let types = vec![TypeHolders { type_name: "T".into(), objects, paths }];
        HoldersItem { whole: true, pause_ns: 5, types, ..HoldersItem::default() }
    }

    #[test]
    fn what_grew_is_told_from_what_was_there() {
        let mut h = Holders::default();
        let any = |_: &Path| false;
        assert!(h.of("T", any).is_none());
        h.add(look(vec![path("app.TABLE", 9000), path("app.LEAK", 100)]));
        let of = h.of("T", any).unwrap();
        assert_eq!((of.path.root.as_str(), of.grown, of.all), ("app.TABLE", None, 9100));
        // What is known to grow is not the largest.
        let of = h.of("T", |p| p.root == "app.LEAK").unwrap();
        assert_eq!((of.path.root.as_str(), of.grown, of.all), ("app.LEAK", None, 9100));
        h.add(look(vec![path("app.TABLE", 9000), path("app.LEAK", 300)]));
        let of = h.of("T", |p| p.root == "app.TABLE").unwrap();
        assert_eq!((of.path.root.as_str(), of.grown), ("app.LEAK", Some((200, 200))));
        assert_eq!((h.pauses, h.paused_ns), (2, 10));
    }

    #[test]
    fn what_was_not_looked_for_is_not_unreachable() {
        let unreachable = Path { kind: RootKind::Unreachable, objects: 7, ..Path::default() };
        let mut h = Holders::default();
        h.add(HoldersItem { whole: false, ..look(vec![unreachable.clone()]) });
        assert!(h.of("T", |_| false).is_none());
        let mut h = Holders::default();
        h.add(look(vec![unreachable]));
        assert_eq!(h.of("T", |_| false).unwrap().path.kind, RootKind::Unreachable);
    }
}
