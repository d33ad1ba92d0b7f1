//! Keeps what probes cost a target within its budget: counts their events and
//! says which part has to go.

use crate::stream::Part;

/// What an event costs beside the trap and the program: caches that were
/// pushed out, and the agent's own work on it. Measured on an HTTP service
/// with 40,000 goroutine events a second, as lost throughput over the direct
/// cost.
const INDIRECT: f64 = 3.5;
/// Share of the budget that goroutine probes may take. They have a substitute
/// that costs the target nothing, heap probes have none.
const GOROUTINES_SHARE: f64 = 0.5;
/// Time between two decisions, ns.
const APART_NS: u64 = 500_000_000;
/// Decisions in a row that it takes: a peak is no rate.
const IN_A_ROW: u8 = 2;
/// … but this many times what is allowed is stopped as soon as it has lasted this
/// long, ns: by the next decision the target would have stood nearly still.
const AT_ONCE: f64 = 20.0;
const AT_ONCE_NS: u64 = 80_000_000;

#[derive(Debug)]
pub struct Governor {
    counts: [Count; 2],
    decided_ns: u64,
    /// CPU time that was taken so far, ns.
    taken_ns: f64,
}

#[derive(Debug)]
struct Count {
    part: Part,
    events: u64,
    /// Their price since the last decision, ns of CPU time.
    taken_ns: f64,
    /// Events since then, those included that were lost.
    happened: f64,
    over: u8,
}

/// A part whose probes cost too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TooMuch {
    pub part: Part,
    pub per_second: f64,
    /// Share of the machine's CPU time.
    pub share: f64,
    pub allowed: f64,
}

/// ns that one event costs directly, by part: the trap and the program.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventCost {
    pub heap: f64,
    pub goroutines: f64,
    /// Events that happened for each that arrived, all targets together: what
    /// found no room in the ring has cost as much.
    pub happened: f64,
}

/// What found no room in the ring, beside what did.
#[derive(Debug, Default)]
pub struct Flow {
    sent: u64,
    no_room: u64,
}

impl Flow {
    /// Events that happened since the last call for each that was sent, from the
    /// totals so far.
    pub fn happened(&mut self, sent: u64, no_room: u64) -> f64 {
        let new = Self { sent, no_room };
        let old = std::mem::replace(self, new);
        let sent = sent.saturating_sub(old.sent).max(1) as f64;
        1.0 + no_room.saturating_sub(old.no_room) as f64 / sent
    }
}

impl Governor {
    pub fn new(now_ns: u64) -> Self {
        let count = |part| Count { part, events: 0, taken_ns: 0.0, happened: 0.0, over: 0 };
        Self {
            counts: [count(Part::Heap), count(Part::Goroutines)],
            decided_ns: now_ns,
            taken_ns: 0.0,
        }
    }

    pub fn count(&mut self, part: Part) {
        if let Some(c) = self.counts.iter_mut().find(|c| c.part == part) {
            c.events += 1;
        }
    }

    /// `budget` is the share of the time of `cpus` processors that probes may
    /// take.
    pub fn decide(
        &mut self,
        now_ns: u64,
        budget: f64,
        cpus: f64,
        cost: EventCost,
    ) -> Option<TooMuch> {
        for c in &mut self.counts {
            let each = match c.part {
                Part::Heap => cost.heap,
                Part::Goroutines => cost.goroutines * INDIRECT,
            };
            let happened = std::mem::take(&mut c.events) as f64 * cost.happened.max(1.0);
            c.happened += happened;
            c.taken_ns += happened * each;
            self.taken_ns += happened * each;
        }
        let elapsed = now_ns.saturating_sub(self.decided_ns);
        let allowed = |part| match part {
            Part::Heap => budget,
            Part::Goroutines => budget * GOROUTINES_SHARE,
        };
        let share = |c: &Count| c.taken_ns / (elapsed as f64 * cpus);
        let far_too_much = |c: &Count| share(c) > allowed(c.part) * AT_ONCE;
        let at_once = elapsed >= AT_ONCE_NS && self.counts.iter().any(far_too_much);
        if elapsed < APART_NS && !at_once {
            return None;
        }
        self.decided_ns = now_ns;
        let mut found = None;
        for c in &mut self.counts {
            let (part, share, allowed) = (c.part, share(c), allowed(c.part));
            let over = if share > allowed * AT_ONCE { IN_A_ROW } else { c.over + 1 };
            c.over = if share > allowed { over } else { 0 };
            if c.over >= IN_A_ROW && found.is_none() {
                c.over = 0;
                let per_second = c.happened * 1e9 / elapsed as f64;
                found = Some(TooMuch { part, per_second, share, allowed });
            }
            (c.taken_ns, c.happened) = (0.0, 0.0);
        }
        found
    }

    /// CPU time that the events have cost the target so far, ns.
    pub fn taken_ns(&self) -> u64 {
        self.taken_ns as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: EventCost = EventCost { heap: 1000.0, goroutines: 1000.0, happened: 1.0 };

    fn second(g: &mut Governor, i: u64, events: u32) -> Option<TooMuch> {
        (0..events).for_each(|_| g.count(Part::Goroutines));
        g.decide(i * 1_000_000_000, 0.01, 2.0, COST)
    }

    #[test]
    fn only_a_rate_that_lasts_is_too_much() {
        let mut g = Governor::new(0);
        // 1 % of two CPUs, half of it: 10 ms a second, at 3.5 µs each.
        assert_eq!(second(&mut g, 1, 3000), None);
        assert_eq!(second(&mut g, 2, 2800), None, "the peak is over");
        assert_eq!(second(&mut g, 3, 3000), None);
        let too_much = second(&mut g, 4, 3000).unwrap();
        assert_eq!(too_much.part, Part::Goroutines);
        assert!((too_much.per_second - 3000.0).abs() < 1.0);
        assert!((too_much.share - 0.00525).abs() < 1e-6);
    }

    #[test]
    fn far_too_much_is_stopped_at_once() {
        let mut g = Governor::new(0);
        let events = |g: &mut Governor, n: u32| (0..n).for_each(|_| g.count(Part::Heap));
        events(&mut g, 10_000);
        assert_eq!(g.decide(50_000_000, 0.01, 2.0, COST), None, "it may be a peak");
        // 0.1 s of 2 CPUs, of which events that arrived took a twentieth; but for
        // each there were ten that did not.
        let cost = EventCost { happened: 11.0, ..COST };
        assert_eq!(g.decide(60_000_000, 0.01, 2.0, cost), None);
        events(&mut g, 4_000);
        let too_much = g.decide(100_000_000, 0.01, 2.0, cost).unwrap();
        assert_eq!(too_much.part, Part::Heap);
        assert!((too_much.share - 0.27).abs() < 1e-6, "{too_much:?}");
        assert_eq!(g.taken_ns(), 54_000_000);
        assert!((too_much.per_second - 540_000.0).abs() < 1.0, "{too_much:?}");
    }

    #[test]
    fn heap_may_take_the_whole_budget() {
        let mut g = Governor::new(0);
        for i in 1..10 {
            (0..19_000).for_each(|_| g.count(Part::Heap));
            assert_eq!(g.decide(i * 1_000_000_000, 0.01, 2.0, COST), None);
        }
    }
}
