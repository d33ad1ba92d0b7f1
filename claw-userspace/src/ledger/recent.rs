//! When the latest windows were open on a process.

use std::collections::VecDeque;

/// Windows that are kept.
const MOST: usize = 64;

/// One of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Opened {
    pub from_ns: u64,
    pub to_ns: u64,
    /// Work of the target that it cost, ns of its time.
    pub lost_ns: f64,
}

/// The latest, oldest first.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<Opened>);

impl Recent {
    /// A window, or, unless it `begins` with this, another part of the latest.
    pub fn add(&mut self, w: Opened, begins: bool) {
        match self.0.back_mut().filter(|_| !begins) {
            Some(latest) => {
                latest.to_ns = w.to_ns;
                latest.lost_ns += w.lost_ns;
            }
            None => {
                if self.0.len() == MOST {
                    self.0.pop_front();
                }
                self.0.push_back(w);
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Opened> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::{MOST, Opened, Recent};

    #[test]
    fn the_latest_are_kept_each_as_a_whole() {
        let part = |from_ns| Opened { from_ns, to_ns: from_ns + 10, lost_ns: 2.0 };
        let mut recent = Recent::default();
        // The second part of each goes on where the first ended.
        for t in (0..200).step_by(2) {
            recent.add(part(t * 10), true);
            recent.add(part((t + 1) * 10), false);
        }
        let all: Vec<&Opened> = recent.iter().collect();
        assert_eq!(all.len(), MOST);
        assert_eq!(all[0].from_ns, 720);
        assert_eq!(all[MOST - 1], &Opened { from_ns: 1980, to_ns: 2000, lost_ns: 4.0 });
    }
}
