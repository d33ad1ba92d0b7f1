//! Slope of a window and how sure it is, whether the noise about the line
//! comes and goes or adds up as a random walk does: quasi-feasible generalised
//! least squares (Perron & Yabu 2009, Journal of Econometrics 151:56). With
//! the load as a second regressor, what rises with the load is not growth, and
//! where load and time rise together the interval widens by itself.

use super::ring::{Bin, MOST};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    /// Bytes per second, and its standard error.
    pub slope: f64,
    pub se: f64,
    /// Degrees of freedom of `se`.
    pub dof: f64,
    /// Standard deviation about the line, bytes.
    pub sigma: f64,
    /// Bytes at the start of the window, on the line.
    pub start: f64,
    /// s.
    pub span: f64,
    /// Bytes per unit of load.
    pub beta: f64,
    /// What the load explains between both ends of the window, bytes.
    pub by_load: f64,
    /// Rise of the load within the window, on its own line, as a share of what
    /// it was at the beginning; 0 where it is not known.
    pub load_rise: f64,
    /// Load-adjusted means of the thirds of the window.
    pub thirds: [f64; 3],
    /// Of the changes between six blocks of the window, the middle one as a
    /// share of their mean: 1 for a line, 0 where one or two steps make the growth or
    /// one step explains the window as well as the line.
    pub even: f64,
    /// Share of the growth that the tenth of the changes from bin to bin that
    /// are largest (at least one) makes, those the other way set off.
    pub jumps: f64,
    /// Bins.
    pub n: usize,
}

impl Fit {
    pub fn growth(&self) -> f64 {
        self.slope * self.span
    }

    /// Probability of such a slope without growth.
    pub fn p(&self) -> f64 {
        student_tail(self.slope / self.se, self.dof)
    }
}

/// Variation of the load, as a share of its mean, from which it is adjusted
/// for.
const LOAD_VARIES: f64 = 0.01;

const BLOCKS: usize = 6;

/// `beta` is bytes per unit of load where a baseline tells it.
pub fn fit(bins: &[Bin], beta: Option<f64>) -> Option<Fit> {
    let n = bins.len().min(MOST);
    let (first, last) = (bins.first()?, bins.get(n - 1)?);
    let span = f64::from(last.at_s) - f64::from(first.at_s);
    if n < 6 || span <= 0.0 {
        return None;
    }
    let mut w = Window::new(&bins[..n], span);
    let fixed = match beta {
        _ if !w.load_varies() => Some(0.0),
        Some(b) => Some(b),
        None => {
            // Memory is at most proportional to the load, and does not shrink
            // with it.
            let most = (w.mean_y() / w.mean_l()).max(0.0);
            match w.joint(w.rho(None)) {
                Some(j) if j.beta >= 0.0 && j.beta <= most => None,
                Some(j) => Some(j.beta.clamp(0.0, most)),
                // Time and load are one: all that can be is the load's.
                None => Some(most),
            }
        }
    };
    let rho = w.rho(fixed);
    let line = match fixed {
        Some(beta) => w.single(rho, beta)?,
        None => w.joint(rho)?,
    };
    Some(w.finish(line))
}

/// The least-squares line of few bins, load and noise left as they are.
pub fn line(bins: &[Bin]) -> Option<Fit> {
    let (first, last) = (bins.first()?, bins.last()?);
    let span = f64::from(last.at_s) - f64::from(first.at_s);
    if !(6..=MOST).contains(&bins.len()) || span <= 0.0 {
        return None;
    }
    let mut w = Window::new(bins, span);
    let line = w.single(0.0, 0.0)?;
    Some(w.finish(line))
}

struct Line {
    slope: f64,
    se: f64,
    dof: f64,
    beta: f64,
}

/// Time runs from 0 to 1.
struct Window {
    n: usize,
    span: f64,
    x: [f64; MOST],
    y: [f64; MOST],
    l: [f64; MOST],
    loaded: bool,
}

impl Window {
    fn new(bins: &[Bin], span: f64) -> Self {
        let mut w = Self {
            n: bins.len(),
            span,
            x: [0.0; MOST],
            y: [0.0; MOST],
            l: [0.0; MOST],
            loaded: true,
        };
        for (i, b) in bins.iter().enumerate() {
            w.x[i] = (f64::from(b.at_s) - f64::from(bins[0].at_s)) / span;
            w.y[i] = f64::from(b.low);
            w.l[i] = f64::from(b.load);
            w.loaded &= b.load.is_finite();
        }
        w
    }

