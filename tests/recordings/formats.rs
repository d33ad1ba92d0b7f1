//! Every format of the report, against its schema or its reader, and the exit
//! codes that scripts rely on.

use std::{collections::BTreeSet, fs, io::Read};

use claw_ebpf::{
    report::{pprof, text},
    stream::{Blocked, Container},
};
use prost::Message;
use serde_json::{Value, json};

use super::*;

const SCHEMA: &str = include_str!("../../claw-userspace/schema/report-1.json");

fn assert_valid(schema: &Value, document: &Value) {
    let validator = jsonschema::validator_for(schema).unwrap();
    let errors: Vec<String> =
        validator.iter_errors(document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}\n{document:#}");
}

fn line_schema() -> Value {
    let mut schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let definitions = schema["$defs"].take();
    json!({"$schema": schema["$schema"], "$defs": definitions, "$ref": "#/$defs/line"})
}

#[test]
fn json_keeps_to_its_schema() {
    let dir = tempfile::tempdir().unwrap();
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    for items in [leaking(90.0), healthy(), vec![], with_everything()] {
        let (_, report) = replay_json(&record(dir.path(), "a.claw", items));
        assert_valid(&schema, &report);
    }
    let (_, report) = replay_json(&record(dir.path(), "a.claw", leaking(90.0)));
    let mut wrong = report.clone();
    wrong["findings"][0]["verdict"] = json!("perhaps");
    assert!(!jsonschema::is_valid(&schema, &wrong), "the schema accepts anything");
    wrong = report;
    wrong["summary"].as_object_mut().unwrap().remove("lost_events");
    assert!(!jsonschema::is_valid(&schema, &wrong), "the schema accepts anything");
}

#[test]
fn json_lines_keep_to_their_schema() {
    let dir = tempfile::tempdir().unwrap();
    let out = replay(&record(dir.path(), "a.claw", leaking(90.0)), &["--format", "jsonl"]);
    assert_eq!(out.status.code(), Some(1));
    let schema = line_schema();
    let mut kinds = BTreeSet::new();
    for line in String::from_utf8(out.stdout).unwrap().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        assert_valid(&schema, &value);
        kinds.insert(value["event"].as_str().unwrap().to_owned());
    }
    let expected = ["finding", "interval", "report", "step", "target"];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// A target with all that can be said of one.
fn with_everything() -> Vec<Item> {
    let mut items = leaking(90.0);
    let first = items.iter().position(|i| matches!(i, Item::Event(_))).unwrap();
    items.insert(first, Item::Before { pid: PID, bucket: 20, size: 512, samples: 7, rate: RATE });
    for item in &mut items {
        match item {
            Item::Target(info) => {
                info.name = format!("evil\x1b[2J{}", "n".repeat(300));
                info.version = "go1.26.6\x07".into();
                info.stripped = true;
                info.container = Some(Container {
                    id: "0123456789abcdef".repeat(4),
                    image: Some(format!("registry.example/{}:1", "image/".repeat(40))),
                    pod_uid: None,
                });
                info.blocked =
                    vec![Blocked { what: "heap".into(), why: "a long reason, told ".repeat(20) }];
            }
            Item::Frames { frames, .. } => {
                for f in frames {
                    f.function = format!("main.\x1b[31m{}", "f".repeat(300));
                    f.file = format!("/src/{}/x.go", "é".repeat(200));
                }
            }
            _ => {}
        }
    }
    items
}

#[test]
fn text_fits_a_terminal_and_sends_it_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut shown = Vec::new();
    for items in [leaking(90.0), healthy(), with_everything()] {
        let out = replay(&record(dir.path(), "a.claw", items), &["--format", "text", "--no-color"]);
        let text = String::from_utf8(out.stdout).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= text::WIDTH, "{}: {line}", line.chars().count());
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        shown.push(text);
    }
    for part in ["LEAK: memory allocated for tenant acme", "→ main.f20", "/src/main.go:120"] {
        assert!(shown[0].contains(part), "no {part:?} in\n{}", shown[0]);
    }
    assert!(shown[1].contains("No leak found"), "{}", shown[1]);
    assert!(shown[2].contains("blocked: heap"), "{}", shown[2]);
}

