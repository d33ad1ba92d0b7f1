//! Recordings and everything that is made of them: replayed whole, cut,
//! damaged and of other versions; the report's formats and exit codes.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

#[path = "../simulate/mod.rs"]
mod simulate;

mod damage;
mod formats;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use claw_ebpf::{
    record::Writer,
    stream::{Counters, Item, Step, StepStatus},
};
use simulate::*;

/// A leak of `tenant` beside garbage, as a recording.
fn record(dir: &Path, name: &str, items: impl IntoIterator<Item = Item>) -> PathBuf {
    let path = dir.join(name);
    let mut w = Writer::create(&path).unwrap();
    w.write(&Item::Session(session())).unwrap();
    for item in items {
        w.write(&item).unwrap();
    }
    path
}

fn leaking(seconds: f64) -> Vec<Item> {
    let leak = Workload {
        tenant: "acme",
        pc: 20,
        bytes_per_s: MIB,
        size: 512,
        life: Life::Stays,
        active: ALWAYS,
    };
    let garbage = Workload { bytes_per_s: MIB, ..garbage() };
    let mut items = stream(&[garbage, leak], seconds, 2.0, 1);
    items.push(Item::Step(Step {
        t_ns: (seconds * 1e9) as u64,
        action: "Detaching".into(),
        detail: "all probes".into(),
        status: StepStatus::Success,
        elapsed_ms: 1,
    }));
    items.push(Item::End { t_ns: (seconds * 1e9) as u64 });
    items
}

fn healthy() -> Vec<Item> {
    let mut items = stream(&[Workload { bytes_per_s: MIB, ..garbage() }], 60.0, 2.0, 1);
    items.push(Item::End { t_ns: 60 * SECOND });
    items
}

fn counters(lost: u64) -> Item {
    Item::Counters(Counters {
        t_ns: SECOND,
        sent: 1000,
        lost: [("ring_full".to_owned(), lost)].into(),
        hits: 1000,
        probe_ns: 400_000,
    })
}

fn replay(path: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_claw-ebpf"))
        .arg("replay")
        .arg(path)
        .args(args)
        .output()
        .unwrap()
}

fn replay_json(path: &Path) -> (i32, serde_json::Value) {
    let out = replay(path, &["--format", "json"]);
    let report = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&out.stderr)));
    (out.status.code().unwrap(), report)
}
