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

#[derive(Debug)]
pub struct Governor {
    counts: [Count; 2],
    decided_ns: u64,
}

#[derive(Debug)]
struct Count {
    part: Part,
    events: u64,
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
}

impl Governor {
    pub fn new(now_ns: u64) -> Self {
        let count = |part| Count { part, events: 0, over: 0 };
        Self { counts: [count(Part::Heap), count(Part::Goroutines)], decided_ns: now_ns }
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
        let elapsed = now_ns.saturating_sub(self.decided_ns);
        if elapsed < APART_NS {
            return None;
        }
        self.decided_ns = now_ns;
        let mut found = None;
        for c in &mut self.counts {
            let events = std::mem::take(&mut c.events) as f64;
            let (each, allowed) = match c.part {
                Part::Heap => (cost.heap, budget),
                Part::Goroutines => (cost.goroutines * INDIRECT, budget * GOROUTINES_SHARE),
            };
            let share = events * each / (elapsed as f64 * cpus);
            c.over = if share > allowed { c.over + 1 } else { 0 };
            if c.over >= IN_A_ROW && found.is_none() {
                c.over = 0;
                let per_second = events * 1e9 / elapsed as f64;
                found = Some(TooMuch { part: c.part, per_second, share, allowed });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: EventCost = EventCost { heap: 1000.0, goroutines: 1000.0 };

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
    fn heap_may_take_the_whole_budget() {
        let mut g = Governor::new(0);
        for i in 1..10 {
            (0..19_000).for_each(|_| g.count(Part::Heap));
            assert_eq!(g.decide(i * 1_000_000_000, 0.01, 2.0, COST), None);
        }
    }
}
