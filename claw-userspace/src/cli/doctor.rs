//! `claw-ebpf doctor`

use crate::cli::Exit;
use claw_ebpf::{probe::Probes, target::capability};

#[derive(clap::Args)]
pub struct Args {
    /// Write JSON instead of text
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let mut checks = capability::checks();
    // The proof of the pudding: does the kernel take the programs?
    let loaded = Probes::load(&[], 64 << 10, false);
    checks.push(capability::Check {
        name: "BPF programs",
        ok: loaded.is_ok(),
        detail: match &loaded {
            Ok(_) => "load and pass the verifier".into(),
            Err(e) => e.to_string(),
        },
        remedy: loaded.is_err().then_some("see the lines above"),
    });
    let text = if args.json {
        serde_json::to_string_pretty(&checks)? + "\n"
    } else {
        capability::render(&checks)
    };
    super::print(&text)?;
    let all = checks.iter().all(|c| c.ok);
    Ok(if all { Exit::Clean } else { Exit::NoVerdict })
}
