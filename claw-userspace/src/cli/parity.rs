//! `claw-ebpf parity`

use std::path::Path;

use claw_ebpf::{
    baseline::{self, load_or_learn},
    detect::{
        fleet::{Fleet, Profiles},
        parity::{self, Parity, Unit},
        trend::State,
    },
    input,
    report::{clean::clean, exit::FailOn},
};

use super::{Exit, print};

#[derive(clap::Args)]
pub struct Args {
    /// An environment: series (JSON lines, CSV), a baseline's file or name. At
    /// least two
    #[arg(long, value_name = "NAME=FILE|BASELINE", required = true)]
    env: Vec<String>,

    /// What to write to stdout
    #[arg(long, value_enum, default_value = "text")]
    format: Shape,

    /// `never`: a difference does not make the exit code 1
    #[arg(long, value_enum, default_value = "leak", value_name = "VERDICT")]
    fail_on: FailOn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    Text,
    Json,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut units = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for spec in &args.env {
        let Some((name, source)) =
            spec.split_once('=').filter(|(n, s)| !n.is_empty() && !s.is_empty())
        else {
            anyhow::bail!("--env {spec}: give NAME=FILE, e.g. prod=prod.jsonl");
        };
        if !names.insert(name) {
            anyhow::bail!("--env {name} is given twice: list all its processes in one file");
        }
        units.extend(environment(name, source)?);
    }
    if names.len() < 2 {
        anyhow::bail!("parity compares environments: give --env at least twice");
    }
    let result = parity::compare(&units);
    let text = match args.format {
        Shape::Text => render(&result),
        Shape::Json => serde_json::to_string_pretty(&result)? + "\n",
    };
    print(&text)?;
    let any = |v| result.compared.iter().any(|c| c.verdict == v);
    Ok(if any(Parity::Different) && args.fail_on != FailOn::Never {
        Exit::Found
    } else if any(Parity::Inconclusive) {
        Exit::NoVerdict
    } else {
        Exit::Clean
    })
}

fn environment(name: &str, source: &str) -> anyhow::Result<Vec<Unit>> {
    let profiles = load_or_learn(source)?;
    // Series also say what leaks; a baseline is of a run that did not.
    let fleet = if baseline::is_series(Path::new(source)) {
        let mut fleet = Fleet::new(Profiles::new(), Default::default());
        input::read_fleet(Path::new(source), &mut fleet)?;
        Some(fleet)
    } else {
        None
    };
    let leaking: Option<Vec<_>> = fleet.as_ref().map(|f| {
        let leaks = f.found().into_iter().filter(|f| f.state == State::Leak);
        leaks.map(|f| f.subject.clone()).collect()
    });
    let unit = |(s, p): (&claw_ebpf::detect::series::Subject, &std::sync::Arc<_>)| {
        let p: &claw_ebpf::detect::trend::Profile = p;
        Unit {
            environment: clean(name),
            service: clean(parity::service(&s.process)),
            process: clean(&s.process),
            tenant: clean(&s.tenant),
            site: clean(&s.site),
            coefficient: p.coefficient(),
            per_work: p.load.is_some(),
            leaks: leaking.as_ref().map(|l| l.contains(s)),
        }
    };
    Ok(profiles.iter().map(unit).collect())
}

fn render(r: &parity::Result) -> String {
    let mut out = format!("environments: {}\n", r.environments.join(", "));
    for s in &r.statements {
        out += &format!("{s}\n");
    }
    for c in &r.compared {
        let site = if c.site.is_empty() { String::new() } else { format!(" at {}", c.site) };
        let odd = c.odd.as_ref().map(|o| format!(", {o} is the odd one")).unwrap_or_default();
        out += &format!("\n{}, tenant {}{site}: {:?}{odd}\n", c.service, c.tenant, c.verdict);
        for p in &c.pairs {
            let ratio = match (p.ratio, p.interval90) {
                (Some(r), Some([l, h])) => format!(" {r:.3} (90 %: {l:.3} to {h:.3})"),
                (Some(r), None) => format!(" {r:.3}"),
                _ => String::new(),
            };
            let [a, b] = &p.environments;
            out += &format!("   {b} to {a}:{ratio} {:?}: {}\n", p.verdict, p.why);
        }
    }
    out
}
