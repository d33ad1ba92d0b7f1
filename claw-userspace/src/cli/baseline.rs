//! `claw-ebpf baseline save|list|show|diff|rm`

use std::path::PathBuf;

use claw_ebpf::{
    baseline::{self, Baseline, BaselineError, folder, path_of},
    detect::{series::Subject, trend::Profile},
    report::text::bytes,
};

use super::{Exit, print};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Learn a baseline from a healthy run and keep it under NAME
    Save(Save),
    /// List the named baselines
    List,
    /// Show what a baseline holds
    Show {
        name: String,
        /// As the JSON document that it is
        #[arg(long)]
        json: bool,
    },
    /// Compare two baselines; exit code 1 when a level differs by over 10 %
    Diff { a: String, b: String },
    /// Remove a baseline
    Rm { name: String },
}

#[derive(clap::Args)]
struct Save {
    /// Name, or path of the file
    name: String,
    /// Series (JSON lines, CSV) or a recording made with `watch --record`
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Environment it was learned in
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
    /// Replace one of the same name
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.verb {
        Verb::Save(save) => {
            let path = path_of(&save.name)?;
            let profiles = baseline::learn_any(&save.from)?;
            let source = save.from.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let b = Baseline::new(&save.name, save.env.clone(), &source, &profiles);
            b.save(&path, save.force)?;
            print(format!("{}: {} series\n", path.display(), b.entries.len()))?;
        }
        Verb::List => {
            for name in baseline::list(&folder())? {
                let line = match Baseline::load(&name) {
                    Ok(b) => {
                        let env = b.environment.as_deref().unwrap_or("-");
                        format!("{name}\t{env}\t{} series\tfrom {}\n", b.entries.len(), b.source)
                    }
                    Err(e) => format!("{name}\tunreadable: {e}\n"),
                };
                print(&line)?;
            }
        }
        Verb::Show { name, json } => {
            let b = Baseline::load(name)?;
            if *json {
                print(&(serde_json::to_string_pretty(&b)? + "\n"))?;
            } else {
                print(show(&b))?;
            }
        }
        Verb::Diff { a, b } => return diff(&Baseline::load(a)?, &Baseline::load(b)?),
        Verb::Rm { name } => {
            // Only what is a baseline is removed.
            match Baseline::load(name) {
                Ok(_) | Err(BaselineError::Version { .. }) => {}
                Err(e) => return Err(e.into()),
            }
            let path = path_of(name)?;
            std::fs::remove_file(&path)
                .map_err(|e| anyhow::anyhow!("cannot remove {}: {e}", path.display()))?;
        }
    }
    Ok(Exit::Clean)
}

fn words(s: &Subject) -> String {
    let site = if s.site.is_empty() { String::new() } else { format!(" at {}", s.site) };
    claw_ebpf::report::clean::clean(&format!("{}, tenant {}{site}", s.process, s.tenant))
}

fn level(p: &Profile) -> String {
    match p.load {
        Some(_) => format!("{} ({} per unit of work)", bytes(p.level), bytes(p.coefficient())),
        None => bytes(p.level),
    }
}

fn show(b: &Baseline) -> String {
    let env = b.environment.as_deref().unwrap_or("-");
    let mut out = format!("{}: environment {env}, learned from {}\n", b.name, b.source);
    for e in &b.entries {
        let p = &e.profile;
        let most = |v: &[f64]| bytes(v.iter().copied().fold(0.0, f64::max));
        out += &format!(
            "{}: {} over {:.1} h; rises of up to {}, falls of up to {}\n",
            words(&e.subject),
            level(p),
            p.seconds / 3600.0,
            most(&p.rose),
            most(&p.fell)
        );
    }
    out
}

fn diff(a: &Baseline, b: &Baseline) -> anyhow::Result<Exit> {
    let (left, right) = (a.profiles(), b.profiles());
    let (mut out, mut differs) = (String::new(), false);
    for (s, p) in &left {
        let Some(q) = right.get(s) else {
            out += &format!("- {}: {}\n", words(s), level(p));
            differs = true;
            continue;
        };
        let ratio = q.coefficient() / p.coefficient().max(f64::MIN_POSITIVE);
        let far = !(0.9..=1.1).contains(&ratio);
        differs |= far;
        let mark = if far { "!" } else { " " };
        let change = (ratio - 1.0) * 100.0;
        out += &format!("{mark} {}: {} → {} ({change:+.1} %)\n", words(s), level(p), level(q));
    }
    for (s, q) in right.iter().filter(|(s, _)| !left.contains_key(*s)) {
        out += &format!("+ {}: {}\n", words(s), level(q));
        differs = true;
    }
    print(&out)?;
    Ok(if differs { Exit::Found } else { Exit::Clean })
}
