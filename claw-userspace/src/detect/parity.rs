//! Are environments alike? Equivalence of memory coefficients by two one-sided
//! tests (Schuirmann 1987): the 90 % bootstrap interval of the log ratio of
//! means lies within ±10 %. The unit is a process, never a sample: samples of
//! one process are not independent.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// Ratio of coefficients that counts as equal.
pub const MARGIN: f64 = 0.10;
/// Fewest processes a side.
pub const FEWEST: usize = 3;
const DRAWS: usize = 2000;

/// Of one process in one environment.
#[derive(Clone, Debug)]
pub struct Unit {
    pub environment: String,
    pub service: String,
    pub process: String,
    pub tenant: String,
    pub site: String,
    /// Bytes in use per unit of work, or bytes in use.
    pub coefficient: f64,
    pub per_work: bool,
    /// `None`: not known (a baseline holds no verdict).
    pub leaks: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Parity {
    Equivalent,
    Different,
    Inconclusive,
}

/// Two environments, one subject.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    pub environments: [String; 2],
    pub verdict: Parity,
    /// Ratio of the second to the first, and its 90 % interval.
    pub ratio: Option<f64>,
    pub interval90: Option<[f64; 2]>,
    pub processes: [usize; 2],
    pub why: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    pub service: String,
    pub tenant: String,
    pub site: String,
    pub verdict: Parity,
    /// The environment that differs from all others, which agree.
    pub odd: Option<String>,
    /// Environments in which it leaks.
    pub leaks_in: Vec<String>,
    pub pairs: Vec<Pair>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Result {
    pub environments: Vec<String>,
    pub compared: Vec<Compared>,
    /// What follows from all of it.
    pub statements: Vec<String>,
}

pub fn compare(units: &[Unit]) -> Result {
    let environments: BTreeSet<&str> = units.iter().map(|u| u.environment.as_str()).collect();
    let environments: Vec<String> = environments.into_iter().map(str::to_owned).collect();
    let mut subjects: BTreeMap<(&str, &str, &str), Vec<&Unit>> = BTreeMap::new();
    for u in units {
        subjects.entry((&u.service, &u.tenant, &u.site)).or_default().push(u);
    }
    let compared: Vec<Compared> =
        subjects.values().map(|members| subject(members, &environments)).collect();
    let statements = statements(&compared, units);
    Result { environments, compared, statements }
}

fn subject(members: &[&Unit], environments: &[String]) -> Compared {
    let of = |e: &str| -> Vec<&Unit> {
        members.iter().copied().filter(|u| u.environment == e).collect()
    };
    let sides: Vec<(&String, Vec<&Unit>)> = environments.iter().map(|e| (e, of(e))).collect();
    let mut pairs = Vec::new();
    for (i, (a, left)) in sides.iter().enumerate() {
        for (b, right) in &sides[i + 1..] {
            pairs.push(pair([a, b], left, right));
        }
    }
    let leaks_in: Vec<String> = sides
        .iter()
        .filter(|(_, u)| u.iter().any(|u| u.leaks == Some(true)))
        .map(|(e, _)| (*e).clone())
        .collect();
    let verdict = if pairs.iter().any(|p| p.verdict == Parity::Different) {
        Parity::Different
    } else if !pairs.is_empty() && pairs.iter().all(|p| p.verdict == Parity::Equivalent) {
        Parity::Equivalent
    } else {
        Parity::Inconclusive
    };
    // Odd: different from every other, none of which differ among themselves.
    let odd = environments.iter().find(|e| {
        let (with, without): (Vec<&Pair>, Vec<&Pair>) =
            pairs.iter().partition(|p| p.environments.contains(e));
        with.iter().all(|p| p.verdict == Parity::Different)
            && without.iter().all(|p| p.verdict != Parity::Different)
            && !without.is_empty()
    });
    let first = members[0];
    Compared {
        service: first.service.clone(),
        tenant: first.tenant.clone(),
        site: first.site.clone(),
        verdict,
        odd: odd.cloned(),
        leaks_in,
        pairs,
    }
}

fn pair(environments: [&String; 2], left: &[&Unit], right: &[&Unit]) -> Pair {
    let processes = [left.len(), right.len()];
    let made = |verdict, ratio, interval90, why: String| Pair {
        environments: environments.map(String::clone),
        verdict,
        ratio,
        interval90,
        processes,
        why,
    };
    let logs = |side: &[&Unit]| -> Vec<f64> {
        side.iter().map(|u| u.coefficient.ln()).filter(|l| l.is_finite()).collect()
    };
    let (a, b) = (logs(left), logs(right));
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let ratio = (!a.is_empty() && !b.is_empty()).then(|| (mean(&b) - mean(&a)).exp());
    let leaks = |side: &[&Unit]| side.iter().map(|u| u.leaks).collect::<Option<Vec<bool>>>();
    if let (Some(l), Some(r)) = (leaks(left), leaks(right))
        && !l.is_empty()
        && !r.is_empty()
        && l.contains(&true) != r.contains(&true)
    {
        let leaking = environments[usize::from(r.contains(&true))];
        return made(Parity::Different, ratio, None, format!("it leaks in {leaking} only"));
    }
    if left.iter().chain(right).any(|u| u.per_work != left.first().is_some_and(|f| f.per_work)) {
        let why = "the load is known on one side only, so the coefficients are not comparable";
        return made(Parity::Inconclusive, None, None, why.to_owned());
    }
    if a.len() < FEWEST || b.len() < FEWEST {
        let why = format!(
            "{} and {} processes: at least {FEWEST} on each side are needed to tell a difference \
             from chance",
            a.len(),
            b.len()
        );
        return made(Parity::Inconclusive, ratio, None, why);
    }
    let [low, high] = bootstrap(&a, &b);
    let bound = (1.0 + MARGIN).ln();
    let verdict = if low > -bound && high < bound {
        Parity::Equivalent
    } else if (low > 0.0 || high < 0.0) && (mean(&b) - mean(&a)).abs() > bound {
        Parity::Different
    } else {
        Parity::Inconclusive
    };
    let [low, high] = [low, high].map(f64::exp);
    let why = match verdict {
        Parity::Equivalent => format!("the 90 % interval lies within ±{:.0} %", MARGIN * 100.0),
        Parity::Different => {
            "the 90 % interval leaves out 1 and the ratio is beyond the margin".into()
        }
        Parity::Inconclusive => {
            "the 90 % interval is too wide: more processes would narrow it".to_owned()
        }
    };
    made(verdict, ratio, Some([low, high]), why)
}

/// 5th and 95th percentile of the difference of means, processes drawn anew;
/// widened by √(n/(n−1)), since the spread of few is underestimated.
fn bootstrap(a: &[f64], b: &[f64]) -> [f64; 2] {
    let mut state = 0x0123_4567_89ab_cdefu64;
    let mut below = |n: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % n as u64) as usize
    };
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let difference = mean(b) - mean(a);
    let widen = |n: usize| (n as f64 / (n as f64 - 1.0)).sqrt();
    let (wide_a, wide_b) = (widen(a.len()), widen(b.len()));
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| {
            let mut draw =
                |v: &[f64]| (0..v.len()).map(|_| v[below(v.len())]).sum::<f64>() / v.len() as f64;
            let (x, y) = (draw(a), draw(b));
            difference + (y - mean(b)) * wide_b - (x - mean(a)) * wide_a
        })
        .collect();
    drawn.sort_unstable_by(f64::total_cmp);
    [drawn[DRAWS / 20], drawn[DRAWS * 19 / 20]]
}

