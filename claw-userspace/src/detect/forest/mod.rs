//! Which row of a matrix is odd among its peers: isolation forests behind one
//! trait. A second opinion that never makes a verdict alone.

mod extended;
mod seeded;

pub use extended::Extended;
pub use seeded::Seeded;

/// Features of a tenant's row.
pub const FEATURES: usize = 5;
pub type Row<const N: usize = FEATURES> = [f64; N];

/// Fewest rows that have peers to be odd among.
pub const FEWEST: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForestError {
    #[error("{0} rows are too few to be odd among: {FEWEST} are needed")]
    TooFew(usize),
    #[error("no feature differs between the rows")]
    Alike,
    #[error("the forest could not be built")]
    Build,
}

/// A fitted model.
pub trait Outliers<const N: usize = FEATURES> {
    /// 0 to 1, about 0.5 for what is ordinary; 1 is most odd.
    fn score(&self, row: &Row<N>) -> f64;
}

/// Each feature as a multiple of 1/1024 of its range, 0 to 1: a spread that is
/// tiny against the magnitude makes the random splits of one implementation
/// search forever, and NaN makes it panic.
#[derive(Clone, Debug)]
pub struct Scale<const N: usize = FEATURES> {
    low: Row<N>,
    range: Row<N>,
}

const STEPS: f64 = 1024.0;

impl<const N: usize> Scale<N> {
    pub fn of(rows: &[Row<N>]) -> Self {
        let mut scale = Self { low: [f64::MAX; N], range: [0.0; N] };
        let mut high = [f64::MIN; N];
        for row in rows {
            for k in (0..N).filter(|k| row[*k].is_finite()) {
                scale.low[k] = scale.low[k].min(row[k]);
                high[k] = high[k].max(row[k]);
            }
        }
        scale.range = std::array::from_fn(|k| (high[k] - scale.low[k]).max(0.0));
        scale
    }

    /// What is unknown or does not differ is in the middle.
    pub fn apply(&self, row: &Row<N>) -> Row<N> {
        std::array::from_fn(|k| {
            if !row[k].is_finite() || self.range[k] <= 0.0 || !self.range[k].is_finite() {
                return 0.5;
            }
            let share = ((row[k] - self.low[k]) / self.range[k]).clamp(-1.0, 2.0);
            (share * STEPS).round() / STEPS
        })
    }

    fn differs(&self) -> bool {
        self.range.iter().any(|r| *r > 0.0 && r.is_finite())
    }
}

/// The feature that makes a row odd: without it, the row's score falls most.
pub fn oddest_feature<const N: usize>(
    model: &dyn Outliers<N>,
    rows: &[Row<N>],
    row: &Row<N>,
) -> (usize, f64) {
    let whole = model.score(row);
    let mut best = (0, f64::MIN);
    for k in 0..N {
        let mut values: Vec<f64> = rows.iter().map(|r| r[k]).filter(|v| v.is_finite()).collect();
        values.sort_unstable_by(f64::total_cmp);
        let Some(median) = values.get(values.len() / 2) else { continue };
        let mut plain = *row;
        plain[k] = *median;
        let drop = whole - model.score(&plain);
        if drop > best.1 {
            best = (k, drop);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(n: usize) -> Vec<Row> {
        let wave = |i: usize, k: usize| ((i * 37 + k * 11) as f64).sin();
        (0..n).map(|i| std::array::from_fn(|k| 1e6 * (k as f64 + 1.0) + wave(i, k))).collect()
    }

    type Fit = fn(&[Row]) -> Result<Box<dyn Outliers>, ForestError>;

    fn odd_one_is_found(fit: Fit) {
        let mut rows = cloud(200);
        rows[17][3] += 8.0;
        let model = fit(&rows).unwrap();
        let mut scores: Vec<f64> = rows.iter().map(|r| model.score(r)).collect();
        let odd = scores[17];
        scores.sort_unstable_by(f64::total_cmp);
        assert!(odd >= scores[198] && odd > 0.55, "{odd} of {:?}", &scores[195..]);
        assert_eq!(oddest_feature(&*model, &rows, &rows[17]).0, 3);
    }

    #[test]
    fn seeded_finds_the_odd_one_and_is_the_same_every_time() {
        let fit = |rows: &[Row]| Seeded::fit(rows, 7).map(|m| Box::new(m) as Box<dyn Outliers>);
        odd_one_is_found(fit);
        let rows = cloud(50);
        assert_eq!(fit(&rows).unwrap().score(&rows[3]), fit(&rows).unwrap().score(&rows[3]));
    }

    #[test]
    fn extended_finds_the_odd_one() {
        odd_one_is_found(|rows| Extended::fit(rows).map(|m| Box::new(m) as Box<dyn Outliers>));
    }

    #[test]
    fn what_once_hung_or_panicked_does_not() {
        for spread in [1e-5, 1e-9, 0.0] {
            let mut rows = cloud(64);
            for (i, r) in rows.iter_mut().enumerate() {
                r[0] = 1e9 * (1.0 + spread * i as f64);
                r[1] = f64::NAN;
                r[2] = if i == 5 { f64::INFINITY } else { 1.0 };
            }
            for model in [
                Box::new(Extended::fit(&rows).unwrap()) as Box<dyn Outliers>,
                Box::new(Seeded::fit(&rows, 1).unwrap()),
            ] {
                assert!(model.score(&rows[5]).is_finite());
            }
        }
        assert_eq!(Seeded::fit(&[[1.0; FEATURES]; 20], 1).err(), Some(ForestError::Alike));
        assert!(matches!(Extended::fit(&cloud(3)), Err(ForestError::TooFew(3))));
    }
}
