//! How large a process was at each age in its earlier lives: growth that it did
//! not show then is no warm-up.

/// One life of a process; NaN stands for what is not known.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// When it was first seen, s since the series began, and its uptime then.
    pub began_s: u32,
    pub uptime: f32,
    /// In its first minutes, bytes, and since when, s.
    pub level: f32,
    pub level_s: u32,
}

impl Life {
    /// First seen at `began_s`.
    pub fn new(began_s: u32, uptime: f64) -> Self {
        Self { began_s, uptime: uptime as f32, level: f32::NAN, level_s: 0 }
    }

    /// Age of the process at `at_s` as far as is known, s.
    pub fn age(&self, at_s: u32) -> f64 {
        f64::from(self.uptime.max(0.0)) + f64::from(at_s.saturating_sub(self.began_s))
    }
}

/// Cells of age: two to each doubling, from ten minutes to eleven hours, by when
/// a warm-up is over.
const CELLS: usize = 12;
const FIRST_S: f64 = 600.0;

/// Lowest level at each age among the lives that ended, bytes; infinite where
/// none is known.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    low: [f32; CELLS],
}

impl Default for Lives {
    fn default() -> Self {
        Self { low: [f32::INFINITY; CELLS] }
    }
}

/// Cell of an age, s.
fn cell(age: f64) -> Option<usize> {
    let at = (age / FIRST_S).log2() * 2.0;
    (at >= 0.0 && at < CELLS as f64).then_some(at as usize)
}

impl Lives {
    /// A life is over: its age, s, and envelope then, bytes.
    pub fn ended(&mut self, bins: impl Iterator<Item = (f64, f32)>) {
        for (age, low) in bins {
            if let Some(cell) = cell(age).and_then(|c| self.low.get_mut(c)) {
                *cell = cell.min(low);
            }
        }
    }

    /// Growth between two ages, s, of earlier lives, bytes; `None` where none
    /// reached the later one.
    pub fn grew(&self, from: f64, to: f64) -> Option<f64> {
        let at = |age: f64| {
            let low = *self.low.get(cell(age)?)?;
            low.is_finite().then_some(f64::from(low))
        };
        Some(at(to)? - at(from.max(FIRST_S))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_of_the_least_life_at_the_same_age() {
        let mut lives = Lives::default();
        assert_eq!(lives.grew(600.0, 7200.0), None);
        lives.ended((0..20).map(|i| (f64::from(i) * 600.0, 100.0 + i as f32 * 10.0)));
        let grew = lives.grew(0.0, 9000.0).unwrap();
        assert!((60.0..160.0).contains(&grew), "{grew}");
        lives.ended((0..20).map(|i| (f64::from(i) * 600.0, 105.0)));
        assert_eq!(lives.grew(0.0, 9000.0), Some(0.0));
        assert_eq!(lives.grew(0.0, 40_000.0), None, "no life was so long");
    }
}