fn statements(compared: &[Compared], units: &[Unit]) -> Vec<String> {
    let mut all = Vec::new();
    let services: BTreeSet<&str> = compared.iter().map(|c| c.service.as_str()).collect();
    for service in services {
        let of: Vec<&Compared> = compared.iter().filter(|c| c.service == service).collect();
        let leaking: BTreeSet<&str> =
            of.iter().flat_map(|c| &c.leaks_in).map(String::as_str).collect();
        for environment in &leaking {
            let seen = |e: &str| {
                units
                    .iter()
                    .any(|u| u.service == service && u.environment != e && u.leaks.is_some())
            };
            let others: BTreeSet<&str> =
                leaking.iter().copied().filter(|e| e != environment).collect();
            let tenants: BTreeSet<&str> = units
                .iter()
                .filter(|u| u.service == service && u.environment == *environment)
                .map(|u| u.tenant.as_str())
                .collect();
            let with: BTreeSet<&str> = of
                .iter()
                .filter(|c| c.leaks_in.iter().any(|e| e == environment))
                .map(|c| c.tenant.as_str())
                .collect();
            let place = if others.is_empty() && seen(environment) {
                format!("leak isolated to {environment}")
            } else if others.is_empty() {
                format!("leak in {environment}; no other environment was watched for leaks")
            } else {
                format!("leak in {environment} and elsewhere")
            };
            let whose = if tenants.len() < 2 {
                "one tenant only was seen, so whether it is tenant-specific is not known".to_owned()
            } else if with.len() == tenants.len() {
                "not tenant-specific".to_owned()
            } else {
                let names: Vec<&str> = with.iter().copied().collect();
                format!(
                    "tenant-specific: {} of {} ({})",
                    with.len(),
                    tenants.len(),
                    names.join(", ")
                )
            };
            all.push(format!("{service}: {place}, {whose}"));
        }
    }
    all
}

