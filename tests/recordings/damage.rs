//! A recording may end anywhere and may be anything.

use std::{fs, path::Path};

use claw_ebpf::{
    decode::{Event, Label, What},
    engine::Engine,
    ledger::Bounds,
    record::{ReadError, Reader, VERSION},
    stream::{Item, Part},
};
use proptest::prelude::*;

use super::*;

fn read(bytes: &[u8]) -> Result<(Vec<Item>, Option<u64>), ReadError> {
    let (_, mut reader) = Reader::new(bytes, Path::new("test.claw"))?;
    let items = reader.by_ref().collect();
    Ok((items, reader.tail().map(|t| t.offset)))
}

fn recorded(seconds: f64) -> (Vec<Item>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let items = leaking(seconds);
    let path = record(dir.path(), "a.claw", items.clone());
    (items, fs::read(path).unwrap())
}

#[test]
fn what_is_whole_is_replayed_wherever_it_is_cut() {
    let (items, bytes) = recorded(3.0);
    let (whole, tail) = read(&bytes).unwrap();
    assert!(whole == items && tail.is_none());
    let (mut before, mut clean) = (0, 0);
    for cut in 0..bytes.len() {
        match read(&bytes[..cut]) {
            Ok((got, tail)) => {
                assert!(got == items[..got.len()], "cut at {cut}");
                assert!(got.len() >= before && got.len() < items.len());
                clean += usize::from(tail.is_none());
                before = got.len();
            }
            Err(ReadError::Magic(_)) => assert!(cut < 8),
            Err(ReadError::Empty(_)) => assert!(before == 0, "cut at {cut}"),
            Err(e) => panic!("cut at {cut}: {e}"),
        }
    }
    assert!(before + 1 == items.len());
    assert_eq!(clean, items.len(), "only a cut between two frames leaves no torn one");
}

#[test]
fn flipped_bits_never_give_a_wrong_item() {
    let (items, bytes) = recorded(3.0);
    for at in 16..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let Ok((got, tail)) = read(&damaged) else { continue };
        assert!(got == items[..got.len()], "bit at {at}");
        assert!(tail.is_some(), "bit at {at}");
    }
}

#[test]
fn the_cut_is_reported_and_the_finding_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "whole.claw", leaking(90.0));
    let bytes = fs::read(&path).unwrap();
    let cut = dir.path().join("cut.claw");
    fs::write(&cut, &bytes[..bytes.len() - 20]).unwrap();
    let ((_, whole), (code, report)) = (replay_json(&path), replay_json(&cut));
    assert_eq!(code, 1);
    let site = |r: &serde_json::Value| r["findings"][0]["site"].clone();
    assert_eq!(site(&report), site(&whole));
    let log = report["execution_log"].as_array().unwrap();
    assert!(log.iter().any(|l| l["detail"].as_str().unwrap().contains("cut at byte")), "{log:#?}");
}

#[test]
fn what_is_no_recording_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = record(dir.path(), "a.claw", healthy());
    let bytes = fs::read(&path).unwrap();
    let [newest, next] = [VERSION, VERSION + 1];
    let newer = [&bytes[..8], &next.to_le_bytes(), &bytes[10..]].concat();
    let refused = format!("format version {next}; this claw-ebpf reads versions 1 to {newest}");
    let cases: [(&[u8], &str); 5] = [
        (b"", "is not a recording of claw-ebpf"),
        (b"CLAWREX\0aaaaaaaaaaaaaaaa", "is not a recording of claw-ebpf"),
        (&newer, &refused),
        (&bytes[..12], "cut before its first item"),
        (&bytes[..20], "cut before its first item"),
    ];
    for (content, message) in cases {
        let file = dir.path().join("bad.claw");
        fs::write(&file, content).unwrap();
        let out = replay(&file, &[]);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(message) && stderr.trim().lines().count() == 1, "{stderr}");
        assert!(out.stdout.is_empty());
    }
    // Later versions only added items.
    let older = dir.path().join("older.claw");
    for version in 1..newest {
        let file = [&bytes[..8], &version.to_le_bytes(), &bytes[10..]].concat();
        fs::write(&older, file).unwrap();
        assert_eq!(replay(&older, &[]).status.code(), Some(0));
    }
    let out = replay(dir.path(), &[]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("cannot read recording"));
}

/// Few identities, so that births, deaths and ends meet; any amounts.
fn any_item() -> impl Strategy<Value = Item> {
    let few = || 0u64..6;
    let pid = || 6u32..9;
    let label = prop::option::of((any::<u8>(), ".{0,70}"))
        .prop_map(|l| l.map(|(key, value)| Label { key, value, cut: key > 9 }));
    let stack = || prop::collection::vec(few(), 0..5);
    let what = prop_oneof![
        (few(), any::<u64>(), label.clone(), stack())
            .prop_map(|(addr, size, label, stack)| What::Alloc { addr, size, label, stack }),
        (few(), any::<u64>(), few()).prop_map(|(addr, size, bucket)| What::Free {
            addr,
            size,
            bucket
        }),
        (few(), few(), label, stack()).prop_map(|(id, gopc, label, stack)| {
            What::GoroutineNew { id, gopc, startpc: 0, label, stack }
        }),
        (few(), few()).prop_map(|(id, gopc)| What::GoroutineExit { id, gopc }),
        Just(What::Gc),
        Just(What::Exec),
        Just(What::Exit),
    ];
    prop_oneof![
        8 => (any::<u64>(), pid(), what).prop_map(|(t_ns, pid, what)| {
            Item::Event(Event { t_ns, pid, tid: pid, goid: 1, what })
        }),
        1 => any::<u64>().prop_map(|t_ns| Item::Tick { t_ns }),
        1 => any::<u64>().prop_map(|t_ns| Item::End { t_ns }),
        1 => (pid(), few()).prop_map(|(pid, pc)| Item::Frames { pid, pc, frames: vec![frame(pc)] }),
        1 => (pid(), few(), stack()).prop_map(|(pid, bucket, stack)| Item::Bucket { pid, bucket, stack }),
        1 => (pid(), any::<u64>())
            .prop_map(|(pid, t_ns)| Item::TargetGone { pid, t_ns, why: "gone".into() }),
        1 => (pid(), any::<u64>()).prop_map(|(pid, t_ns)| Item::Blind {
            pid,
            t_ns,
            part: Part::Heap,
            why: "cost".into()
        }),
        1 => any::<u64>().prop_map(counters),
        1 => Just(target()),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let header = [&b"CLAWREC\0"[..], &[1, 0, 0, 0, 0, 0, 0, 0]].concat();
        let _ = read(&bytes);
        let _ = read(&[header, bytes].concat());
    }

    #[test]
    fn any_items_are_survived(items in prop::collection::vec(any_item(), 0..200)) {
        let mut engine = Engine::new(session(), Bounds::default());
        engine.apply(target());
        for item in items {
            engine.apply(item);
        }
        engine.apply(Item::Tick { t_ns: u64::MAX });
        let report = engine.report();
        serde_json::to_string(&report).unwrap();
        claw_ebpf::report::text::render(&report, claw_ebpf::report::text::Style::Plain);
    }
}
