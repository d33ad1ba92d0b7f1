//! Baselines, from the command line and on disk: named ones, the rolling store
//! under kill -9, and what is made of them by `detect` and `parity`.
#![allow(clippy::unwrap_used)] // a test may panic

mod named;
mod parity;
mod store;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
};

const MIB: f64 = 1_048_576.0;

/// Exit code, stdout, stderr.
fn claw(folder: &Path, args: &[&str]) -> (i32, String, String) {
    let mut c = Command::new(env!("CARGO_BIN_EXE_claw-ebpf"));
    let out = c.args(args).env("CLAW_EBPF_BASELINES", folder).output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

/// Not random, but without pattern: 0 to 1.
fn noise(i: u64) -> f64 {
    let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((z ^ (z >> 27)) >> 11) as f64 / (1u64 << 53) as f64
}

/// A service's series over `hours`, a value each half minute, as CSV: for each
/// process and tenant its size in MiB at a time in minutes.
fn series(
    path: &Path,
    hours: u64,
    of: &[(&str, &str)],
    size: impl Fn(usize, f64) -> f64,
) -> PathBuf {
    let mut text = String::from("t,process,tenant,live_bytes,load,uptime_s\n");
    for (k, (process, tenant)) in of.iter().enumerate() {
        for i in 0..hours * 120 {
            let t = i as f64 * 30.0;
            let live = size(k, t / 60.0) * MIB * (1.0 + 0.2 * noise(i + 7919 * k as u64));
            let up = t + 86_400.0;
            writeln!(text, "{t},{process},{tenant},{live:.0},100,{up}").unwrap();
        }
    }
    std::fs::write(path, text).unwrap();
    path.to_owned()
}
