//! Many series are looked at, so some look as if they grew: the false-discovery
//! procedure of Benjamini & Hochberg (1995, JRSS B 57:289).

/// Share of the findings that may be false.
pub const FALSE_SHARE: f64 = 0.05;

/// Largest probability that is a discovery among `tests` of which those given
/// (at most 1 each) are known; 0 when none is.
pub fn threshold(p: &mut [f64], tests: usize, share: f64) -> f64 {
    p.sort_unstable_by(f64::total_cmp);
    let limit = |k: usize| share * (k + 1) as f64 / tests.max(1) as f64;
    p.iter().enumerate().rev().find(|(k, p)| **p <= limit(*k)).map_or(0.0, |(k, _)| limit(k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_of_the_paper() {
        let mut p = [
            0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262,
            0.5719, 0.6528, 0.7590, 1.0,
        ];
        let t = threshold(&mut p, 15, 0.05);
        assert_eq!(p.iter().filter(|p| **p <= t).count(), 4);
    }

    #[test]
    fn one_of_many_must_be_surer() {
        assert!(threshold(&mut [0.01], 1, FALSE_SHARE) >= 0.01);
        assert!(threshold(&mut [0.01], 1000, FALSE_SHARE) < 0.01);
    }
}
