//! The heap profile read from outside is the one that the service itself
//! writes, bucket by bucket, in every version and build.

use std::{io::Read, path::Path, process::Command};

use claw_ebpf::{
    heap::{self, By, Snapshot, Source, rows},
    report::{heap::pprof, pprof::Profile},
};
use prost::Message;

use crate::common::*;

pub fn decode(packed: &[u8]) -> Profile {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    Profile::decode(&*bytes).unwrap()
}

/// A location: its address and its frames as (function, file, line).
type Place = (u64, Vec<(String, String, i64)>);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket {
    stack: Vec<Place>,
    size: i64,
    values: Vec<i64>,
}

/// Buckets with any object, in an order of their own.
pub fn buckets(p: &Profile) -> Vec<Bucket> {
    let text = |i: i64| p.string_table[usize::try_from(i).unwrap()].clone();
    let functions: std::collections::BTreeMap<u64, (String, String)> =
        p.function.iter().map(|f| (f.id, (text(f.name), text(f.filename)))).collect();
    let place = |id: u64| -> Place {
        let l = p.location.iter().find(|l| l.id == id).unwrap();
        let frame = |line: &claw_ebpf::report::pprof::Line| {
            let (name, file) = functions[&line.function_id].clone();
            // A package's `init` spans files, of which Go's writer has one.
            let file = if name.ends_with(".init") { String::new() } else { file };
            (name, file, line.line)
        };
        (l.address, l.line.iter().map(frame).collect())
    };
    let places: std::collections::BTreeMap<u64, Place> =
        p.location.iter().map(|l| (l.id, place(l.id))).collect();
    let mut found: Vec<Bucket> = p
        .sample
        .iter()
        .filter(|s| s.value.iter().any(|v| *v != 0))
        .map(|s| Bucket {
            stack: s.location_id.iter().map(|id| places[id].clone()).collect(),
            size: s.label.iter().find(|l| text(l.key) == "bytes").map_or(0, |l| l.num),
            values: s.value.clone(),
        })
        .collect();
    found.sort();
    found
}

/// Types, units and period: what tools show the profile by.
fn kind(p: &Profile) -> (Vec<(String, String)>, i64, i64) {
    let text = |i: i64| p.string_table[usize::try_from(i).unwrap()].clone();
    let value = |t: &claw_ebpf::report::pprof::ValueType| (text(t.r#type), text(t.unit));
    let all = p.sample_type.iter().chain(&p.period_type);
    (all.map(value).collect(), p.period, p.default_sample_type)
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
    let (ours, own) = (decode(&pprof(ours, 1)), decode(&std::fs::read(own).unwrap()));
    assert_eq!(kind(&ours), kind(&own), "{what}");
    let mapping = |p: &Profile| {
        let m = p.mapping.first().unwrap();
        let file = p.string_table[usize::try_from(m.filename).unwrap()].clone();
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
