//! Garbage collections of one process, and what they prove.

/// Times remembered, of the first and of the latest.
const TIMES: usize = 4;
/// A sweep that is not over by the next collection is taken to be after this;
/// Go sweeps in the background, in idle time or as the program allocates, ns.
const SWEEP_NS: u64 = 2_000_000_000;

#[derive(Clone, Debug, Default)]
pub(super) struct Cycles {
    ended: u32,
    /// When the first and the latest ended, oldest first.
    first: Vec<u64>,
    latest: Vec<u64>,
}

impl Cycles {
    pub fn end(&mut self, t_ns: u64) {
        self.ended = self.ended.saturating_add(1);
        if self.first.len() < TIMES {
            self.first.push(t_ns);
        }
        if self.latest.len() == TIMES {
            self.latest.remove(0);
        }
        self.latest.push(t_ns);
    }

    pub fn ended(&self) -> u32 {
        self.ended
    }

    /// Those whose garbage has been swept: all but the newest, soon that too.
    pub fn swept(&self, now_ns: u64) -> u32 {
        let sweeping = self.latest.last().is_some_and(|t| now_ns < t.saturating_add(SWEEP_NS));
        self.ended - u32::from(sweeping)
    }

    /// When the `n`th ended, from 1. `None` unless it is one of the first or the
    /// latest.
    pub fn end_of(&self, n: u32) -> Option<u64> {
        let n = n.checked_sub(1)? as usize;
        let skipped = (self.ended as usize).checked_sub(self.latest.len())?;
        self.first.get(n).or_else(|| self.latest.get(n.checked_sub(skipped)?)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_first_and_the_latest() {
        let mut c = Cycles::default();
        assert_eq!((c.swept(0), c.end_of(0), c.end_of(1)), (0, None, None));
        for n in 1..=100 {
            c.end(n * 10);
        }
        let ends = [1, 4, 5, 96, 97, 100, 101].map(|n| c.end_of(n));
        assert_eq!(ends, [Some(10), Some(40), None, None, Some(970), Some(1000), None]);
        assert_eq!(c.swept(1000), 99);
        assert_eq!(c.swept(1000 + SWEEP_NS), 100);
    }
}
