//! `cargo xtask demo`: a real service, a real leak, the real report.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    command::{Running, is_root, status},
    toolchain,
};

const TENANT: &str = "acme-corp";
const FILE: &str = "middleware/auth.go";
const SECONDS: u32 = 60;

pub fn run(root: &Path) -> Result<()> {
    if !is_root() {
        bail!("the demo attaches BPF programs, which needs root: run `sudo -E cargo xtask demo`");
    }
    let go = toolchain::go(root)?;
    let out = root.join("target/demo");
    fs::create_dir_all(&out)?;
    status(
        Command::new("cargo").args(["build", "--release", "-p", "claw-ebpf"]).current_dir(root),
    )?;
    for name in ["shop", "load"] {
        status(
            Command::new(&go)
                .args(["build", "-buildvcs=false", "-trimpath", "-o"])
                .arg(out.join(name))
                .arg(".")
                .current_dir(root.join("tests/fixtures/go").join(name)),
        )?;
    }
    let (_shop, ready) = Running::start(Command::new(out.join("shop")).args([
        "-leak",
        "session",
        "-leak-tenant",
        TENANT,
        "-leak-rate",
        "400000",
        "-ballast",
        "50000000",
    ]))?;
    let ready: Value = serde_json::from_str(&ready).context("the shop did not start")?;
    let addr = ready["addr"].as_str().context("the shop gave no address")?.to_owned();
    let pid = ready["pid"].to_string();
    let mut load = Command::new(out.join("load"));
    load.args(["-addr", &addr, "-rate", "2000", "-duration"]).arg(format!("{}s", SECONDS + 60));
    let _load = Running(load.stdout(std::process::Stdio::null()).spawn()?);

    let report = out.join("report.json");
    let mut watch = Command::new(root.join("target/release/claw-ebpf"));
    watch.args(["watch", "--pid", &pid, "--duration"]).arg(format!("{SECONDS}s"));
    watch.arg("--out").arg(&report);
    println!("\n$ sudo claw-ebpf watch --pid {pid} --duration {SECONDS}s\n");
    let code = watch.status()?.code();

    let report: Value = serde_json::from_str(&fs::read_to_string(&report)?)?;
    check(root, &report)?;
    ensure!(code == Some(1), "exit code {code:?} instead of 1");
    println!("\ndemo: tenant, file and line are right");
    Ok(())
}

fn check(root: &Path, report: &Value) -> Result<()> {
    let source = fs::read_to_string(root.join("tests/fixtures/go/shop").join(FILE))?;
    let line = source
        .lines()
        .position(|l| l.contains("// LEAK: session"))
        .context("the leaking line is not marked")?
        + 1;
    let empty = Vec::new();
    let leaks: Vec<&Value> = report["findings"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .filter(|f| f["verdict"] == "leak")
        .collect();
    ensure!(!leaks.is_empty(), "no leak was found");
    for f in leaks {
        let site = &f["site"];
        ensure!(f["tenant"] == TENANT, "wrong tenant: {}", f["tenant"]);
        ensure!(
            site["file"].as_str().is_some_and(|p| p.ends_with(FILE)),
            "wrong file: {}",
            site["file"]
        );
        ensure!(site["line"] == line, "wrong line: {} instead of {line}", site["line"]);
    }
    Ok(())
}
