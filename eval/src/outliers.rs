//! The two isolation forests on public sets: the imbalanced sets of the KEEL
//! repository (Alcalá-Fdez et al. 2011, Journal of Multiple-Valued Logic and
//! Soft Computing 17:255), the rarer class taken as the outliers. The protocol
//! is that of Liu, Ting & Zhou 2008 (ICDM, 413): 100 trees of 256 rows, fitted
//! without labels on all rows and judged on the same.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use claw_ebpf::detect::forest::{Extended, Row, Seeded};

use crate::{files_in, forests::area};

/// Fits of each forest: their mean counts.
const FITS: u64 = 10;
/// Known from the literature on outliers, and by which name.
const KNOWN: [(&str, &str); 8] = [
    ("wisconsin", "Breastw"),
    ("pima", "Pima"),
    ("shuttle-c0-vs-c4", "Shuttle, two classes of it"),
    ("page-blocks0", "PageBlocks"),
    ("vowel0", "Vowels"),
    ("yeast4", "Yeast"),
    ("glass4", "Glass"),
    ("new-thyroid1", "Thyroid"),
];
/// A difference in area that counts.
const DIFFERS: f64 = 0.01;

struct Set {
    name: String,
    columns: usize,
    /// Outliers first, and how many they are.
    rows: Vec<Vec<f64>>,
    odd: usize,
}

/// Rows of numbers and a class; `None` where a column is of words.
fn parse(name: &str, text: &str) -> Option<Set> {
    let (mut odd, mut plain) = (Vec::new(), Vec::new());
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let (values, class) = line.rsplit_once(',')?;
        let row: Option<Vec<f64>> = values.split(',').map(|v| v.trim().parse().ok()).collect();
        let rows = if class.trim() == "positive" { &mut odd } else { &mut plain };
        rows.push(row?);
    }
    if odd.len() > plain.len() {
        (odd, plain) = (plain, odd);
    }
    let columns = odd.first()?.len();
    let n = odd.len();
    odd.append(&mut plain);
    let same = odd.iter().all(|r| r.len() == columns);
    same.then(|| Set { name: name.to_owned(), columns, rows: odd, odd: n })
}

fn areas<const N: usize>(set: &Set) -> Result<[f64; 2]> {
    let rows: Vec<Row<N>> = set.rows.iter().map(|r| std::array::from_fn(|k| r[k])).collect();
    let (mut seeded, mut extended) = (0.0, 0.0);
    for seed in 0..FITS {
        seeded += area(&Seeded::fit(&rows, seed)?, &rows, set.odd);
        extended += area(&Extended::fit(&rows)?, &rows, set.odd);
    }
    Ok([seeded, extended].map(|sum| sum / FITS as f64))
}

/// Both forests take the number of columns as a constant.
macro_rules! areas_of {
    ($set:expr, $($n:literal)*) => {
        match $set.columns {
            $($n => areas::<$n>($set)?,)*
            n => anyhow::bail!("{}: no forest of {n} columns", $set.name),
        }
    };
}

pub fn compare(dir: &Path) -> Result<String> {
    let files =
        files_in(dir, "dat").with_context(|| format!("--outlier-sets {}", dir.display()))?;
    let mut all = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let Some(set) = parse(&name, &text) else { continue };
        let both = areas_of!(&set, 3 4 5 6 7 8 9 10 11 13 16 18 19 34);
        all.push((set, both));
    }
    ensure!(!all.is_empty(), "--outlier-sets {}: no set of numbers", dir.display());
    let mut out = String::from(
        "\n| public set | rows | columns | outliers | AUC seeded | AUC extended |\n\
         |---|---|---|---|---|---|\n",
    );
    for (name, known) in KNOWN {
        let Some((s, [a, b])) = all.iter().find(|(s, _)| s.name == name) else { continue };
        let (rows, columns, odd) = (s.rows.len(), s.columns, s.odd);
        out += &format!("| {name} ({known}) | {rows} | {columns} | {odd} | {a:.3} | {b:.3} |\n");
    }
    let mean = |k: usize| all.iter().map(|(_, both)| both[k]).sum::<f64>() / all.len() as f64;
    let better = |k: usize| all.iter().filter(|(_, b)| b[k] > b[1 - k] + DIFFERS).count();
    out += &format!(
        "| mean of all {} sets of numbers | | | | {:.3} | {:.3} |\n\nBy more than {DIFFERS} the \
         seeded one is better on {}, the extended one on {}.\n",
        all.len(),
        mean(0),
        mean(1),
        better(0),
        better(1)
    );
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_the_rarer_class_and_words_are_left_out() {
        let s = parse("a", "1, 2,negative\n3,4, positive\n\n5,6,negative\n").unwrap();
        assert_eq!((s.columns, s.odd, s.rows[0].as_slice()), (2, 1, &[3.0, 4.0][..]));
        let s = parse("a", "1,positive\n2,positive\n3,negative\n").unwrap();
        assert_eq!((s.odd, s.rows[0][0]), (1, 3.0));
        assert!(parse("a", "M,1,negative\n1,1,positive\n").is_none());
        assert!(parse("a", "1,1,negative\n1,positive\n").is_none());
    }
}
