//! Servers nobody here wrote, at pinned versions, for `test` and `soak`.

use std::{path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    command::{is_root, status},
    toolchain,
};

/// Built with the toolchain that the tests use most.
const GO: &str = "go1.26.6";
const CADDY: &str = "github.com/caddyserver/caddy/v2/cmd/caddy@v2.10.2";

#[derive(clap::Args)]
pub struct Args {
    /// How long the servers are under load
    #[arg(long, default_value_t = 10, value_name = "N")]
    minutes: u64,
}

/// Build them into target/services, unless they are there.
pub fn install(root: &Path, go: &Path) -> Result<()> {
    let bin = root.join("target/services");
    let go = || {
        let mut c = Command::new(go);
        c.env("GOTOOLCHAIN", GO).env("CGO_ENABLED", "0");
        c
    };
    if !bin.join("caddy").exists() {
        status(go().args(["install", CADDY]).env("GOBIN", &bin))?;
    }
    // etcd's modules replace one another, which `go install` refuses: their
    // versions are pinned by a module of ours.
    for (name, package) in [("etcd", "server"), ("etcdctl", "etcdctl")] {
        if !bin.join(name).exists() {
            status(
                go().args(["build", "-buildvcs=false", "-o"])
                    .arg(bin.join(name))
                    .arg(format!("go.etcd.io/etcd/{package}/v3"))
                    .current_dir(root.join("tests/services/etcd")),
            )?;
        }
    }
    Ok(())
}

/// `cargo xtask soak`: the end-to-end test of the servers, for longer.
pub fn soak(root: &Path, args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "the soak test attaches BPF programs, which needs root: run `sudo -E cargo xtask soak`"
        );
    }
    let go = toolchain::go(root)?;
    install(root, &go)?;
    status(
        Command::new("cargo")
            .args(["test", "--release", "-p", "claw-ebpf", "--test", "e2e", "--"])
            .args(["--ignored", "--exact", "--nocapture", "services::etcd_and_caddy_under_load"])
            .current_dir(root)
            .env("CLAW_GO", &go)
            .env("CLAW_SOAK_SECONDS", (args.minutes * 60).to_string()),
    )
}
