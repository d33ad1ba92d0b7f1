//! `baseline save|list|show|diff|rm`, and `detect` with and without one.

use super::{claw, series};

#[test]
fn saved_listed_shown_compared_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let healthy = series(&dir.path().join("a.csv"), 6, &[("api", "acme")], |_, _| 200.0);
    let larger = series(&dir.path().join("b.csv"), 6, &[("api", "acme")], |_, _| 260.0);
    let run = |args: &[&str]| claw(dir.path(), args);
    let (healthy, larger) = (healthy.to_str().unwrap(), larger.to_str().unwrap());

    assert_eq!(run(&["baseline", "list"]), (0, String::new(), String::new()));
    let (code, out, err) = run(&["baseline", "save", "v1", "--from", healthy, "--env", "prod"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("v1.baseline.json: 1 series"), "{out}");
    let (code, _, err) = run(&["baseline", "save", "v1", "--from", larger]);
    assert!(code == 2 && err.contains("exists already; --force"), "{err}");
    assert_eq!(run(&["baseline", "save", "v2", "--from", larger]).0, 0);

    let (code, out, _) = run(&["baseline", "list"]);
    assert_eq!((code, out.lines().count()), (0, 2));
    assert!(out.starts_with("v1\tprod\t1 series\tfrom a.csv\n"), "{out}");
    let (code, out, _) = run(&["baseline", "show", "v1"]);
    assert!(code == 0 && out.contains("api, tenant acme") && out.contains("over 6.0 h"), "{out}");
    let (_, out, _) = run(&["baseline", "show", "v1", "--json"]);
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["entries"][0]["tenant"], "acme");

    assert_eq!(run(&["baseline", "diff", "v1", "v1"]).0, 0);
    let (code, out, _) = run(&["baseline", "diff", "v1", "v2"]);
    assert!(code == 1 && out.starts_with("! api, tenant acme") && out.contains("(+29"), "{out}");

    assert_eq!(run(&["baseline", "rm", "v2"]), (0, String::new(), String::new()));
    let (code, _, err) = run(&["baseline", "show", "v2"]);
    assert!(code == 2 && err.contains("there is no baseline v2"), "{err}");
}

#[test]
fn newer_and_foreign_ones_are_errors_of_one_line() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content, says) in [
        ("newer", r#"{"schema":"claw-ebpf/baseline/99"}"#, "is of version claw-ebpf/baseline/99"),
        ("foreign", r#"{"schema":"other"}"#, "is no baseline of claw-ebpf"),
        ("cut", r#"{"schema":"claw-eb"#, "is no baseline of claw-ebpf"),
    ] {
        std::fs::write(dir.path().join(format!("{name}.baseline.json")), content).unwrap();
        let (code, _, err) = claw(dir.path(), &["baseline", "show", name]);
        assert!(code == 2 && err.contains(says) && err.lines().count() == 1, "{name}: {err}");
    }
}

#[test]
fn baseline_tells_a_warm_up_from_a_leak_and_explain_says_which() {
    let dir = tempfile::tempdir().unwrap();
    let of = [("api", "acme")];
    let daily = |m: f64| 200.0 * (1.0 + 0.3 * (m / 1440.0 * std::f64::consts::TAU).sin());
    let healthy = series(&dir.path().join("healthy.csv"), 24, &of, |_, m| daily(m));
    let same = series(&dir.path().join("same.csv"), 24, &of, |_, m| 1.01 * daily(m));
    let leak = |m: f64| daily(m) + (m - 300.0).max(0.0) * 0.4;
    let leaking = series(&dir.path().join("leak.csv"), 24, &of, |_, m| leak(m));
    let saved = claw(dir.path(), &["baseline", "save", "day", "--from", healthy.to_str().unwrap()]);
    assert_eq!(saved.0, 0);
    let detect = |file: &std::path::Path, more: &[&str]| {
        let args = ["detect", "--input", file.to_str().unwrap(), "--baseline", "day"];
        claw(dir.path(), &[&args, more].concat())
    };
    let (code, out, err) = detect(&same, &["--explain"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("ordinary") || out.contains("diurnal"), "{out}");
    let (code, out, _) = detect(&leaking, &["--format", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, report["findings"][0]["verdict"].as_str()), (1, Some("leak")), "{out}");
    assert_eq!(report["summary"]["with_baseline"], 1);
    let at = report["findings"][0]["detected_at"].as_f64().unwrap();
    assert!((300.0 * 60.0..900.0 * 60.0).contains(&at), "{at}");
    assert_eq!(detect(&leaking, &["--format", "json"]).1, out, "the same bytes");
}
