//! When exact mode's windows open and close: pure, time and cost come in, a
//! decision comes out.
//!
//! A budget in ns of lost work fills at `--max-overhead` per unit of time. A
//! window opens when what the shortest one costs has been saved, and closes
//! when keeping it open would leave nothing for closing it. A target that
//! allocates little never uses it up: its window stays open. One that
//! allocates all the time stands nearly still while a window is open, so it
//! gets windows of a few ms. Whatever a window cost in the end is paid before
//! the next one opens, so the average holds even where closing is slow.

/// Most that may be saved, ns: a target never stands still for much longer.
const MOST_SAVED_NS: f64 = 25e6;
/// Cost of the shortest window before one was measured, ns.
const FIRST_GUESS_NS: f64 = 10e6;
/// Weight of the newest window in what is learned.
const NEWEST: f64 = 0.3;
/// A window opens at up to this much more than it needs, at random: a rhythm
/// of the target's own is not mistaken for its mean.
const JITTER: f64 = 0.5;

/// Share of the budget that is left to windows however much the other probes on
/// the target cost: without any there would be nothing to report.
const LEAST_SHARE: f64 = 0.25;

#[derive(Debug)]
pub struct Duty {
    budget: f64,
    /// What the other probes cost and was not set off yet, ns; and what came in
    /// and was set off in all.
    owed_ns: f64,
    income_ns: f64,
    set_off_ns: f64,
    saved_ns: f64,
    now_ns: u64,
    /// Learned: cost of the shortest window, and the part of it that falls
    /// after the decision to close.
    shortest_ns: f64,
    tail_ns: f64,
    random: u64,
    needed: f64,
}

impl Duty {
    /// `budget` is a share of the target's time, `seed` any number.
    pub fn new(budget: f64, now_ns: u64, seed: u64) -> Self {
        Self {
            budget,
            owed_ns: 0.0,
            income_ns: 0.0,
            set_off_ns: 0.0,
            saved_ns: 0.0,
            now_ns,
            shortest_ns: FIRST_GUESS_NS,
            tail_ns: FIRST_GUESS_NS / 2.0,
            random: seed | 1,
            needed: 1.0,
        }
    }

    /// One that saves up for windows that cost `shortest_ns`, however much that
    /// is, until it has learned what they do cost.
    pub fn saving(budget: f64, now_ns: u64, seed: u64, shortest_ns: f64) -> Self {
        Self { shortest_ns, tail_ns: shortest_ns / 10.0, ..Self::new(budget, now_ns, seed) }
    }

    /// What closing a window is going to cost, where that is known.
    pub fn expect_tail(&mut self, ns: f64) {
        self.tail_ns = ns;
    }

    /// Time goes on. `beside_ns` of the target's work were lost to other probes
    /// since the last call: the budget is for all together.
    pub fn advance(&mut self, now_ns: u64, beside_ns: f64) {
        let elapsed = now_ns.saturating_sub(self.now_ns) as f64;
        self.now_ns = self.now_ns.max(now_ns);
        let most = MOST_SAVED_NS.max(self.shortest_ns * (1.0 + JITTER));
        let income = elapsed * self.budget;
        let set_off = (self.owed_ns + beside_ns).min(income * (1.0 - LEAST_SHARE));
        // What cannot be set off soon never will be.
        self.owed_ns = (self.owed_ns + beside_ns - set_off).min(most);
        self.income_ns += income;
        self.set_off_ns += set_off;
        self.saved_ns = (self.saved_ns + income - set_off).min(most);
    }

    /// Share of the target's time that is left to windows, on average.
    fn share(&self) -> f64 {
        let left = 1.0 - self.set_off_ns / self.income_ns.max(1.0);
        self.budget * left.max(LEAST_SHARE)
    }

    /// ns until a window may open; 0 when it may now.
    pub fn wait_ns(&self) -> u64 {
        let missing = self.shortest_ns * self.needed - self.saved_ns;
        (missing.max(0.0) / self.share()).ceil() as u64
    }

    pub fn spend(&mut self, ns: f64) {
        self.saved_ns -= ns;
    }

