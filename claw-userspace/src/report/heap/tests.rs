use std::io::Read;

use prost::Message;
use serde_json::{Value, json};

use super::*;
use crate::{
    heap::{Sample, subtract},
    report::{pprof::Profile, text::Style, text::WIDTH},
    symbol::{Frame, Location, Origin},
};

fn frame(function: &str, line: u32, inlined: bool) -> Frame {
    let origin = Origin::Main;
    let file = "/src/main.go".to_owned();
    Frame { function: function.to_owned(), file, line, start_line: 10, inlined, origin }
}

fn sample(line: u32, inuse_objects: i64) -> Sample {
    let place = |address, frames| Location { return_address: address, frames };
    Sample {
        stack: vec![
            place(
                0x40_1000 + u64::from(line),
                vec![frame("main.g\x1b[2Jrow", line, true), frame("main.f", 20, false)],
            ),
            place(0x40_2000, vec![frame("main.main", 30, false)]),
        ],
        object_size: Some(64),
        type_name: None,
        values: Values {
            alloc_objects: Some(inuse_objects + 5),
            alloc_space: Some((inuse_objects + 5) * 64),
            inuse_objects,
            inuse_space: inuse_objects * 64,
        },
    }
}

fn snapshot(samples: Vec<Sample>) -> Snapshot {
    Snapshot {
        pid: Some(7),
        core: None,
        name: "svc".into(),
        runtime: "go",
        version: "go1.26.6".into(),
        sample_rate: Some(512 << 10),
        samples,
        code: Vec::new(),
        blocked: vec![Blocked { what: "exact counts".into(), why: "they moved ".repeat(20) }],
        holders: Vec::new(),
        cannot: Vec::new(),
        build: Default::default(),
    }
}

fn report(s: &Snapshot, by: By) -> HeapReport {
    let since = Some("old\x1b.pb.gz".to_owned());
    HeapReport::new(s, &Context { wall_ns: 1_700_000_000_000_000_000, host: "h".into(), by, since })
}

fn assert_valid(schema: &Value, document: &Value) {
    let validator = jsonschema::validator_for(schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{document:#}");
}

#[test]
fn json_keeps_to_its_schema() {
    let mut schema: Value = serde_json::from_str(JSON_SCHEMA).unwrap();
    let mut s = snapshot(vec![sample(15, 100), sample(16, -2)]);
    for by in [By::Site, By::Type] {
        let document: Value = serde_json::from_str(&report(&s, by).json().unwrap()).unwrap();
        assert_valid(&schema, &document);
        assert_eq!(document["total"]["inuse_objects"], 98);
    }
    s.samples[0].values.alloc_space = None;
    let lines = report(&s, By::Site).json_lines().unwrap();
    let document: Value = serde_json::from_str(&report(&s, By::Site).json().unwrap()).unwrap();
    assert_valid(&schema, &document);
    let mut wrong = document.clone();
    wrong["rows"][0]["inuse_space"] = json!(null);
    assert!(!jsonschema::is_valid(&schema, &wrong), "the schema accepts anything");
    schema["$ref"] = json!("#/$defs/line");
    let events: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(events.len(), 3);
    for e in &events {
        assert_valid(&schema, e);
    }
}

#[test]
fn text_fits_a_terminal_and_sends_it_nothing() {
    let samples = (0..40).map(|i| sample(100 + i, i64::from(i) * 1_000_000)).collect();
    let text = text(&report(&snapshot(samples), By::Site), Style::Plain);
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{}: {line}", line.chars().count());
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    for part in ["svc (pid 7, go1.26.6)", "main.g[2Jrow", "/src/main.go:139", "10 more"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[test]
fn folded_stacks_are_whole_and_never_negative() {
    let text = folded(&[sample(15, 100), sample(15, 1), sample(16, -200)]);
    assert_eq!(text, "", "the same functions: what shrank weighs more");
    let text = folded(&[sample(15, 100), sample(15, 1)]);
    assert_eq!(text, "main.main;main.f;main.g[2Jrow 6464\n");
}

fn decode(packed: &[u8]) -> Profile {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    Profile::decode(&*bytes).unwrap()
}

#[test]
fn since_a_profile_is_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("old.pb.gz");
    let old = snapshot(vec![sample(15, 100), sample(16, 7), sample(17, 5)]);
    std::fs::write(&file, pprof(&old, 1)).unwrap();
    assert_eq!(decode(&pprof(&old, 1)).sample.len(), 3);

    // The same lines at other addresses: the program was built again.
    let mut moved = sample(15, 150);
    moved.stack[0].return_address += 0x1000;
    let mut now = snapshot(vec![moved, sample(16, 7), sample(18, 1)]);
    subtract(&mut now, &file).unwrap();
    let mut changed: Vec<(u32, i64)> =
        now.samples.iter().map(|s| (s.stack[0].frames[0].line, s.values.inuse_objects)).collect();
    changed.sort_unstable();
    assert_eq!(changed, [(15, 50), (17, -5), (18, 1)]);

    let mut other_rate = snapshot(Vec::new());
    other_rate.sample_rate = Some(4096);
    assert!(subtract(&mut other_rate, &file).unwrap_err().to_string().contains("one sample per"));
    let mut s = snapshot(Vec::new());
    for content in [&b"not gzip"[..], &pprof(&old, 1)[..100]] {
        std::fs::write(&file, content).unwrap();
        let e = subtract(&mut s, &file).unwrap_err().to_string();
        assert!(e.contains("not a heap profile"), "{e}");
    }
}
