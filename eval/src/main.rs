//! How good the detector is, on series with known truth: `cargo xtask eval`.

mod forests;
mod generate;
mod machine;
mod ours;
mod outliers;
mod random;
mod references;
mod score;
mod table;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::Parser;
use claw_ebpf::detect::trend::Layers;

use generate::{Ranges, Series, TUNE, WIDE};
use score::{Outcome, Score};

#[derive(Parser)]
struct Args {
    /// The series that tuning looks at, instead of those it never saw
    #[arg(long)]
    tune: bool,
    /// Leak-free process-days; there are six leaking series to ten of them
    #[arg(long, default_value_t = 4000)]
    days: u64,
    /// Folder of real series of machines: *.csv.gz of seconds,memory_percent
    #[arg(long, env = "CLAW_EVAL_MACHINE_MEMORY", value_name = "DIR")]
    machine_memory: Option<PathBuf>,
    /// Folder of public outlier sets: *.dat of rows of numbers and a class,
    /// `positive` or `negative`
    #[arg(long, value_name = "DIR")]
    outlier_sets: Option<PathBuf>,
    /// Also write the tables to FILE
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Name each series that was judged wrongly
    #[arg(long)]
    verbose: bool,
    /// Only the detector itself, no comparison
    #[arg(long)]
    quick: bool,
}

/// Files of a folder with this extension, by name.
fn files_in(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    Ok(files)
}

/// Percent per minute.
const RATES: [f64; 7] = [5.2, 2.0, 0.5, 0.2, 0.1, 0.03, 0.02];

fn each(args: &Args, days: u64, mut with: impl FnMut(&Series)) {
    let (seeds, ranges): (u64, &Ranges) =
        if args.tune { (1 << 32, &TUNE) } else { (37 << 40, &WIDE) };
    for i in 0..days {
        with(&generate::series(seeds + i, ranges, None, 24.0));
    }
    for i in 0..days * 6 / 10 {
        let rate = RATES[(i % RATES.len() as u64) as usize];
        let hours = if rate < 0.05 { 48.0 } else { 24.0 };
        with(&generate::series(seeds + (1 << 24) + i, ranges, Some(rate), hours));
    }
}

type Detector = Box<dyn Fn(&Series) -> Outcome>;

fn only(alarms: Vec<f64>) -> Outcome {
    Outcome { alarms, confidence: None }
}

fn detectors() -> Vec<(&'static str, Detector)> {
    vec![
        ("10-min slope > 5.2 %/min", Box::new(|s| only(references::fixed_threshold(&s.points)))),
        ("least squares > 10 MB/h", Box::new(|s| only(references::megabytes_per_hour(&s.points)))),
        ("Mann–Kendall, 1 h", Box::new(|s| only(references::mann_kendall(&s.points)))),
        (
            "isolation forest alone",
            Box::new(|s| only(references::forest_alone(&s.points, &s.baseline))),
        ),
    ]
}

fn ablations() -> Vec<(&'static str, Layers)> {
    let all = Layers::default();
    vec![
        ("all layers", all),
        ("no envelope", Layers { envelope: false, ..all }),
        ("no load adjustment", Layers { load: false, ..all }),
        ("no test for bends", Layers { bend: false, ..all }),
        ("no test for steps", Layers { step: false, ..all }),
        ("own falls not counted", Layers { own_falls: false, ..all }),
        ("no doubt in warm-up", Layers { warm_up: false, ..all }),
        ("one hit is enough", Layers { hits: false, ..all }),
    ]
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut all = [Score::default(), Score::default()];
    let others = if args.quick { Vec::new() } else { detectors() };
    let mut reference = vec![Score::default(); others.len()];
    each(&args, args.days, |s| {
        let profile = ours::profile(&s.baseline);
        for (score, p) in all.iter_mut().zip([None, Some(profile)]) {
            let with = p.is_some();
            let o = ours::outcome(s, p, Layers::default());
            if args.verbose && score.is_wrong(s, &o) {
                let kind = if with { "with" } else { "without" };
                let known = (s.points[0].load.is_finite(), s.points[0].uptime.is_finite());
                println!("{kind} {:?} {:?} {known:?} {:?}", s.scenario, s.leak, o.alarms);
            }
            score.add(s, &o);
        }
        for (score, (_, detect)) in reference.iter_mut().zip(&others) {
            score.add(s, &detect(s));
        }
    });
    let mut rows: Vec<(&str, &Score)> =
        vec![("ours, with a baseline", &all[1]), ("ours, without", &all[0])];
    rows.extend(others.iter().map(|(name, _)| *name).zip(&reference));
    let mut out = table::detectors(&rows);
    out += &table::delays(&all[1], "with a baseline");
    out += &table::delays(&all[0], "without a baseline");
    out += &table::calibration(&all);
    if !args.quick {
        let layers = ablations();
        let mut off = vec![[Score::default(), Score::default()]; layers.len()];
        each(&args, args.days / 4, |s| {
            let profile = ours::profile(&s.baseline);
            for (scores, (_, layers)) in off.iter_mut().zip(&layers) {
                scores[0].add(s, &ours::outcome(s, Some(profile.clone()), *layers));
                scores[1].add(s, &ours::outcome(s, None, *layers));
            }
        });
        let names = layers.iter().map(|(name, _)| *name);
        out += &table::ablation(names.zip(&off));
        out += &format!("\n## The two forests\n\n{}", forests::compare(100));
        out += &match &args.outlier_sets {
            Some(dir) => outliers::compare(dir)?,
            None => "\nPublic sets left out: --outlier-sets DIR was not given.\n".to_owned(),
        };
        let (rate, bytes) = ours::speed(1000, 4_000_000);
        let (many, _) = ours::speed(1_000_000, 20_000_000);
        out += &format!(
            "\n## Speed\n\n{:.1} M points per second on one core with 1000 series, {:.1} M with a \
             million; at most {bytes} bytes a series.\n",
            rate / 1e6,
            many / 1e6
        );
    }
    out += "\n## Real machines\n\n";
    out += &match &args.machine_memory {
        Some(dir) => machine::run(dir)?,
        None => "Left out: --machine-memory DIR was not given.\n".to_owned(),
    };
    print!("{out}");
    if let Some(path) = &args.out {
        fs::write(path, format!("{}{out}", table::HEAD))?;
    }
    Ok(())
}