#[test]
fn exit_codes() {
    let dir = tempfile::tempdir().unwrap();
    let code = |items: Vec<Item>, args: &[&str]| {
        replay(&record(dir.path(), "a.claw", items), args).status.code()
    };
    assert_eq!(code(leaking(90.0), &[]), Some(1));
    assert_eq!(code(leaking(90.0), &["--fail-on", "never"]), Some(0));
    assert_eq!(code(healthy(), &[]), Some(0));
    assert_eq!(code(leaking(5.0), &[]), Some(3), "too short to tell");
    assert_eq!(code(vec![], &[]), Some(3), "nothing was watched");
    let out = record(dir.path(), "a.claw", healthy());
    assert_eq!(replay(&out, &["--format", "xml"]).status.code(), Some(2));
    assert_eq!(replay(&out, &["--out", "/nowhere/x.json"]).status.code(), Some(2));
}

#[test]
fn lost_events_weaken_what_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let with = |lost| {
        let mut items = leaking(90.0);
        items.insert(1, counters(lost));
        replay_json(&record(dir.path(), "a.claw", items))
    };
    let (code, report) = with(0);
    assert_eq!((code, &report["findings"][0]["verdict"]), (1, &json!("leak")));
    let (code, report) = with(200);
    assert_eq!(code, 3, "a sixth of the events is lost");
    assert_eq!(report["findings"][0]["verdict"], "suspect");
    assert_eq!(report["summary"]["lost_events"], 200);
    assert!(report["summary"]["why_not_enough"].as_str().unwrap().contains("17 % of the events"));
}

#[test]
fn every_file_format_is_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    let recording = record(dir.path(), "a.claw", leaking(90.0));
    let file = |name: &str| dir.path().join(name);
    let names = ["a.json", "a.jsonl", "a.txt", "a.pb.gz", "a.folded"];
    let files: Vec<String> = names.iter().map(|n| file(n).to_str().unwrap().to_owned()).collect();
    let args: Vec<&str> = files.iter().flat_map(|f| ["--out", f.as_str()]).collect();
    assert_eq!(replay(&recording, &args).status.code(), Some(1));

    let text = |name: &str| fs::read_to_string(file(name)).unwrap();
    let report: Value = serde_json::from_str(&text("a.json")).unwrap();
    assert_eq!(report["findings"][0]["tenant"], "acme");
    assert!(text("a.txt").contains("LEAK"));
    let folded = text("a.folded");
    let weight: f64 = folded
        .lines()
        .find_map(|l| l.strip_prefix("acme;main.f20 "))
        .and_then(|w| w.parse().ok())
        .unwrap_or_else(|| panic!("{folded}"));
    assert!((weight / report["findings"][0]["live"]["bytes"].as_f64().unwrap() - 1.0).abs() < 1e-3);

    let mut raw = Vec::new();
    let gz = fs::File::open(file("a.pb.gz")).unwrap();
    flate2::read::GzDecoder::new(gz).read_to_end(&mut raw).unwrap();
    let profile = pprof::Profile::decode(raw.as_slice()).unwrap();
    let string = |i: i64| profile.string_table[usize::try_from(i).unwrap()].as_str();
    let types: Vec<&str> = profile.sample_type.iter().map(|t| string(t.r#type)).collect();
    assert_eq!(types, ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"]);
    let leak = profile.sample.iter().find(|s| string(s.label[0].str) == "acme").unwrap();
    assert_eq!(string(leak.label[0].key), "tenant");
    assert!((leak.value[3] as f64 - weight).abs() < 1.0);
    for s in &profile.sample {
        assert!(s.location_id.iter().all(|id| profile.location.iter().any(|l| l.id == *id)));
    }
}
