//! `docs/benchmarks.md`: a section for each part, kept until the part is
//! measured again.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

use super::Rows;
use crate::command::output;

const HEAD: &str = "# Benchmarks\n\n\
    Written by `cargo xtask bench [PART]`. Ratios are throughput with over throughput without, each\n\
    watched window against the unwatched ones on both sides of it; median, or where it says so the\n\
    Hodges-Lehmann estimate, and in brackets its 95 % interval.\n";

pub fn render(rows: &Rows) -> String {
    let mut text = "| What | Measured | Aim |\n|---|---|---|\n".to_owned();
    for [what, figure, aim] in rows {
        text += &format!("| {what} | {figure} | {aim} |\n");
    }
    text
}

/// The section of `part` in place of the one that is there, `parts` being the
/// order of all.
pub fn write(path: &Path, parts: &[&str], part: &str, rows: &Rows) -> Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    fs::write(path, update(&old, parts, part, &format!("{}\n\n{}", conditions()?, render(rows))))?;
    Ok(())
}

fn conditions() -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let kernel = output(Command::new("uname").arg("-r"))?;
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    Ok(format!("{}: {cpus} CPUs, Linux {kernel}.", date.trim()))
}

fn update(old: &str, parts: &[&str], part: &str, new: &str) -> String {
    let kept = |name: &str| {
        old.split("\n## ").skip(1).find_map(|s| s.split_once("\n\n").filter(|(n, _)| *n == name))
    };
    let mut text = HEAD.to_owned();
    for name in parts {
        let body = if *name == part { Some(new) } else { kept(name).map(|(_, body)| body) };
        if let Some(body) = body {
            text += &format!("\n## {name}\n\n{}\n", body.trim_end());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_parts_are_kept() {
        let parts = ["one", "two"];
        let first = update("", &parts, "two", "2 CPUs.\n\n| b |\n");
        let both = update(&first, &parts, "one", "2 CPUs.\n\n| a |\n");
        assert!(both.starts_with(HEAD));
        assert!(both.ends_with("\n## one\n\n2 CPUs.\n\n| a |\n\n## two\n\n2 CPUs.\n\n| b |\n"));
        let again = update(&both, &parts, "two", "4 CPUs.\n\n| c |\n");
        assert!(again.contains("| a |") && again.contains("| c |") && !again.contains("| b |"));
    }
}
