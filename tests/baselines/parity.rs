//! `parity` over files of series, as text and JSON.

use super::{claw, series};

const PROCESSES: [(&str, &str); 6] = [
    ("api-1", "acme"),
    ("api-2", "acme"),
    ("api-3", "acme"),
    ("api-1", "zeta"),
    ("api-2", "zeta"),
    ("api-3", "zeta"),
];

#[test]
fn leak_isolated_to_production_not_tenant_specific() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, rate: f64| {
        let size = move |k: usize, m: f64| 200.0 + k as f64 + rate * (m - 120.0).max(0.0);
        series(&dir.path().join(name), 12, &PROCESSES, size).display().to_string()
    };
    let (prod, staging, canary) =
        (file("prod.csv", 0.5), file("staging.csv", 0.0), file("canary.csv", 0.0));
    let envs = [format!("prod={prod}"), format!("staging={staging}"), format!("canary={canary}")];
    let args = ["parity", "--env", &envs[0], "--env", &envs[1], "--env", &envs[2]];
    let (code, text, err) = claw(dir.path(), &args);
    assert_eq!(code, 1, "{text}{err}");
    let says = "api: leak isolated to prod, not tenant-specific";
    assert!(text.contains(says), "{text}");
    assert!(text.contains("prod is the odd one"), "{text}");
    let (code, json, _) = claw(dir.path(), &[&args[..], &["--format", "json"]].concat());
    let result: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, result["statements"][0].as_str()), (1, Some(says)));
    assert_eq!(result["compared"][0]["odd"], "prod");
    assert_eq!(result["compared"][0]["verdict"], "different");

    // Its healthy twin.
    let two = ["parity", "--env", &envs[1], "--env", &envs[2]];
    let (code, text, err) = claw(dir.path(), &two);
    assert_eq!(code, 0, "{text}{err}");
    assert!(text.contains("Equivalent") && !text.contains("leak"), "{text}");
}

#[test]
fn few_processes_are_inconclusive() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(format!("{name}.csv"));
        format!("{name}={}", series(&path, 6, &PROCESSES[..1], |_, _| 200.0).display())
    };
    let (a, b) = (file("prod"), file("staging"));
    let (code, text, _) = claw(dir.path(), &["parity", "--env", &a, "--env", &b]);
    assert!(code == 3 && text.contains("Inconclusive"), "{text}");
    let (code, _, err) = claw(dir.path(), &["parity", "--env", &a]);
    assert!(code == 2 && err.contains("at least twice"), "{err}");
}
