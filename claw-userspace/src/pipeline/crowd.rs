//! Who of a process's threads or tasks was there before: from one look at them
//! to the next.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::{
    report::clean::clean,
    stream::{FlowGroup, FlowKind, FlowLine, PyFlows},
    target::cpython::flows::{Flows, Line},
};

/// Groups that are passed on, those with most.
const MOST_GROUPS: usize = 256;
/// Flows that are remembered.
const MOST_MEMBERS: usize = 1 << 18;

/// Function and tenant; line and what is waited for there.
type Key = (FlowLine, Option<String>);
type Place = (Option<FlowLine>, Option<String>);

#[derive(Debug, Default)]
pub struct Crowd {
    looks: u32,
    members: FxHashMap<u64, Member>,
}

#[derive(Debug)]
struct Member {
    since_ns: u64,
    old: bool,
    key: Key,
}

fn cleaned(line: &Line) -> FlowLine {
    FlowLine { function: clean(&line.function), file: clean(&line.file), line: line.line }
}

fn empty((start, tenant): &Key, t_ns: u64) -> FlowGroup {
    FlowGroup {
        start: start.clone(),
        tenant: tenant.clone(),
        oldest_ns: t_ns,
        ..FlowGroup::default()
    }
}

impl Crowd {
    /// Take what a look found.
    pub fn look(&mut self, pid: u32, t_ns: u64, kind: FlowKind, found: Flows) -> PyFlows {
        self.looks = self.looks.saturating_add(1);
        let mut groups: BTreeMap<Key, FlowGroup> = BTreeMap::new();
        let mut places: BTreeMap<Key, BTreeMap<Place, u64>> = BTreeMap::new();
        let mut now = FxHashMap::default();
        for flow in found.all {
            let before = self.members.remove(&flow.id);
            // Whose it is may become known later, and does not change.
            let key = match before {
                Some(Member { ref key, .. }) if key.1.is_some() => key.clone(),
                _ => (cleaned(&flow.start), flow.tenant.as_deref().map(clean)),
            };
            let since_ns = before.as_ref().map_or(t_ns, |m| m.since_ns);
            let old = before.is_some();
            let group = groups.entry(key.clone()).or_insert_with(|| empty(&key, t_ns));
            group.alive += 1;
            group.old += u64::from(old);
            group.oldest_ns = group.oldest_ns.min(since_ns);
            let place = (flow.at.as_ref().map(cleaned), flow.waits_for.as_deref().map(clean));
            *places.entry(key.clone()).or_default().entry(place).or_default() += 1;
            if now.len() < MOST_MEMBERS {
                now.insert(flow.id, Member { since_ns, old, key });
            }
        }
        // What is left was there at the look before, and is over.
        for member in std::mem::replace(&mut self.members, now).into_values().filter(|m| m.old) {
            let group =
                groups.entry(member.key.clone()).or_insert_with(|| empty(&member.key, t_ns));
            group.old_ended += 1;
        }
        for (key, group) in &mut groups {
            let most = places.remove(key).and_then(|p| p.into_iter().max_by_key(|(_, n)| *n));
            if let Some(((at, waits_for), standing)) = most {
                (group.at, group.waits_for, group.standing) = (at, waits_for, standing);
            }
        }
        let mut groups: Vec<FlowGroup> = groups.into_values().collect();
        groups.sort_by_key(|g| std::cmp::Reverse(g.alive.max(g.old_ended)));
        let left_out = groups.iter().skip(MOST_GROUPS).map(|g| g.alive).sum();
        groups.truncate(MOST_GROUPS);
        PyFlows { pid, t_ns, kind, looks: self.looks, unknown: found.unknown, left_out, groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::cpython::flows::Flow;

    fn flows(of: &[(u64, &str, Option<&str>)]) -> Flows {
        let flow = |(id, function, tenant): &(u64, &str, Option<&str>)| Flow {
            id: *id,
            start: Line { function: (*function).into(), file: "a.py".into(), line: 1 },
            tenant: tenant.map(str::to_owned),
            ..Flow::default()
        };
        Flows { all: of.iter().map(flow).collect(), unknown: 1 }
    }

    #[test]
    fn those_that_stay_and_those_that_end() {
        let mut crowd = Crowd::default();
        let mut look = |t, of: &[_]| {
            let item = crowd.look(7, t, FlowKind::Thread, flows(of));
            let told = |g: &FlowGroup| {
                (g.start.function.clone(), g.tenant.clone(), g.alive, g.old, g.old_ended)
            };
            (item.looks, item.groups.iter().map(told).collect::<Vec<_>>())
        };
        let acme = Some("acme");
        let group =
            |f: &str, t: Option<&str>, a, o, e| (f.to_owned(), t.map(str::to_owned), a, o, e);
        let first = look(10, &[(1, "f", acme), (2, "f", acme), (3, "g", None)]);
        assert_eq!(first, (1, vec![group("f", acme, 2, 0, 0), group("g", None, 1, 0, 0)]));
        // One that was seen once alone ends unnoticed: it was at work.
        let second = look(20, &[(1, "f", acme), (2, "f", None), (4, "f", acme)]);
        assert_eq!(second, (2, vec![group("f", acme, 3, 2, 0)]));
        let third = look(30, &[(1, "f", acme), (4, "f", acme)]);
        assert_eq!(third, (3, vec![group("f", acme, 2, 2, 1)]));
        let last = look(40, &[]);
        assert_eq!(last, (4, vec![group("f", acme, 0, 0, 2)]));
    }

    #[test]
    fn groups_are_bounded_and_counted() {
        let names: Vec<String> = (0..MOST_GROUPS + 9).map(|i| format!("f{i}")).collect();
        let of: Vec<_> = (0..).zip(&names).map(|(i, n)| (i, n.as_str(), None)).collect();
        let item = Crowd::default().look(7, 1, FlowKind::Task, flows(&of));
        assert_eq!((item.groups.len(), item.left_out, item.unknown), (MOST_GROUPS, 9, 1));
    }
}