    fn mean_y(&self) -> f64 {
        self.y[..self.n].iter().sum::<f64>() / self.n as f64
    }

    fn mean_l(&self) -> f64 {
        self.l[..self.n].iter().sum::<f64>() / self.n as f64
    }

    fn load_varies(&self) -> bool {
        if !self.loaded {
            return false;
        }
        let mean = self.mean_l();
        let var = self.l[..self.n].iter().map(|l| (l - mean).powi(2)).sum::<f64>() / self.n as f64;
        mean > 0.0 && var.sqrt() > LOAD_VARIES * mean
    }

    /// Autocorrelation of what ordinary least squares leaves, its bias
    /// corrected (Kendall 1954, with a trend); 1 when it cannot be told from a
    /// random walk.
    fn rho(&self, beta: Option<f64>) -> f64 {
        let line = match beta {
            Some(b) => self.single(0.0, b),
            None => self.joint(0.0),
        };
        let Some(line) = line else { return 1.0 };
        let n = self.n as f64;
        let rest = |i: usize| self.y[i] - line.slope * self.x[i] - line.beta * self.l_or_0(i);
        let mean = (0..self.n).map(rest).sum::<f64>() / n;
        let (mut cross, mut square, mut before) = (0.0, 0.0, rest(0) - mean);
        for i in 1..self.n {
            let e = rest(i) - mean;
            cross += e * before;
            square += before * before;
            before = e;
        }
        if square <= 0.0 {
            return 0.0;
        }
        let rho = ((cross / square + 2.0 / n) / (1.0 - 4.0 / n)).clamp(0.0, 1.0);
        if rho > 1.0 - n.sqrt().recip() { 1.0 } else { rho }
    }

    fn l_or_0(&self, i: usize) -> f64 {
        if self.loaded { self.l[i] } else { 0.0 }
    }

    /// Row `i` after quasi-differencing: constant, time, load, value.
    fn row(&self, i: usize, rho: f64) -> [f64; 4] {
        let now = [1.0, self.x[i], self.l_or_0(i), self.y[i]];
        if i == 0 {
            let scale = (1.0 - rho * rho).max(0.0).sqrt();
            return now.map(|v| v * scale);
        }
        let old = [1.0, self.x[i - 1], self.l_or_0(i - 1), self.y[i - 1]];
        std::array::from_fn(|k| now[k] - rho * old[k])
    }

    /// Sums of products of the columns, the constant already swept out.
    fn products(&self, rho: f64) -> [[f64; 4]; 4] {
        let mut s = [[0.0; 4]; 4];
        for i in 0..self.n {
            let r = self.row(i, rho);
            for a in 0..4 {
                for b in a..4 {
                    s[a][b] += r[a] * r[b];
                }
            }
        }
        if s[0][0] > 1e-12 {
            for a in 1..4 {
                for b in a..4 {
                    s[a][b] -= s[0][a] * s[0][b] / s[0][0];
                }
            }
        }
        s
    }

    /// With a known coefficient of the load.
    fn single(&self, rho: f64, beta: f64) -> Option<Line> {
        let s = self.products(rho);
        let xx = s[1][1];
        if xx <= 0.0 {
            return None;
        }
        let xy = s[1][3] - beta * s[1][2];
        let yy = s[3][3] - 2.0 * beta * s[2][3] + beta * beta * s[2][2];
        let slope = xy / xx;
        let dof = self.n as f64 - 2.0;
        let rest = (yy - slope * xy).max(0.0);
        Some(Line { slope, se: (rest / dof / xx).sqrt(), dof, beta })
    }

    fn joint(&self, rho: f64) -> Option<Line> {
        let s = self.products(rho);
        let (xx, xl, ll) = (s[1][1], s[1][2], s[2][2]);
        let det = xx * ll - xl * xl;
        if det <= 1e-9 * xx * ll || xx <= 0.0 {
            return None;
        }
        let slope = (ll * s[1][3] - xl * s[2][3]) / det;
        let beta = (xx * s[2][3] - xl * s[1][3]) / det;
        let dof = self.n as f64 - 3.0;
        let rest = (s[3][3] - slope * s[1][3] - beta * s[2][3]).max(0.0);
        Some(Line { slope, se: (rest / dof * ll / det).sqrt(), dof, beta })
    }

