//! What stayed of each type at the end of a window, by who allocated it.

use std::collections::BTreeMap;

use claw_common::PyEntry;
use rustc_hash::FxHashMap;

use super::pystacks::{Stacks, tenant};
use crate::{
    stream::{PyGain, PyWindow, PyWriter},
    symbol::Frame,
};

/// Writers of one type that a window carries: a leak has few.
const MOST_WRITERS: usize = 64;
/// Objects in containers that grow from which on those alone count …
const FEWEST: usize = 4;

/// An object that came while the window was open and stayed.
pub struct Fresh {
    pub at: u64,
    pub typ: u32,
    /// Who wrote it.
    pub entry: Option<PyEntry>,
    /// By putting it into a container, and not by making it.
    pub stored: bool,
}

/// Whose objects of a type count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// Those that containers own which grow. The others come and go, as in a
    /// cache that is full.
    Held,
    All,
    /// Nobody's: what came is far more than what became more, and nothing tells
    /// the one from the other.
    None,
}

impl Counts {
    /// `net`: objects of the type that are more now, whoever holds them.
    fn of(all: usize, held: usize, net: i64, settled: bool) -> Self {
        let net = usize::try_from(net).unwrap_or(0);
        // Containers that grow by less than half of the net gain are not where
        // it goes.
        if held >= FEWEST && (held * 2 >= net.min(all) || !settled) {
            Self::Held
        } else if net * 2 >= all && settled {
            Self::All
        } else {
            Self::None
        }
    }
}

/// What containers that grow own at the end of a window.
pub struct Held {
    /// With the element that each is, or that leads to it.
    pub objects: FxHashMap<u64, u64>,
    /// What was at work at the end is over. Without that a burst looks like
    /// growth.
    pub settled: bool,
}

/// What stayed of each type in `names`, by who wrote it; `net` by how much each
/// type has become more, `half` the middle of the window.
pub fn gains(
    names: &[String],
    exact: &[bool],
    fresh: &[Fresh],
    held: &Held,
    net: &[i64],
    half: u64,
    stacks: &Stacks<'_>,
) -> Vec<PyGain> {
    let of_type = |(typ, name): (u32, &String)| {
        let all = || fresh.iter().filter(|f| f.typ == typ);
        let held_ones = all().filter(|f| held.objects.contains_key(&f.at)).count();
        let net = net.get(typ as usize).copied().unwrap_or(0);
        let counts = Counts::of(all().count(), held_ones, net, held.settled);
        let mut gain = Gain { held: counts == Counts::Held, stayed: 0, by: FxHashMap::default() };
        let exact = exact.get(typ as usize) == Some(&true);
        let mut reused = false;
        for f in all() {
            let counted = match counts {
                Counts::All => true,
                Counts::Held => held.objects.contains_key(&f.at),
                Counts::None => false,
            };
            if counted {
                reused |= !exact && !f.stored && f.entry.is_some();
                gain.add(f.entry.as_ref().and_then(|entry| {
                    let stack = stacks.id(entry.stack)?;
                    Some((tenant(&entry.label), stack, entry.time_ns < half))
                }));
            }
        }
        gain.finish(name, reused, stacks)
    };
    (0..).zip(names).map(of_type).collect()
}

/// By tenant and stack: stayed, and of those the early ones.
struct Gain {
    /// Only those in containers that grow count.
    held: bool,
    stayed: u64,
    by: FxHashMap<(Option<String>, u32), (u64, u64)>,
}

impl Gain {
    /// One more that stayed; its tenant and stack where they are known, and
    /// whether it was allocated in the first half of the window.
    fn add(&mut self, writer: Option<(Option<String>, u32, bool)>) {
        self.stayed += 1;
        if let Some((tenant, stack, early)) = writer {
            let (stayed, early_ones) = self.by.entry((tenant, stack)).or_default();
            *stayed += 1;
            *early_ones += u64::from(early);
        }
    }

    /// The largest writers come first; the least of very many are left out.
    fn finish(self, name: &str, reused: bool, stacks: &Stacks<'_>) -> PyGain {
        let mut by: Vec<PyWriter> = self
            .by
            .into_iter()
            .map(|((tenant, stack), (stayed, early))| PyWriter {
                allocated: stacks.allocated(stack),
                tenant,
                stack,
                stayed,
                early,
            })
            .collect();
        by.sort_by(|a, b| {
            b.stayed.cmp(&a.stayed).then_with(|| (&a.tenant, a.stack).cmp(&(&b.tenant, b.stack)))
        });
        let entered = by.iter().map(|w| w.stayed).sum();
        by.truncate(MOST_WRITERS);
        PyGain {
            type_name: name.to_owned(),
            stayed: self.stayed,
            entered,
            reused,
            held: self.held,
            by,
        }
    }
}

