//! The rolling store: killed at any moment, damaged, of another version, full.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use claw_ebpf::{
    baseline::{HourOf, MOST_ROWS, Store, StoreError},
    detect::rolling::Hour,
};

const WRITER: &str = "CLAW_TEST_WRITER";
const NOW: u64 = 500_000;
const TENANTS: usize = 200;

/// All tenants with the same figure, so that half a save would show.
fn save(store: &Store, figure: f64) {
    let rows: Vec<_> = (0..TENANTS)
        .map(|i| (of(NOW, &format!("t{i}")), Hour { log_sum: figure, seconds: figure }))
        .collect();
    store.save(&rows, NOW).unwrap();
}

fn of(hour: u64, tenant: &str) -> HourOf {
    HourOf { hour, process: "api".to_owned(), tenant: tenant.to_owned() }
}

/// Not a test by itself: the process that [`whole_after_kill_9`] kills.
#[test]
#[ignore = "run by another test"]
fn writer() {
    let Some(folder) = std::env::var_os(WRITER) else { return };
    let store = Store::open(Path::new(&folder)).unwrap();
    let known = store.load(NOW).unwrap().first().map_or(0.0, |(_, h)| h.seconds);
    for i in 1.. {
        save(&store, known + f64::from(i));
        // Only what was said to be kept has to be there.
        writeln!(std::io::stderr(), "kept {}", known + f64::from(i)).unwrap();
    }
}

#[test]
fn whole_after_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let (mut kept, mut grew) = (0.0f64, 0);
    for round in 0..20u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::writer", "--ignored", "--nocapture"])
            .env(WRITER, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // From before the file exists to some saves later.
        for _ in 0..round % 3 {
            let _ = lines.next();
        }
        std::thread::sleep(Duration::from_micros((round * 7919) % 20_011));
        child.kill().unwrap();
        child.wait().unwrap();
        let said = lines.map_while(Result::ok);
        let last = said.filter_map(|l| l.strip_prefix("kept ")?.parse().ok()).fold(kept, f64::max);
        let rows = Store::open(dir.path()).unwrap().load(NOW).unwrap();
        let figure = rows.first().map_or(0.0, |(_, h)| h.seconds);
        assert!(rows.is_empty() || rows.len() == TENANTS, "round {round}: {} rows", rows.len());
        assert!(rows.iter().all(|(_, h)| h.seconds == figure), "round {round}: half a save");
        assert!(figure >= last, "round {round}: {last} was kept, {figure} is there");
        grew += u32::from(figure > kept);
        kept = figure;
    }
    assert!(grew >= 5, "too few rounds wrote anything: {grew}");
}

#[test]
fn what_a_kill_left_half_made_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let make = |name: &str, age: Duration| {
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
        (path, file)
    };
    let hour = Duration::from_secs(3600);
    let (left, _) = make("rolling.4711.partial", hour);
    let (young, _) = make("rolling.4712.partial", Duration::ZERO);
    let (held, lock) = make("rolling.4713.partial", hour);
    lock.try_lock().unwrap();
    let (foreign, _) = make("rolling.notes.partial", hour);
    Store::open(dir.path()).unwrap();
    assert!(!left.exists());
    assert!(young.exists(), "another may be about to make it");
    assert!(held.exists(), "another makes it");
    assert!(foreign.exists(), "not of the store");
    drop(lock);
    Store::open(dir.path()).unwrap();
    assert!(!held.exists());
}

#[test]
fn two_days_are_kept_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let seen = Hour { log_sum: 1.0, seconds: 60.0 };
    let hours = |store: &Store| -> Vec<u64> {
        store.load(NOW).unwrap().iter().map(|(of, _)| of.hour).collect()
    };
    let rows: Vec<_> = (NOW - 60..=NOW).map(|h| (of(h, "a"), seen)).collect();
    assert_eq!(store.save(&rows, NOW).unwrap(), 0);
    assert_eq!(hours(&store), (NOW - 47..=NOW).collect::<Vec<_>>());
    let long = (of(NOW, &"x".repeat(300)), seen);
    assert_eq!(store.save(&[long], NOW).unwrap(), 1, "counted, not kept");
    let many: Vec<_> = (0..MOST_ROWS).map(|i| (of(NOW, &format!("m{i}")), seen)).collect();
    assert_eq!(store.save(&many, NOW).unwrap(), 48, "the oldest go, and are counted");
    assert_eq!(hours(&store).len() as u64, MOST_ROWS);
    let bytes = std::fs::metadata(store.path()).unwrap().len();
    assert!(bytes < 64 << 20, "{bytes} bytes");
}

#[test]
fn another_one_that_has_it_open_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::InUse(_))));
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn what_is_no_store_is_refused_and_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rolling.redb");
    {
        save(&Store::open(dir.path()).unwrap(), 7.0);
    }
    let whole = std::fs::read(&file).unwrap();
    let cuts = [0, 100, 4096, whole.len() / 2].map(|n| whole[..n].to_vec());
    let text = b"not a database at all, but long enough to look at\n".repeat(200);
    for bytes in cuts.into_iter().chain([text]) {
        std::fs::write(&file, &bytes).unwrap();
        let e = Store::open(dir.path()).map(|_| ()).unwrap_err();
        assert!(matches!(e, StoreError::Damaged { .. }), "{} bytes: {e:?}", bytes.len());
        let line = e.to_string();
        assert!(line.contains("rolling.redb") && line.contains("--state none"), "{line}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "it is left as it is");
    }
}

#[test]
fn of_a_newer_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rolling.redb");
    {
        let db = redb::Database::create(&file).unwrap();
        let write = db.begin_write().unwrap();
        let table: redb::TableDefinition<'_, &str, &str> = redb::TableDefinition::new("meta");
        write.open_table(table).unwrap().insert("schema", "claw-ebpf/rolling/2").unwrap();
        write.commit().unwrap();
    }
    let e = Store::open(dir.path()).map(|_| ()).unwrap_err();
    assert!(matches!(&e, StoreError::Version { found, .. } if found.ends_with("/2")), "{e:?}");
    assert!(e.to_string().contains("claw-ebpf/rolling/2"));
}

#[test]
fn flipped_bits_give_an_error_or_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rolling.redb");
    {
        save(&Store::open(dir.path()).unwrap(), 7.0);
    }
    let whole = std::fs::read(&file).unwrap();
    let mut refused = 0;
    for i in 0..60usize {
        let mut bytes = whole.clone();
        let at = i * 65_537 % whole.len().min(65_536);
        bytes[at] ^= 1 << (i % 8);
        std::fs::write(&file, &bytes).unwrap();
        match Store::open(dir.path()).and_then(|s| s.load(NOW)) {
            Ok(rows) => {
                assert_eq!(rows.len(), TENANTS, "bit at {at}");
                assert!(rows.iter().all(|(_, h)| h.seconds == 7.0), "bit at {at}");
            }
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().contains('\n'), "{e}");
            }
        }
    }
    assert!(refused > 0, "nothing was damaged");
}
