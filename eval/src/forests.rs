//! The two isolation forests on the same matrices of tenants: area under the
//! curve, and what a score costs. On public sets: [`crate::outliers`].

use claw_ebpf::detect::forest::{Extended, FEATURES, Outliers, Row, Seeded};

use crate::{ours::cpu_seconds, random::Random};

fn matrix(r: &mut Random) -> (Vec<Row>, usize) {
    let n = 30 + (r.bits() % 300) as usize;
    let odd = (n / 20).max(1);
    let scale: Row = std::array::from_fn(|_| r.log_within((1.0, 1e9)));
    let rows = (0..n).map(|i| {
        let common = r.normal();
        let feature = (r.bits() % FEATURES as u64) as usize;
        std::array::from_fn(|k| {
            let shift = if i < odd && k == feature { 3.0 } else { 0.0 };
            scale[k] * (10.0 + 0.5 * common + r.normal() + shift)
        })
    });
    (rows.collect(), odd)
}

/// Probability that one of the first `odd` rows scores above one of the others.
pub fn area<const N: usize>(model: &dyn Outliers<N>, rows: &[Row<N>], odd: usize) -> f64 {
    let scores: Vec<f64> = rows.iter().map(|r| model.score(r)).collect();
    let mut sum = 0.0;
    for a in &scores[..odd] {
        for b in &scores[odd..] {
            sum += if a > b { 1.0 } else { f64::from(u8::from(a == b)) / 2.0 };
        }
    }
    sum / (odd * (scores.len() - odd)) as f64
}

pub fn compare(matrices: u64) -> String {
    let mut r = Random::new(99);
    let (mut sums, mut times, mut scored) = ([0.0; 2], [0.0; 2], 0usize);
    for i in 0..matrices {
        let (rows, odd) = matrix(&mut r);
        scored += rows.len();
        let models: [Option<Box<dyn Outliers>>; 2] = [
            Seeded::fit(&rows, i).ok().map(|m| Box::new(m) as _),
            Extended::fit(&rows).ok().map(|m| Box::new(m) as _),
        ];
        for (k, m) in models.iter().enumerate() {
            let began = cpu_seconds();
            sums[k] += m.as_deref().map_or(0.0, |m| area(m, &rows, odd));
            times[k] += cpu_seconds() - began;
        }
    }
    let row = |name: &str, k: usize| {
        let cost = times[k] / scored as f64 * 1e6;
        format!("| {name} | {:.3} | {cost:.1} |\n", sums[k] / matrices as f64)
    };
    String::from("| forest, on generated tenants | mean AUC | µs per score |\n|---|---|---|\n")
        + &row("seeded", 0)
        + &row("extended-isolation-forest 0.2.3", 1)
}
