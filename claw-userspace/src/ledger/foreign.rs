//! Deaths, at one site, of what was born before watching began.

use std::ops::RangeInclusive;

/// Collections told apart; what dies later is added to the last.
const MOST: usize = 64;
const TOGETHER_NS: u64 = 1_000_000_000;

/// What died between two collections, or within a second where none are known.
#[derive(Clone, Copy, Debug)]
struct Deaths {
    from_ns: u64,
    /// When, and in which collection, the latest of them died.
    t_ns: u64,
    gc: u32,
    died: Died,
}

/// Amount, and the sum of its squares: the variance as a compound Poisson count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Died {
    pub bytes: f64,
    pub squares: f64,
}

impl Died {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.squares += other.squares;
    }
}

/// Oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Foreign(Vec<Deaths>);

impl Foreign {
    pub fn death(&mut self, t_ns: u64, gc: u32, bytes: f64) {
        let died = Died { bytes, squares: bytes * bytes };
        let full = self.0.len() >= MOST;
        match self.0.last_mut() {
            Some(last) if full || last.gc == gc && t_ns < last.from_ns + TOGETHER_NS => {
                last.t_ns = last.t_ns.max(t_ns);
                last.gc = last.gc.max(gc);
                last.died.add(died);
            }
            _ => self.0.push(Deaths { from_ns: t_ns, t_ns, gc, died }),
        }
    }

    pub fn all(&self) -> Died {
        self.since(0, 0..=u32::MAX)
    }

    /// Those from this time on, in these collections.
    pub fn since(&self, t_ns: u64, gc: RangeInclusive<u32>) -> Died {
        let mut sum = Died::default();
        for d in self.0.iter().filter(|d| d.t_ns >= t_ns && gc.contains(&d.gc)) {
            sum.add(d.died);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn those_since_a_time_and_a_collection() {
        let mut f = Foreign::default();
        f.death(SECOND, 1, 10.0);
        f.death(SECOND + 1, 1, 10.0);
        f.death(9 * SECOND, 2, 1.0);
        f.death(20 * SECOND, 3, 2.0);
        assert_eq!(f.all(), Died { bytes: 23.0, squares: 205.0 });
        assert_eq!(f.since(0, 2..=9), Died { bytes: 3.0, squares: 5.0 });
        assert_eq!(f.since(0, 0..=1).bytes, 20.0);
        assert_eq!(f.since(10 * SECOND, 2..=9), Died { bytes: 2.0, squares: 4.0 });
    }

    #[test]
    fn what_is_kept_is_bounded_and_nothing_is_lost() {
        let mut f = Foreign::default();
        for i in 0..10_000 {
            f.death(u64::from(i) * SECOND, i, 1.0);
        }
        assert_eq!(f.0.len(), MOST);
        assert_eq!(f.all().bytes, 10_000.0);
        assert_eq!(f.since(60 * SECOND, 60..=u32::MAX).bytes, 9_940.0);
    }
}