/// By type, how many objects a window made more: the least of what its last walk
/// and the `later` one say, since each may have come in a burst. What became more
/// until the later is the window's by its share of that time.
pub fn net(before: &[i64], after: &[i64], later: Option<(&[i64], f64)>) -> Vec<i64> {
    let of = |(typ, (before, after)): (usize, (&i64, &i64))| {
        let then = later.and_then(|(counts, share)| Some((*counts.get(typ)?, share)));
        let then = then.map(|(n, share)| ((n - before) as f64 * share) as i64);
        then.unwrap_or(i64::MAX).min(after - before)
    };
    before.iter().zip(after).enumerate().map(of).collect()
}

/// The stacks that writers refer to, who are made to count from there.
pub fn carried(gains: &mut [PyGain], all: Vec<Vec<Frame>>) -> Vec<Vec<Frame>> {
    let mut places: FxHashMap<u32, u32> = FxHashMap::default();
    let mut stacks = Vec::new();
    for writer in gains.iter_mut().flat_map(|g| &mut g.by) {
        let place = *places.entry(writer.stack).or_insert_with(|| {
            stacks.push(all.get(writer.stack as usize).cloned().unwrap_or_default());
            u32::try_from(stacks.len() - 1).unwrap_or(u32::MAX)
        });
        writer.stack = place;
    }
    stacks
}

/// A window, for the log.
pub fn describe(seen: &PyWindow) -> String {
    let gains: Vec<String> = seen
        .gains
        .iter()
        .map(|g| match g.stayed {
            0 => format!("{} no object beyond those that left", g.type_name),
            all => format!("{} of {all} objects of {}", g.entered, g.type_name),
        })
        .collect();
    let open = seen.to_ns.saturating_sub(seen.from_ns) as f64;
    format!(
        "process {}: {} for {}: of what stayed, the writer is known of {}{}",
        seen.pid,
        seen.functions.join(", "),
        cost(open, seen.hits, seen.lost_work_ns),
        gains.join(", "),
        missed(&seen.lost)
    )
}

/// How long a window counted, in ns, and what it cost from its first probe to its
/// last, in words.
pub(super) fn cost(counted_ns: f64, hits: u64, lost_work_ns: f64) -> String {
    format!(
        "{:.1} s, {hits} hits that cost it {:.2} s of work (estimate)",
        counted_ns / 1e9,
        lost_work_ns / 1e9
    )
}

/// What a window missed, by reason, in words that end a sentence.
pub(super) fn missed(lost: &BTreeMap<String, u64>) -> String {
    lost.iter().filter(|(_, n)| **n > 0).map(|(why, n)| format!("; {why} {n}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_hides_no_leak_and_is_none() {
        let of = |all, held, net| Counts::of(all, held, net, true);
        // Of 436 that came 109 are in a list that grows, the rest in a full one.
        assert_eq!(of(436, 109, 105), Counts::Held);
        assert_eq!(of(436, 0, 3), Counts::None);
        assert_eq!(of(436, 0, -40), Counts::None);
        // In no container that is known.
        assert_eq!(of(130, 0, 110), Counts::All);
        assert_eq!(of(1000, 10, 900), Counts::All, "the list is not where they go");
        assert_eq!(of(0, 0, 0), Counts::All);
        // 5000 of an answer that is being written when the watch ends.
        assert_eq!(Counts::of(5_100, 50, 5_060, false), Counts::Held);
        assert_eq!(Counts::of(5_100, 0, 5_060, false), Counts::None);
    }

    #[test]
    fn only_the_stacks_of_writers_are_carried() {
        let writer = |stack| PyWriter { stack, ..PyWriter::default() };
        let mut gains = [
            PyGain { by: vec![writer(3), writer(1)], ..PyGain::default() },
            PyGain { by: vec![writer(3), writer(9)], ..PyGain::default() },
        ];
        let frame = |i: u32| Frame {
            function: i.to_string(),
            file: String::new(),
            line: i,
            start_line: 0,
            inlined: false,
            origin: crate::symbol::Origin::Main,
        };
        let stacks = carried(&mut gains, (0..5).map(|i| vec![frame(i)]).collect());
        assert_eq!(stacks, [vec![frame(3)], vec![frame(1)], vec![]]);
        let by: Vec<u32> = gains.iter().flat_map(|g| &g.by).map(|w| w.stack).collect();
        assert_eq!(by, [0, 1, 0, 2]);
    }

    #[test]
    fn neither_a_burst_nor_what_came_later_is_a_windows_gain() {
        // 170 in a window of 3 s, 60 a second after it, and 5000 in an answer
        // that is being written at one of the walks.
        let (before, share) = ([9_000, 50], 3.0 / 8.0);
        let later = |n: i64| net(&before, &[9_170, 50], Some((&[n, 50], share)));
        assert_eq!(later(9_480), [170, 0]);
        assert_eq!(later(14_480), [170, 0], "the last walk met one");
        assert_eq!(net(&before, &[14_170, 50], Some((&[9_480, 50], share))), [180, 0]);
        assert_eq!(net(&before, &[9_170, 40], None), [170, -10]);
    }
}
