//! What the hits of a window's probes cost the target.

use claw_common::WindowCost;

use super::duty::Duty;

/// What a hit costs over the trap and the program: the caches that both push
/// out. Measured on an allocation loop and an HTTP service on a busy machine,
/// as work lost over the direct cost: 3.3 and 4.3. Where the target has its CPU
/// to itself, the time that a window is open bounds it.
const INDIRECT: f64 = 3.5;

/// What was hit since the last payment.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    hits: u64,
    /// From the last hit before to the last, ns.
    on_ns: u64,
    /// Of the program, a hit, ns.
    pub program_ns: f64,
}

impl Since {
    /// `None` when nothing was hit.
    pub fn of(new: WindowCost, old: WindowCost) -> Option<Self> {
        let hits = new.hits.checked_sub(old.hits).filter(|h| *h > 0)?;
        let from = if old.last_ns == 0 { new.first_ns } else { old.last_ns };
        let on_ns = new.last_ns.saturating_sub(from);
        Some(Self { hits, on_ns, program_ns: new.ns.saturating_sub(old.ns) as f64 / hits as f64 })
    }

    /// ns of its work that the hits have cost a target that has `cpus`, when each
    /// takes `direct_ns`. It cannot lose more than all of it.
    pub fn lost_ns(&self, direct_ns: f64, cpus: f64) -> f64 {
        let all = self.hits as f64 * direct_ns * INDIRECT / cpus.max(0.01);
        all.min(self.on_ns as f64)
    }
}

/// What one window has cost so far.
#[derive(Debug)]
pub struct Account {
    trap_ns: f64,
    /// Of the program, a hit, at its best, ns: on a busy machine others run
    /// meanwhile.
    program_ns: f64,
    paid: WindowCost,
    /// ns of the target's work.
    pub lost_ns: f64,
}

impl Account {
    /// Of a window whose probes cost `trap_ns` a hit beside their programs.
    pub fn new(trap_ns: f64) -> Self {
        Self { trap_ns, program_ns: f64::MAX, paid: WindowCost::default(), lost_ns: 0.0 }
    }

    /// Pay for what was hit since the last time; gives its price, ns of lost
    /// work.
    pub fn pay(&mut self, cost: WindowCost, duty: &mut Duty, cpus: f64) -> f64 {
        let old = std::mem::replace(&mut self.paid, cost);
        let Some(since) = Since::of(cost, old) else { return 0.0 };
        self.program_ns = self.program_ns.min(since.program_ns);
        let lost = since.lost_ns(self.trap_ns + self.program_ns, cpus);
        duty.spend(lost);
        self.lost_ns += lost;
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_beyond_the_time_itself() {
        let lost = |hits, cpus| {
            let since = Since { hits, on_ns: 1_000_000, program_ns: 0.0 };
            since.lost_ns(1500.0 / INDIRECT, cpus)
        };
        assert!((lost(1000, 1.0) - 1e6).abs() < 1.0);
        assert!((lost(100, 1.0) - 1.5e5).abs() < 1.0);
        assert!((lost(1000, 4.0) - 3.75e5).abs() < 1.0);
    }

    #[test]
    fn each_hit_is_paid_once() {
        let mut duty = Duty::new(0.01, 0, 1);
        let mut account = Account::new(1000.0);
        let cost = |hits, ns, last_ns| WindowCost { hits, ns, first_ns: 1_000_000, last_ns };
        assert!(account.pay(WindowCost::default(), &mut duty, 1.0).abs() < 1e-9);
        let first = account.pay(cost(100, 100_000, 9_000_000), &mut duty, 1.0);
        assert!((first - 100.0 * 2000.0 * INDIRECT).abs() < 1e-6);
        assert!(account.pay(cost(100, 100_000, 9_000_000), &mut duty, 1.0).abs() < 1e-9);
        // A program that others interrupted costs what it cost at its best.
        let second = account.pay(cost(110, 900_000, 9_500_000), &mut duty, 1.0);
        assert!((second - 10.0 * 2000.0 * INDIRECT).abs() < 1e-6);
        assert!((account.lost_ns - first - second).abs() < 1e-6);
    }
}
