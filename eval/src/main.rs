//! How good the detector is, on series with known truth: `cargo xtask eval`.

mod generate;
mod ours;
mod random;
mod score;

use clap::Parser;

use generate::{Ranges, Series, TUNE, WIDE};
use score::{Score, quantile};

#[derive(Parser)]
struct Args {
    /// The series that tuning looks at, instead of those it never saw
    #[arg(long)]
    tune: bool,
    /// Leak-free process-days
    #[arg(long, default_value_t = 1000)]
    days: u64,
    /// Show false alarms and misses
    #[arg(long)]
    verbose: bool,
}

/// Percent per minute.
const RATES: [f64; 7] = [5.2, 2.0, 0.5, 0.2, 0.1, 0.03, 0.02];

fn each(args: &Args, mut with: impl FnMut(u64, &Series)) {
    let (seeds, ranges): (u64, &Ranges) = if args.tune { (1 << 32, &TUNE) } else { (7 << 40, &WIDE) };
    for i in 0..args.days {
        with(i, &generate::series(seeds + i, ranges, None, 24.0));
    }
    for i in 0..args.days * 6 / 10 {
        let rate = RATES[(i % RATES.len() as u64) as usize];
        let hours = if rate < 0.05 { 48.0 } else { 24.0 };
        with(args.days + i, &generate::series(seeds + (1 << 24) + i, ranges, Some(rate), hours));
    }
}

fn main() {
    let args = Args::parse();
    let (mut without, mut with) = (Score::default(), Score::default());
    each(&args, |i, s| {
        for (name, score, baseline) in [("without", &mut without, false), ("with", &mut with, true)] {
            let o = ours::outcome(s, baseline, Default::default());
            if args.verbose {
                let bad = match s.leak {
                    None => !o.alarms.is_empty(),
                    Some(l) => !o.alarms.iter().any(|t| *t >= l.onset) || o.alarms.iter().any(|t| *t < l.onset),
                };
                if bad {
                    println!("{i} {name} {:?} {:?} load {} uptime {} gc {} dt {} alarms {:?}", s.scenario, s.leak,
                        s.points[0].load.is_finite(), s.points[0].uptime.is_finite(), s.points[0].gc, s.points[1].t-s.points[0].t, o.alarms);
                }
            }
            score.add(s, &o);
        }
    });
    for (name, s) in [("without", &without), ("with", &with)] {
        println!("{name}: precision {:.3} recall {:.3} false/day {:.3} ({} days)", s.precision(), s.recall(), s.per_day(), s.days);
        for (rate, d) in &s.delays {
            println!("  {rate}: n {} median {:.0} p95 {:.0} lost {:.0} %", d.len(), quantile(d, 0.5), quantile(d, 0.95), quantile(&s.lost[rate], 0.5));
        }
        for (k, (f, m, a, l)) in &s.by_scenario {
            println!("  {k}: found {f} missed {m} false alarms {a} lost {:.0} %", quantile(l, 0.5));
        }
        println!("  {:?}", s.calibration);
    }
}