    /// Never with a budget of everything: then no window costs too much.
    pub fn must_close(&self) -> bool {
        self.budget < 1.0 && self.saved_ns < self.tail_ns
    }

    /// A window that cost `total_ns` is closed; `tail_ns` of that fell after
    /// the decision. `shortest`: it closed as soon as it could.
    pub fn closed(&mut self, total_ns: f64, tail_ns: f64, shortest: bool) {
        let learn = |old: &mut f64, new: f64| *old += NEWEST * (new - *old);
        if shortest || total_ns < self.shortest_ns {
            learn(&mut self.shortest_ns, total_ns);
        }
        learn(&mut self.tail_ns, tail_ns);
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.needed = 1.0 + JITTER * (self.random % 1000) as f64 / 1000.0;
    }

    /// ns from one window to the next that the budget allows at most.
    pub fn period_ns(&self) -> f64 {
        self.shortest_ns * (1.0 + JITTER / 2.0) / self.share()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Runs a target for `seconds`: `lost` of each ms is lost while open, and
    /// closing takes `tail_ms`. Gives the lost share, windows and time open.
    fn run(budget: f64, lost: f64, tail_ms: u64, seconds: u64) -> (f64, u32, u64) {
        let mut d = Duty::new(budget, 0, 7);
        let (mut t, mut total, mut windows, mut open_ms) = (0, 0.0, 0, 0);
        while t < seconds * 1000 {
            d.advance(t * MS, 0.0);
            if d.wait_ns() > 0 {
                t += 1;
                continue;
            }
            windows += 1;
            let (mut cost, mut steps) = (0.0, 0);
            loop {
                t += 1;
                steps += 1;
                open_ms += 1;
                d.advance(t * MS, 0.0);
                d.spend(lost * MS as f64);
                cost += lost * MS as f64;
                if d.must_close() || t >= seconds * 1000 {
                    break;
                }
            }
            let tail = lost * (tail_ms * MS) as f64;
            t += tail_ms;
            d.advance(t * MS, 0.0);
            d.spend(tail);
            d.closed(cost + tail, tail, steps == 1);
            total += cost + tail;
        }
        (total / (t * MS) as f64, windows, open_ms)
    }

    #[test]
    fn the_average_stays_within_the_budget() {
        for budget in [0.001, 0.01, 0.05] {
            for tail_ms in [1, 4, 100] {
                let (share, windows, _) = run(budget, 0.95, tail_ms, 400);
                let what = format!("{budget} {tail_ms}: {share}, {windows} windows");
                assert!(share <= budget * 1.05, "{what}");
                assert!(share >= budget * 0.7, "{what}");
                assert!(windows >= 2, "{what}");
            }
        }
    }

    #[test]
    fn a_cheap_target_is_seen_whole() {
        let (share, windows, open_ms) = run(0.01, 0.002, 4, 100);
        assert_eq!(windows, 1, "it never has to close");
        assert!(open_ms > 98_000 && share < 0.0021, "{share}");
    }

    #[test]
    fn what_other_probes_cost_is_taken_off() {
        let saved = |beside_ns: f64| {
            let mut d = Duty::new(0.05, 0, 1);
            (1..=10).for_each(|t| d.advance(t * MS, beside_ns));
            d.saved_ns
        };
        assert!((saved(0.0) - 5e5).abs() < 1.0);
        assert!((saved(1e4) - 4e5).abs() < 1.0, "a fifth of the budget");
        assert!((saved(1e9) - 1.25e5).abs() < 1.0, "a quarter is always left");
        let mut d = Duty::new(0.05, 0, 1);
        let alone = d.period_ns();
        (1..=10).for_each(|t| d.advance(t * MS, 2.5e4));
        assert!((d.period_ns() / alone - 2.0).abs() < 1e-6);
    }

    #[test]
    fn the_period_widens_with_what_a_window_costs() {
        let mut d = Duty::new(0.01, 0, 1);
        let before = d.period_ns();
        for _ in 0..20 {
            d.closed(1e9, 9e8, true);
        }
        assert!(d.period_ns() > before * 20.0);
        assert!(d.wait_ns() > 90_000_000_000, "a second lost takes 100 s at 1 %");
    }
}
