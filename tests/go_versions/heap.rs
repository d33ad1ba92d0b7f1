//! The heap profile read from outside is the one that the service itself
//! writes, bucket by bucket, in every version and build.

use std::{collections::BTreeMap, path::Path, process::Command};

use claw_ebpf::{
    heap::{self, By, Snapshot, Source, rows},
    report::heap::pprof,
};

use crate::{
    common::*,
    profiles::{Frame, Profile},
};

/// A location: its address and its frames.
type Place = (u64, Vec<Frame>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Bucket {
    stack: Vec<Place>,
    size: i64,
    values: Vec<i64>,
}

/// Buckets with any object, in an order of their own.
fn buckets(p: &Profile) -> Vec<Bucket> {
    let place = |id: &u64| {
        let (address, mut frames) = p.places[id].clone();
        for (name, file, _) in &mut frames {
            // A package's `init` spans files, of which Go's writer has one.
            if name.ends_with(".init") {
                file.clear();
            }
        }
        (address, frames)
    };
    let places: BTreeMap<u64, Place> = p.places.keys().map(|id| (*id, place(id))).collect();
    let mut found: Vec<Bucket> = p
        .raw
        .sample
        .iter()
        .filter(|s| s.value.iter().any(|v| *v != 0))
        .map(|s| Bucket {
            stack: s.location_id.iter().map(|id| places[id].clone()).collect(),
            size: s.label.iter().find(|l| p.text(l.key) == "bytes").map_or(0, |l| l.num),
            values: s.value.clone(),
        })
        .collect();
    found.sort();
    found
}

/// Types, units and period: what tools show the profile by.
fn kind(p: &Profile) -> (Vec<(&str, &str)>, i64, i64) {
    let all = p.raw.sample_type.iter().chain(&p.raw.period_type);
    (all.map(|t| p.value_type(t)).collect(), p.raw.period, p.raw.default_sample_type)
}

/// A program that has written its own profile to `file` and stays.
/// It samples one object per `rate` bytes.
pub fn held(program: &Path, file: &Path, rate: u32, args: &[&str]) -> Running {
    let rate = format!("-rate={rate}");
    let p = Running::start(Command::new(program).arg(rate).arg("-hold").arg(file).args(args));
    assert_eq!(p.first_line, "ready\n");
    p
}

pub fn read(source: &Source) -> Snapshot {
    heap::read(source, By::Site, None).unwrap_or_else(|e| panic!("{e}"))
}

pub fn assert_equal(ours: &Snapshot, own: &Path, what: &str) {
    let (ours, own) =
        (Profile::unpack(&pprof(ours, 1)), Profile::unpack(&std::fs::read(own).unwrap()));
    assert_eq!(kind(&ours), kind(&own), "{what}");
    let mapping = |p: &Profile| {
        let m = p.raw.mapping.first().unwrap();
        let file = p.text(m.filename).to_owned();
        (m.memory_start, m.memory_limit, m.file_offset, file, m.has_functions)
    };
    assert_eq!(mapping(&ours), mapping(&own), "{what}");
    let (a, b) = (buckets(&ours), buckets(&own));
    assert!(b.len() > 20, "{what}: {}", b.len());
    assert!(b.iter().any(|b| b.stack.iter().any(|(_, f)| f.len() > 1)), "{what}: inlined calls");
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(&b) {
        assert_eq!((&a.stack, a.size), (&b.stack, b.size), "{what}");
        // Go's exp() and the C library's may differ in the last bit.
        let near = a.values.iter().zip(&b.values).all(|(a, b)| (a - b).abs() <= 1);
        assert!(near, "{what}: {a:?} {b:?}");
    }
}

#[test]
fn as_the_service_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.pb.gz");
    for version in VERSIONS {
        for flags in [
            &[][..],
            &["-ldflags=-s -w"],
            &["-buildmode=pie"],
            &["-buildmode=pie", "-ldflags=-s -w"],
        ] {
            let Some(program) = build(version, "symbols", flags) else { continue };
            for (rate, args) in [(512, &[][..]), (1, &["-gc=false"])] {
                let p = held(&program, &own, rate, args);
                let ours = read(&Source::Process(p.pid()));
                assert_equal(&ours, &own, &format!("Go {version} {flags:?} {args:?}"));
                assert!(ours.blocked.is_empty(), "{:?}", ours.blocked);
            }
        }
    }
}

/// What the calls into the allocator say of types, without DWARF.
#[test]
fn types_by_call_site() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.pb.gz");
    for version in VERSIONS {
        let Some(program) = build(version, "symbols", &["-ldflags=-s -w"]) else { continue };
        let p = held(&program, &own, 1, &[]);
        let found = heap::read(&Source::Process(p.pid()), By::Type, None).unwrap();
        let rows = rows(&found.samples, By::Type);
        let held = |name: &str| {
            let row = rows.iter().find(|r| r.type_name.as_deref() == Some(name));
            row.map_or(0, |r| r.values.inuse_space)
        };
        for name in ["main.tree", "string", "[]uint8", "[]int", "[]interface {}"] {
            assert!(held(name) > 0, "Go {version}: {name}: {rows:#?}");
        }
        let total: i64 = rows.iter().map(|r| r.values.inuse_space).sum();
        let known: i64 =
            rows.iter().filter(|r| r.type_name.is_some()).map(|r| r.values.inuse_space).sum();
        assert!(known * 10 > total * 8, "Go {version}: {known} of {total}");
    }
}
