//! The envelope of a series at four resolutions, in bounded memory.
//!
//! A bin holds the lowest value of its time (what is in use right after a
//! collection, or the closest to it that was seen) and the load at that moment.
//! Bins without a value are not kept, so any sampling interval and any gap
//! works.

/// The lowest value within one bin.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Seconds since the series began, of the lowest value.
    pub at_s: u32,
    /// Bytes.
    pub low: f32,
    /// Units of work per second, smoothed; NaN when unknown.
    pub load: f32,
}

/// Width of a bin, s, and how many are kept: 10 min, 1 h, 6 h and 24 h.
pub const RINGS: [(u32, usize); 4] = [(20, 30), (120, 30), (600, 36), (2700, 32)];
/// Most bins in a ring.
pub const MOST: usize = 36;

/// Bins of one width, the newest last.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    bins: Vec<Bin>,
    /// Index of the oldest once the ring is full.
    head: u8,
    is_open: bool,
    /// The bin that still takes values.
    open: Bin,
}

impl Ring {
    /// Add a value; true when that closed a bin. `lowest`: of the values in a
    /// bin the lowest counts, else the latest.
    pub fn put(&mut self, (width, keep): (u32, usize), value: Bin, lowest: bool) -> bool {
        let first = !std::mem::replace(&mut self.is_open, true);
        if !first && self.open.at_s / width == value.at_s / width {
            if value.low < self.open.low || !lowest {
                self.open = value;
            }
            return false;
        }
        let closed = std::mem::replace(&mut self.open, value);
        if !first {
            self.push(closed, keep);
        }
        !first
    }

    fn push(&mut self, bin: Bin, keep: usize) {
        if self.bins.len() < keep {
            if self.bins.len() == self.bins.capacity() {
                let more = self.bins.len().max(4).min(keep - self.bins.len());
                self.bins.reserve_exact(more);
            }
            self.bins.push(bin);
        } else {
            self.bins[usize::from(self.head)] = bin;
            self.head = u8::try_from((usize::from(self.head) + 1) % keep).unwrap_or(0);
        }
    }

    pub fn count(&self) -> usize {
        self.bins.len()
    }

    /// The newest `n` bins, oldest first.
    pub fn newest(&self, n: usize, into: &mut [Bin; MOST]) -> usize {
        let n = n.min(self.bins.len());
        let (late, early) = self.bins.split_at(usize::from(self.head));
        let skip = self.bins.len() - n;
        for (slot, bin) in into.iter_mut().zip(early.iter().chain(late).skip(skip)) {
            *slot = *bin;
        }
        n
    }

    pub fn clear(&mut self) {
        self.bins.clear();
        self.head = 0;
        self.is_open = false;
    }

    pub fn heap_bytes(&self) -> usize {
        self.bins.capacity() * size_of::<Bin>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_lowest_of_each_bin_and_the_newest_bins() {
        let mut ring = Ring::default();
        for i in 0..100u32 {
            let low = if i % 10 == 3 { 1.0 } else { 2.0 } + (i / 10) as f32;
            ring.put((10, 4), Bin { at_s: i, low, load: 0.0 }, true);
        }
        let mut bins = [Bin::default(); MOST];
        let n = ring.newest(9, &mut bins);
        let lows: Vec<f32> = bins[..n].iter().map(|b| b.low).collect();
        assert_eq!(lows, [6.0, 7.0, 8.0, 9.0], "the open one is not yet known");
        assert_eq!(ring.newest(2, &mut bins), 2);
        assert_eq!((bins[0].low, bins[1].at_s), (8.0, 83));
    }
}
