//! An isolation forest (Liu, Ting & Zhou 2008) with its own random numbers: the
//! same rows and seed give the same scores. Nodes lie flat in one vector.

use super::{FEATURES, FEWEST, ForestError, Outliers, Row, Scale};

const TREES: usize = 100;
/// Rows that each tree sees.
const SAMPLE: usize = 256;
const EULER: f64 = 0.577_215_664_901_532_9;

#[derive(Clone, Copy, Debug)]
enum Node {
    /// Left child is the next node.
    Split { feature: u8, at: f64, right: u32 },
    /// What remains to be isolated adds to the depth.
    Leaf { more: f64 },
}

#[derive(Debug)]
pub struct Seeded<const N: usize = FEATURES> {
    scale: Scale<N>,
    nodes: Vec<Node>,
    roots: Vec<u32>,
    /// Mean depth of a search that finds nothing.
    mean: f64,
}

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }
}

/// Mean depth of an unsuccessful search among `n`.
fn search_depth(n: usize) -> f64 {
    match n {
        0 | 1 => 0.0,
        2 => 1.0,
        _ => {
            let n = n as f64;
            2.0 * ((n - 1.0).ln() + EULER) - 2.0 * (n - 1.0) / n
        }
    }
}

impl<const N: usize> Seeded<N> {
    /// # Errors
    /// When there are too few rows, or nothing differs between them.
    pub fn fit(rows: &[Row<N>], seed: u64) -> Result<Self, ForestError> {
        if rows.len() < FEWEST {
            return Err(ForestError::TooFew(rows.len()));
        }
        let scale = Scale::of(rows);
        if !scale.differs() {
            return Err(ForestError::Alike);
        }
        let mut scaled: Vec<Row<N>> = rows.iter().map(|r| scale.apply(r)).collect();
        let sample = scaled.len().min(SAMPLE);
        let most = (sample as f64).log2().ceil() as usize;
        let mut forest =
            Self { scale, nodes: Vec::new(), roots: Vec::new(), mean: search_depth(sample) };
        let mut random = Random(seed);
        for _ in 0..TREES {
            for i in 0..sample {
                let other = i + random.below(scaled.len() - i);
                scaled.swap(i, other);
            }
            forest.roots.push(forest.nodes.len() as u32);
            forest.grow(&mut scaled[..sample], most, &mut random);
        }
        Ok(forest)
    }

    fn grow(&mut self, rows: &mut [Row<N>], depth: usize, random: &mut Random) {
        let leaf = Node::Leaf { more: search_depth(rows.len()) };
        let bounds = |k: usize| {
            rows.iter().fold((f64::MAX, f64::MIN), |(l, h), r| (l.min(r[k]), h.max(r[k])))
        };
        let differing: Vec<(usize, (f64, f64))> =
            (0..N).map(|k| (k, bounds(k))).filter(|(_, (low, high))| high > low).collect();
        if depth == 0 || rows.len() < 2 || differing.is_empty() {
            self.nodes.push(leaf);
            return;
        }
        let (feature, (low, high)) = differing[random.below(differing.len())];
        let at = low + (high - low) * random.unit();
        let mut left = 0;
        for i in 0..rows.len() {
            if rows[i][feature] <= at {
                rows.swap(i, left);
                left += 1;
            }
        }
        let here = self.nodes.len();
        self.nodes.push(leaf);
        let (less, more) = rows.split_at_mut(left);
        self.grow(less, depth - 1, random);
        let right = self.nodes.len() as u32;
        self.grow(more, depth - 1, random);
        self.nodes[here] = Node::Split { feature: feature as u8, at, right };
    }

    fn depth(&self, root: u32, row: &Row<N>) -> f64 {
        let (mut at, mut depth) = (root as usize, 0.0);
        loop {
            match self.nodes[at] {
                Node::Leaf { more } => return depth + more,
                Node::Split { feature, at: value, right } => {
                    depth += 1.0;
                    at = if row[usize::from(feature)] <= value { at + 1 } else { right as usize };
                }
            }
        }
    }
}

impl<const N: usize> Outliers<N> for Seeded<N> {
    fn score(&self, row: &Row<N>) -> f64 {
        let row = self.scale.apply(row);
        let sum: f64 = self.roots.iter().map(|r| self.depth(*r, &row)).sum();
        (-sum / self.roots.len() as f64 / self.mean).exp2()
    }
}
