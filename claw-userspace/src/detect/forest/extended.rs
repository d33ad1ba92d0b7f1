//! The crate `extended-isolation-forest`: accurate, but it takes its random
//! numbers from the thread, so its scores differ a little from run to run.

use extended_isolation_forest::{Forest, ForestOptions};

use super::{FEATURES, FEWEST, ForestError, Outliers, Row, Scale};

pub struct Extended<const N: usize = FEATURES> {
    scale: Scale<N>,
    forest: Forest<f64, N>,
}

impl<const N: usize> Extended<N> {
    /// # Errors
    /// When there are too few rows, or nothing differs between them.
    pub fn fit(rows: &[Row<N>]) -> Result<Self, ForestError> {
        if rows.len() < FEWEST {
            return Err(ForestError::TooFew(rows.len()));
        }
        let scale = Scale::of(rows);
        if !scale.differs() {
            return Err(ForestError::Alike);
        }
        let scaled: Vec<Row<N>> = rows.iter().map(|r| scale.apply(r)).collect();
        let options = ForestOptions {
            n_trees: 100,
            sample_size: scaled.len().min(256),
            max_tree_depth: None,
            extension_level: 1,
        };
        let forest = Forest::from_slice(&scaled, &options).map_err(|_| ForestError::Build)?;
        Ok(Self { scale, forest })
    }
}

impl<const N: usize> Outliers<N> for Extended<N> {
    fn score(&self, row: &Row<N>) -> f64 {
        self.forest.score(&self.scale.apply(row))
    }
}