    /// Sum of squares that the best single step leaves.
    fn best_step(&self) -> f64 {
        let y = &self.y[..self.n];
        let square: f64 = y.iter().map(|v| (v - y[0]).powi(2)).sum();
        let total: f64 = y.iter().map(|v| v - y[0]).sum();
        let (mut sum, mut best) = (0.0, f64::MAX);
        for (i, v) in y.iter().enumerate().take(self.n - 1) {
            sum += v - y[0];
            let (left, right) = ((i + 1) as f64, (self.n - i - 1) as f64);
            best = best.min(square - sum * sum / left - (total - sum).powi(2) / right);
        }
        best
    }

    /// See [`Fit::even`].
    fn evenness(&self) -> f64 {
        let edge = |k: usize| k * self.n / BLOCKS;
        let mean = |k: usize| {
            let block = &self.y[edge(k)..edge(k + 1)];
            block.iter().sum::<f64>() / block.len() as f64
        };
        let level: [f64; BLOCKS] = std::array::from_fn(mean);
        let mut rises: [f64; BLOCKS - 1] = std::array::from_fn(|k| level[k + 1] - level[k]);
        let whole: f64 = rises.iter().sum();
        rises.sort_unstable_by(f64::total_cmp);
        if whole != 0.0 { rises[BLOCKS / 2 - 1] / (whole / rises.len() as f64) } else { 0.0 }
    }

    /// See [`Fit::jumps`].
    fn jumps(&self, growth: f64) -> f64 {
        let mut changes = [0.0; MOST];
        let (n, few) = (self.n - 1, (self.n / 10).max(1));
        for (i, c) in changes[..n].iter_mut().enumerate() {
            *c = self.y[i + 1] - self.y[i];
        }
        let changes = &mut changes[..n];
        changes.sort_unstable_by(f64::total_cmp);
        let net: f64 = changes[..few].iter().chain(&changes[n - few..]).sum();
        net / growth
    }

    /// See [`Fit::load_rise`]; `middle` is the mean time.
    fn load_rise(&self, middle: f64) -> f64 {
        let mean = self.mean_l();
        if !self.loaded || mean <= 0.0 {
            return 0.0;
        }
        let (mut xl, mut xx) = (0.0, 0.0);
        for (x, l) in self.x[..self.n].iter().zip(&self.l) {
            xl += (x - middle) * l;
            xx += (x - middle).powi(2);
        }
        let rise = xl / xx;
        rise / (mean - rise * middle).max(0.1 * mean)
    }

    fn finish(&mut self, line: Line) -> Fit {
        let n = self.n;
        let load = self.mean_l();
        let by_load = line.beta * (self.l_or_0(n - 1) - self.l_or_0(0));
        if self.loaded {
            for i in 0..n {
                self.y[i] -= line.beta * (self.l[i] - load);
            }
        }
        let third = n / 3;
        let mean = |r: std::ops::Range<usize>| {
            let len = r.len() as f64;
            self.y[r].iter().sum::<f64>() / len
        };
        let thirds = [mean(0..third), mean(third..n - third), mean(n - third..n)];
        let middle = self.x[..n].iter().sum::<f64>() / n as f64;
        let start = mean(0..n) - line.slope * middle;
        let squares: f64 =
            (0..n).map(|i| (self.y[i] - start - line.slope * self.x[i]).powi(2)).sum();
        // Numbers are stored with 24 bits: less cannot be told from nothing.
        let least = start.abs().max(1.0) * 1e-6;
        let sigma = (squares / n as f64).sqrt();
        let moves = line.slope.abs() > sigma;
        Fit {
            slope: line.slope / self.span,
            se: line.se.max(least) / self.span,
            dof: line.dof,
            sigma,
            start,
            span: self.span,
            beta: line.beta,
            by_load,
            load_rise: self.load_rise(middle),
            thirds,
            even: if moves && self.best_step() > squares { self.evenness() } else { 0.0 },
            jumps: if moves { self.jumps(line.slope) } else { 1.0 },
            n,
        }
    }
}