/// The service of a process: its name without what tells instances apart (a
/// number, or the two hashes of a pod).
pub fn service(process: &str) -> &str {
    let mut name = process;
    for _ in 0..2 {
        let Some((rest, last)) = name.rsplit_once(['-', ':', '#', '.', '/', '@', '_']) else {
            break;
        };
        let number = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
        let hash = matches!(last.len(), 5 | 8..=10)
            && last.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && last.bytes().any(|b| b.is_ascii_digit());
        if rest.is_empty() || !(number || hash) {
            break;
        }
        name = rest;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(environment: &str, scale: f64, n: usize, leaks: Option<bool>) -> Vec<Unit> {
        let unit = |(i, tenant): (usize, &str)| Unit {
            environment: environment.into(),
            service: "api".into(),
            process: format!("api-{i}"),
            tenant: tenant.into(),
            site: String::new(),
            coefficient: 1e6 * scale * (1.0 + 0.02 * ((i * 7 % 5) as f64 - 2.0)),
            per_work: true,
            leaks,
        };
        (0..n).flat_map(|i| [(i, "acme"), (i, "zeta")]).map(unit).collect()
    }

    #[test]
    fn equal_different_and_too_few() {
        let judged = |scale, n| {
            compare(&[units("a", 1.0, n, None), units("b", scale, n, None)].concat()).compared[0]
                .verdict
        };
        assert_eq!(judged(1.0, 6), Parity::Equivalent);
        assert_eq!(judged(1.3, 6), Parity::Different);
        assert_eq!(judged(1.09, 4), Parity::Inconclusive);
        assert_eq!(judged(1.3, 2), Parity::Inconclusive);
    }

    #[test]
    fn the_odd_environment_is_named() {
        let all = [
            units("canary", 1.0, 6, None),
            units("prod", 1.4, 6, None),
            units("staging", 1.01, 6, None),
        ];
        let r = compare(&all.concat());
        assert_eq!(r.compared[0].odd.as_deref(), Some("prod"));
    }

    #[test]
    fn leak_of_production_and_of_one_tenant() {
        let mut prod = units("prod", 1.0, 3, Some(true));
        let staging = units("staging", 1.0, 3, Some(false));
        let said = |p: &[Unit]| compare(&[p.to_vec(), staging.clone()].concat()).statements;
        assert_eq!(said(&prod), ["api: leak isolated to prod, not tenant-specific"]);
        for u in prod.iter_mut().filter(|u| u.tenant == "zeta") {
            u.leaks = Some(false);
        }
        assert_eq!(said(&prod), ["api: leak isolated to prod, tenant-specific: 1 of 2 (acme)"]);
    }

    #[test]
    fn instances_of_a_service() {
        for (process, expected) in [
            ("api-1", "api"),
            ("api-gateway", "api-gateway"),
            ("api-7d9f8b6c5d-x2k9q", "api"),
            ("worker:812", "worker"),
            ("-1", "-1"),
        ] {
            assert_eq!(service(process), expected);
        }
    }
}
