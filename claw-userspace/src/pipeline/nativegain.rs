//! What stayed of what was allocated outside the pools in a window, by who asked
//! for it.

use std::collections::BTreeMap;

use claw_common::{NativeEntry, NativeStack};
use rustc_hash::FxHashMap;

use super::{
    pygain::{cost, missed},
    pystacks::tenant,
};
use crate::stream::{NativeWindow, NativeWriter};

/// Writers that a window carries: a leak has few.
const MOST_WRITERS: usize = 64;

/// What a window left in the maps.
pub struct Left {
    pub entries: Vec<NativeEntry>,
    pub stacks: FxHashMap<u64, NativeStack>,
    /// How many were freed that had been there before, by size class.
    pub freed: FxHashMap<u64, u64>,
    /// What came later than this is not of the first half, `CLOCK_MONOTONIC` ns.
    pub half_ns: u64,
}

/// What stayed of one stack and tenant. `stack` is its hash.
#[derive(Clone, Debug, PartialEq)]
pub struct Gain {
    pub stack: u64,
    /// Return address into the function that asked for it.
    pub caller: u64,
    pub writer: NativeWriter,
}

/// The largest first, and the bytes that all kept.
///
/// A cache that is full takes as much in as it gives away, and what it takes in
/// stays for longer than a window. What it gives away was there before and has
/// the same size: of each size class only the share counts that came beyond the
/// number that went.
pub fn gains(left: &Left) -> (Vec<Gain>, f64) {
    let mut came: FxHashMap<u64, u64> = FxHashMap::default();
    for e in &left.entries {
        *came.entry(e.class).or_default() += 1;
    }
    let kept = |class: u64| {
        let came = came.get(&class).copied().unwrap_or(0) as f64;
        let went = left.freed.get(&class).copied().unwrap_or(0) as f64;
        if came > 0.0 { (1.0 - went / came).max(0.0) } else { 0.0 }
    };
    let mut by: BTreeMap<(u64, Option<String>), NativeWriter> = BTreeMap::new();
    for e in &left.entries {
        let w = by.entry((e.stack, tenant(&e.label))).or_default();
        w.stayed += 1;
        w.early += u64::from(e.time_ns < left.half_ns);
        w.stayed_bytes = w.stayed_bytes.saturating_add(e.size);
        w.kept_bytes += e.size as f64 * kept(e.class);
    }
    let all = by.values().map(|w| w.kept_bytes).sum();
    let mut gains: Vec<Gain> = by
        .into_iter()
        .filter_map(|((stack, tenant), writer)| {
            let seen = left.stacks.get(&stack)?;
            let writer = NativeWriter { tenant, allocated: seen.count, ..writer };
            Some(Gain { stack, caller: seen.caller, writer })
        })
        .collect();
    gains.sort_by(|a, b| {
        let bytes = |g: &Gain| (g.writer.kept_bytes, g.writer.stayed_bytes as f64);
        let ((ka, sa), (kb, sb)) = (bytes(a), bytes(b));
        kb.total_cmp(&ka).then(sb.total_cmp(&sa)).then(a.stack.cmp(&b.stack))
    });
    gains.truncate(MOST_WRITERS);
    (gains, all)
}

/// A window, for the log.
pub fn describe(seen: &NativeWindow) -> String {
    let open = seen.to_ns.saturating_sub(seen.from_ns) as f64;
    format!(
        "process {}: {} of {} for {}: {:.0} bytes stayed beyond what was freed of the same sizes, \
         from {} places{}",
        seen.pid,
        seen.functions.join(", "),
        seen.allocator,
        cost(open, seen.hits, seen.lost_work_ns),
        seen.kept_bytes,
        seen.by.iter().filter(|w| w.kept_bytes > 0.0).count(),
        missed(&seen.lost)
    )
}

#[cfg(test)]
mod tests {
    use claw_common::RecordedLabel;

    use super::*;

    fn entry(stack: u64, time_ns: u64, size: u64, tenant: &[u8]) -> NativeEntry {
        let mut label = RecordedLabel::UNSET;
        if !tenant.is_empty() {
            (label.key, label.len) = (0, tenant.len() as u8);
            label.value[..tenant.len()].copy_from_slice(tenant);
        }
        NativeEntry { time_ns, size, class: size.wrapping_add(16), stack, label }
    }

    fn left(entries: Vec<NativeEntry>, freed: &[(u64, u64)]) -> Left {
        let stack = |caller| NativeStack { caller, count: 1000, bytes: 0 };
        Left {
            entries,
            stacks: (1..4).map(|s| (s, stack(s * 0x1000))).collect(),
            freed: freed.iter().copied().collect(),
            half_ns: 50,
        }
    }

    #[test]
    fn what_stays_by_stack_and_tenant() {
        let entries = (0..10)
            .map(|i| entry(1, i * 10, 100, b"acme"))
            .chain((0..4).map(|i| entry(1, i * 10, 100, b"globex")))
            .chain([entry(2, 90, 5000, b"")])
            .collect();
        let (gains, all) = gains(&left(entries, &[]));
        let got: Vec<_> = gains
            .iter()
            .map(|g| (g.caller, g.writer.tenant.as_deref(), g.writer.stayed, g.writer.early))
            .collect();
        let want =
            [(0x2000, None, 1, 0), (0x1000, Some("acme"), 10, 5), (0x1000, Some("globex"), 4, 4)];
        assert_eq!(got, want);
        assert!((all - 6400.0).abs() < 1e-6 && gains[1].writer.allocated == 1000);
    }

    #[test]
    fn a_full_cache_keeps_nothing() {
        // 100 bytes: as many went as came. 300: a leak beside a little of that.
        let cache = (0..20).map(|i| entry(1, i, 100, b""));
        let leak = (0..20).map(|i| entry(2, i, 300, b""));
        let all: Vec<_> = cache.chain(leak).collect();
        let (gains, kept) = gains(&left(all, &[(116, 20), (316, 5), (999, 7)]));
        assert_eq!(gains[0].stack, 2);
        assert!((gains[0].writer.kept_bytes - 4500.0).abs() < 1e-6);
        assert!(gains[1].writer.kept_bytes.abs() < 1e-9 && gains[1].writer.stayed == 20);
        assert!((kept - 4500.0).abs() < 1e-6);
    }

    #[test]
    fn more_freed_than_came_is_nothing_and_unknown_stacks_are_left_out() {
        let (gains, kept) =
            gains(&left(vec![entry(1, 0, u64::MAX, b""), entry(9, 0, 8, b"")], &[(24, 50)]));
        assert_eq!(gains.len(), 1);
        assert!(kept.is_finite());
        assert_eq!(gains[0].writer.stayed_bytes, u64::MAX);
    }
}
