//! The tables of docs/eval.md.

use crate::score::{Score, quantile};

pub const HEAD: &str = "# How good the verdicts over series are\n\n\
    Written by `cargo xtask eval --out docs/eval.md`: generated series with known truth, from seeds \
    that tuning never saw and wider parameter ranges than it used (`eval/src/generate.rs`). An alarm is the moment a \
    verdict `leak` is given; it counts as false even if it is withdrawn later. Minutes to detect \
    count from the onset of the leak.\n\n";

pub fn detectors(rows: &[(&str, &Score)]) -> String {
    let days = rows.first().map_or(0.0, |(_, s)| s.days);
    let mut out = format!(
        "## Detectors\n\n{days:.0} process-days without a leak, {} series with one.\n\n\
         | detector | precision | recall | false alarms per process-day | median minutes at \
         .03/.1/.5/2/5.2 %/min |\n|---|---|---|---|---|\n",
        rows.first().map_or(0, |(_, s)| s.found + s.missed)
    );
    for (name, s) in rows {
        let median = |rate: &str| {
            let d = s.delays.get(rate).map_or(f64::NAN, |d| quantile(d, 0.5));
            if d.is_nan() { "–".to_owned() } else { format!("{d:.0}") }
        };
        let medians = ["0.03", "0.1", "0.5", "2", "5.2"].map(median).join("/");
        out += &format!(
            "| {name} | {:.3} | {:.3} | {:.3} | {medians} |\n",
            s.precision(),
            s.recall(),
            s.per_day()
        );
    }
    out
}

pub fn delays(s: &Score, name: &str) -> String {
    let mut out = format!(
        "\n## Time to detect, {name}\n\n| rate, %/min | found | median min | p95 min | lost at \
         alarm, % of the level |\n|---|---|---|---|---|\n"
    );
    for (rate, d) in &s.delays {
        let lost = quantile(&s.lost[rate], 0.5);
        out += &format!(
            "| {rate} | {} | {:.0} | {:.0} | {lost:.0} |\n",
            d.len(),
            quantile(d, 0.5),
            quantile(d, 0.95)
        );
    }
    out += "\n| scenario | found | missed | false alarms | median lost at alarm, % | p95 |\n\
            |---|---|---|---|---|---|\n";
    for (name, (found, missed, alarms, lost)) in &s.by_scenario {
        out += &format!(
            "| {name} | {found} | {missed} | {alarms} | {:.0} | {:.0} |\n",
            quantile(lost, 0.5),
            quantile(lost, 0.95)
        );
    }
    out
}

pub fn calibration(scores: &[Score]) -> String {
    let mut out = String::from(
        "\n## Calibration\n\nVerdicts `leak`, with and without a baseline together.\n\n\
         | confidence | verdicts | mean confidence | share that are leaks |\n|---|---|---|---|\n",
    );
    for k in 0..20 {
        let mut sum = (0, 0, 0.0);
        for s in scores {
            let (n, right, c) = s.calibration[k];
            sum = (sum.0 + n, sum.1 + right, sum.2 + c);
        }
        if sum.0 > 0 {
            let n = f64::from(sum.0);
            out += &format!(
                "| {:.2}–{:.2} | {} | {:.3} | {:.3} |\n",
                k as f64 / 20.0,
                (k + 1) as f64 / 20.0,
                sum.0,
                sum.2 / n,
                f64::from(sum.1) / n
            );
        }
    }
    out
}

pub fn ablation<'a>(rows: impl Iterator<Item = (&'static str, &'a [Score; 2])>) -> String {
    let mut out = String::from(
        "\n## Each layer off in turn\n\nOn a quarter of the series.\n\n| | precision with a \
         baseline | recall | false/day | precision without | recall | false/day |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for (name, [with, without]) in rows {
        let three =
            |s: &Score| format!("{:.3} | {:.3} | {:.3}", s.precision(), s.recall(), s.per_day());
        out += &format!("| {name} | {} | {} |\n", three(with), three(without));
    }
    out
}
