//! Developer tasks: `cargo xtask --help`. One file per verb.

mod bench;
mod bpf;
mod command;
mod demo;
mod eval;
mod leaksuite;
mod newest;
mod pyservices;
mod services;
mod test;
mod toolchain;

use std::path::PathBuf;

use clap::Parser;

#[derive(Parser)]
#[command(about = "Developer tasks of claw-ebpf")]
enum Cli {
    /// Measure, as root, what watching costs and finds; writes docs/benchmarks.md
    Bench(bench::Args),
    /// The committed BPF objects
    #[command(subcommand)]
    Bpf(bpf::Bpf),
    /// Watch a sample service that leaks, as root, and check what is found
    Demo,
    /// Run Go's own goroutine-leak programs under `watch`, as root, and compare with what Go
    /// expects of them; writes docs/leak-suite.md
    Leaksuite(leaksuite::Args),
    /// Measure the verdicts over series against known truth and other detectors
    Eval(eval::Args),
    /// Fetch the newest Pythons for the tests, as `test` does
    Pythons,
    /// Watch real Python services of several tenants, as root, on each Python of
    /// this machine, and compare with what they leak; writes docs/python-services.md
    Pyservices,
    /// Watch etcd and caddy under load, as root, and compare with their own profiles
    Soak(services::Args),
    /// Run every test, those on real processes with real probes included
    Test(test::Args),
}

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match Cli::parse() {
        Cli::Bench(args) => bench::run(&root, &args),
        Cli::Bpf(verb) => bpf::run(&root, verb),
        Cli::Demo => demo::run(&root),
        Cli::Leaksuite(args) => leaksuite::run(&root, &args),
        Cli::Eval(args) => eval::run(&root, &args),
        Cli::Pythons => {
            newest::fetch(&root);
            Ok(())
        }
        Cli::Pyservices => pyservices::run(&root),
        Cli::Soak(args) => services::soak(&root, &args),
        Cli::Test(args) => test::run(&root, &args),
    }
}
