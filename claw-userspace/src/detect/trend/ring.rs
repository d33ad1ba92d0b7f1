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
    /// Room for some or all of them, and how many there are.
    bins: Box<[Bin]>,
    count: u8,
    /// Index of the oldest once the ring is full.
    head: u8,
    is_open: bool,
    /// The bin that still takes values.
    open: Bin,
}

impl Ring {
    /// Add a value; true when that closed a bin. `lowest`: of the values in a
    /// bin the lowest counts, else the latest. `step_s`: when the next value is
    /// due, s, or 0; a bin is closed by its last value rather than by the first
    /// of the next, which may be minutes away.
    pub fn put(
        &mut self,
        (width, keep): (u32, usize),
        value: Bin,
        lowest: bool,
        step_s: u32,
    ) -> bool {
        let index = value.at_s / width;
        let counts = |old: &Bin| value.low < old.low || !lowest;
        // It came sooner than was thought, into a bin that is closed.
        if !self.is_open
            && let Some(newest) = self.newest_mut(keep)
            && newest.at_s / width == index
        {
            if counts(newest) {
                *newest = value;
            }
            return false;
        }
        let mut closed = false;
        if self.is_open && self.open.at_s / width == index {
            if counts(&self.open) {
                self.open = value;
            }
        } else {
            let before = std::mem::replace(&mut self.open, value);
            if std::mem::replace(&mut self.is_open, true) {
                self.push(before, keep);
                closed = true;
            }
        }
        if step_s > 0 && value.at_s.saturating_add(step_s) / width != index {
            self.push(self.open, keep);
            self.is_open = false;
            closed = true;
        }
        closed
    }

    fn newest_mut(&mut self, keep: usize) -> Option<&mut Bin> {
        let n = self.count();
        let last = if n < keep { n } else { usize::from(self.head) + keep };
        self.bins.get_mut(last.checked_sub(1)? % keep)
    }

    fn push(&mut self, bin: Bin, keep: usize) {
        let n = self.count();
        if n < keep {
            if n == self.bins.len() {
                let mut more = Vec::with_capacity((2 * n).clamp(4, keep));
                more.extend_from_slice(&self.bins);
                more.resize(more.capacity(), Bin::default());
                self.bins = more.into_boxed_slice();
            }
            self.bins[n] = bin;
            self.count += 1;
        } else {
            self.bins[usize::from(self.head)] = bin;
            self.head = u8::try_from((usize::from(self.head) + 1) % keep).unwrap_or(0);
        }
    }

    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// The newest `n` bins, oldest first.
    pub fn newest(&self, n: usize, into: &mut [Bin; MOST]) -> usize {
        let bins = &self.bins[..self.count()];
        let n = n.min(bins.len()).min(MOST);
        let (late, early) = bins.split_at(usize::from(self.head));
        let of_late = n.min(late.len());
        let of_early = n - of_late;
        into[..of_early].copy_from_slice(&early[early.len() - of_early..]);
        into[of_early..n].copy_from_slice(&late[late.len() - of_late..]);
        n
    }

    pub fn clear(&mut self) {
        self.count = 0;
        self.head = 0;
        self.is_open = false;
    }

    pub fn heap_bytes(&self) -> usize {
        self.bins.len() * size_of::<Bin>()
    }
}

/// Rather than a burst, which rises and then stays: the last third adds its
/// share of the growth.
pub fn grew_to_the_end(bins: &[Bin]) -> bool {
    let third = bins.len() / 3;
    let mean = |b: &[Bin]| b.iter().map(|b| b.low).sum::<f32>() / b.len() as f32;
    let late = mean(&bins[bins.len() - third..]);
    let rise = late - mean(&bins[..third]);
    rise > 0.0 && late - mean(&bins[third..bins.len() - third]) > 0.3 * rise
}

/// From the mean of the first third to that of the last, stretched to the whole
/// window.
pub fn quick_growth(bins: &[Bin]) -> f64 {
    let third = (bins.len() / 3).max(1);
    let mean = |b: &[Bin]| b.iter().map(|b| f64::from(b.low)).sum::<f64>() / b.len() as f64;
    (mean(&bins[bins.len() - third..]) - mean(&bins[..third])) * 1.5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_lowest_of_each_bin_and_the_newest_bins() {
        let mut ring = Ring::default();
        for i in 0..100u32 {
            let low = if i % 10 == 3 { 1.0 } else { 2.0 } + (i / 10) as f32;
            ring.put((10, 4), Bin { at_s: i, low, load: 0.0 }, true, 0);
        }
        let mut bins = [Bin::default(); MOST];
        let n = ring.newest(9, &mut bins);
        let lows: Vec<f32> = bins[..n].iter().map(|b| b.low).collect();
        assert_eq!(lows, [6.0, 7.0, 8.0, 9.0], "the open one is not yet known");
        assert_eq!(ring.newest(2, &mut bins), 2);
        assert_eq!((bins[0].low, bins[1].at_s), (8.0, 83));
    }

    #[test]
    fn a_bin_is_closed_by_its_last_value_and_takes_what_comes_sooner() {
        let mut ring = Ring::default();
        let mut put = |at_s, low, step| ring.put((10, 4), Bin { at_s, low, load: 0.0 }, true, step);
        assert!(!put(0, 3.0, 0) && !put(4, 2.0, 4));
        assert!(put(8, 5.0, 4), "the next is due at 12");
        assert!(!put(9, 1.0, 1), "closed before");
        for i in 1..9u32 {
            assert!(put(i * 10 + 5, 7.0 + i as f32, 10));
        }
        assert!(!put(86, 0.5, 1));
        let mut bins = [Bin::default(); MOST];
        let n = ring.newest(9, &mut bins);
        let lows: Vec<f32> = bins[..n].iter().map(|b| b.low).collect();
        assert_eq!(lows, [12.0, 13.0, 14.0, 0.5]);
    }
}
