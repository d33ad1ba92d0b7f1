//! C extensions of Python services.

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;

use crate::common::{Running, claw_json, marked_line_of, root, watch_until};

/// `native/codec.c` for the `python3` on the path, in a directory.
fn extension(dir: &Path) {
    let ask = |what: &str| {
        let script = format!("import sysconfig; print(sysconfig.{what})");
        let out = Command::new("python3").args(["-c", &script]).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    };
    let file = dir.join(format!("codec{}", ask("get_config_var('EXT_SUFFIX')")));
    let built = Command::new("cc")
        .args(["-O2", "-shared", "-fPIC", "-I", &ask("get_path('include')"), "-o"])
        .arg(file)
        .arg(root().join("tests/fixtures/python/native/codec.c"))
        .status()
        .unwrap();
    assert!(built.success(), "the tests need a C compiler and Python's headers");
}

#[test]
#[ignore = "needs root and BPF"]
fn an_extension_that_leaks_is_named_by_library_and_symbol() {
    let dir = tempfile::tempdir().unwrap();
    extension(dir.path());
    let service = "tests/fixtures/python/native/service.py";
    let start = |how: &str| {
        let mut python = Command::new("python3");
        Running::start(python.arg(root().join(service)).arg(how).arg(dir.path()))
    };
    let (leaking, healthy) = (start("leak"), start("healthy"));
    let (leak, twin) = (leaking.pid().to_string(), healthy.pid().to_string());
    let recording = dir.path().join("run.claw").display().to_string();
    let args =
        ["watch", "--pid", &leak, "--pid", &twin, "--interval", "2s", "--record", &recording];
    let (code, report) = watch_until(&args, Duration::from_secs(50), |found| {
        let named = |f: &Value| f["verdict"] == "leak" && !f["site"]["line"].is_null();
        found.iter().any(named)
    });
    assert_eq!(code, 1, "{report:#}");
    let found = report["findings"].as_array().unwrap();
    assert_eq!(found.len(), 1, "one leak, and the healthy twin stays silent: {found:#?}");
    let f = &found[0];
    assert_eq!((&f["pid"], &f["kind"]), (&leaking.pid().into(), &"rss".into()));
    // Whose it is and which line, not that which frees what it takes, nor that
    // whose memory is bounded.
    assert_eq!((&f["tenant"], &f["site"]["function"]), (&"acme".into(), &"decode".into()), "{f:#}");
    assert_eq!(f["site"]["line"], marked_line_of(service, "# leak: decode"));
    let native = &f["site"]["stack"][0];
    assert_eq!(native["function"], "open_stream", "{f:#}");
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let proof = f["evidence"].as_array().unwrap().iter().map(|e| text(&e["detail"]));
    let said = |d: String| d.contains("open_stream in ") && d.contains("/codec.cpython-");
    assert!({ proof }.any(said), "{f:#}");
    assert!(text(&f["remedy"]["text"]).contains("codec.cpython-"), "{f:#}");

    let (_, again, _) = claw_json(&["replay", &recording, "--format", "json", "-q"]);
    assert_eq!(again["findings"], report["findings"], "a recording gives the same");
}