/// P(T > t) for Student's distribution (Wallace 1959; relative error of the
/// probability below 10 % for 8 and more degrees of freedom).
pub fn student_tail(t: f64, dof: f64) -> f64 {
    let z = (8.0 * dof + 1.0) / (8.0 * dof + 3.0) * (dof * (t * t / dof).ln_1p()).sqrt();
    normal_tail(if t < 0.0 { -z } else { z })
}

/// The t beyond which Student's distribution has the tail that the normal one
/// has beyond `z`: [`student_tail`] the other way round.
pub fn student_quantile(z: f64, dof: f64) -> f64 {
    let z = z * (8.0 * dof + 3.0) / (8.0 * dof + 1.0);
    (dof * (z * z / dof).exp_m1()).sqrt()
}

/// P(Z > z) of the normal distribution (Abramowitz & Stegun 7.1.26 near the
/// middle, the continued fraction of the tail beyond).
pub fn normal_tail(z: f64) -> f64 {
    if z < 0.0 {
        return 1.0 - normal_tail(-z);
    }
    let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    if z < 2.0 {
        let t = 1.0 / (1.0 + 0.231_641_9 * z);
        let series = [0.319_381_530, -0.356_563_782, 1.781_477_937, -1.821_255_978, 1.330_274_429];
        return density * series.iter().rev().fold(0.0, |sum, c| (sum + c) * t);
    }
    let fraction = (1..=12).rev().fold(z, |rest, k| z + f64::from(k) / rest);
    density / fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bins(n: usize, y: impl Fn(f64) -> f64, l: impl Fn(f64) -> f64) -> Vec<Bin> {
        let at = |i: usize| Bin {
            at_s: i as u32 * 60,
            low: y(i as f64) as f32,
            load: l(i as f64) as f32,
        };
        (0..n).map(at).collect()
    }

    /// Not random, but without pattern.
    fn noise(i: f64) -> f64 {
        ((i * 12.9898).sin() * 43_758.545).fract()
    }

    #[test]
    fn tails_match_the_tables() {
        assert!((normal_tail(1.96) - 0.025).abs() < 1e-5);
        assert!((normal_tail(4.0) / 3.167e-5 - 1.0).abs() < 1e-3);
        assert!((student_tail(3.355, 8.0) / 0.005 - 1.0).abs() < 0.05);
        for (dof, t) in [(2.0, 4.303), (3.0, 3.182), (5.0, 2.571), (10.0, 2.228), (30.0, 2.042)] {
            assert!((student_quantile(1.96, dof) / t - 1.0).abs() < 0.05, "{dof}");
        }
        assert!((student_tail(2.756, 29.0) / 0.005 - 1.0).abs() < 0.02);
    }

    #[test]
    fn slope_and_start_of_a_line() {
        let f = fit(&bins(30, |i| 1000.0 + 6.0 * i + noise(i), |_| f64::NAN), None).unwrap();
        assert!((f.slope - 0.1).abs() < 0.002 && (f.start - 1000.0).abs() < 2.0, "{f:?}");
        assert!(f.p() < 1e-12);
    }

    #[test]
    fn load_is_not_growth() {
        let load = |i: f64| 100.0 + 50.0 * (i / 5.0).sin();
        let f = fit(&bins(30, |i| 1e6 + 2000.0 * load(i) + 500.0 * noise(i), load), None).unwrap();
        assert!((f.beta - 2000.0).abs() < 20.0 && f.growth().abs() < 4000.0, "{f:?}");
        let ramp = |i: f64| 100.0 + 5.0 * i;
        let f = fit(&bins(30, |i| 1e6 + 2000.0 * ramp(i) + 500.0 * noise(i), ramp), None).unwrap();
        assert!(f.p() > 1e-3, "time and load are one: {f:?}");
    }

    #[test]
    fn random_walk_is_seldom_significant() {
        // With least squares alone 60 % would be. The gates see to the rest.
        let (mut hits, trials) = (0, 2000);
        let mut state = 1u64;
        for _ in 0..trials {
            let mut level = 1e6;
            let walk: Vec<Bin> = (0..36)
                .map(|i| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    level += ((state >> 33) as f64 / f64::from(1u32 << 31) - 0.5) * 1e4;
                    Bin { at_s: i * 60, low: level as f32, load: f32::NAN }
                })
                .collect();
            hits += u32::from(fit(&walk, None).unwrap().p() < 0.001);
        }
        assert!(hits < trials / 12, "{hits} of {trials}");
    }
}
