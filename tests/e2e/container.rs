//! A target in a real container: runc on an OCI bundle, no daemon.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::json;

use crate::common::*;

const ID: &str = "3f29c8b2a4d1e6f7980011223344556677889900aabbccddeeff001122334455";
const IMAGE: &str = "registry.example/shop:1.2";

/// Ends with its test, whatever its processes do.
struct Container<'a> {
    runc: Option<Running>,
    id: &'a str,
    pid: u32,
}

impl<'a> Container<'a> {
    fn start(bundle: &Path, id: &'a str) -> Self {
        let pid_file = bundle.join("pid");
        // Where cgroups are mounted in several hierarchies, v2 is what runc gets.
        let script = "mount -t cgroup2 none /sys/fs/cgroup && exec \"$@\"";
        let mut runc = Command::new("unshare");
        runc.args(["--mount", "sh", "-c", script, "sh", "runc", "run", "--bundle"]).arg(bundle);
        runc.arg("--pid-file").arg(&pid_file).arg(id);
        let mut container = Self { runc: None, id, pid: 0 };
        let runc = container.runc.insert(Running::start(&mut runc));
        assert!(runc.first_line.starts_with("ready"), "the container did not start");
        // The program may be quicker than runc.
        let written = || fs::read_to_string(&pid_file).ok()?.trim().parse().ok();
        let mut tries = (0..100).inspect(|_| std::thread::sleep(Duration::from_millis(50)));
        container.pid = tries.find_map(|_| written()).expect("a pid");
        container
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = Command::new("runc").args(["delete", "--force", self.id]).status();
    }
}

/// A bundle that runs `program` from its own, read-only file system.
fn bundle(dir: &Path, program: &Path, args: &[&str]) {
    fs::create_dir_all(dir.join("rootfs")).unwrap();
    fs::copy(program, dir.join("rootfs/service")).unwrap();
    let spec = Command::new("runc").arg("spec").current_dir(dir).status();
    assert!(spec.expect("no runc: run `cargo xtask test`, which installs it").success());
    let config = dir.join("config.json");
    let mut c: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    c["process"]["terminal"] = json!(false);
    c["process"]["args"] = json!(["/service"]);
    c["process"]["args"].as_array_mut().unwrap().extend(args.iter().map(|a| json!(a)));
    c["root"] = json!({"path": "rootfs", "readonly": true});
    c["annotations"] = json!({"org.opencontainers.image.ref.name": IMAGE});
    fs::write(config, c.to_string()).unwrap();
}

#[test]
#[ignore = "needs root and BPF"]
fn leak_in_a_container() {
    let program = build_default("patterns", &["-ldflags=-s -w"]);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    bundle(dirs[0].path(), &program, &["-do", "leak", "-rate", "500", "-churn", "20"]);
    bundle(dirs[1].path(), &program, &["-do", "lru,short", "-churn", "20"]);
    let leaking = Container::start(dirs[0].path(), ID);
    let healthy = Container::start(dirs[1].path(), "by-hand");
    let pids = [&leaking, &healthy].map(|c| c.pid.to_string());
    let mut args = vec!["watch", "--interval", "5s"];
    args.extend(pids.iter().flat_map(|pid| ["--pid", pid.as_str()]));
    let (code, report) = watch_until_found(&args, Duration::from_secs(55), &[leaking.pid]);
    assert_eq!(code, 1, "{report:#}");
    for c in [&leaking, &healthy] {
        let target = report["targets"].as_array().unwrap().iter().find(|t| t["pid"] == c.pid);
        assert_eq!(target.unwrap()["container"], c.id, "{report:#}");
        assert_eq!(target.unwrap()["image"], IMAGE, "{report:#}");
    }
    let found = report["findings"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{found:#?}");
    let f = &found[0];
    assert_eq!((&f["pid"], &f["verdict"]), (&json!(leaking.pid), &json!("leak")));
    assert_eq!(f["tenant"], "acme-corp");
    assert_eq!(f["site"]["function"], "main.grow");
    assert_eq!(f["site"]["line"], marked_line("patterns", "main.go", "LEAK: object"));

    // The whole list knows of it too.
    let listed = claw(&["discover", "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed = listed["processes"].as_array().unwrap().iter().find(|p| p["pid"] == leaking.pid);
    assert_eq!(listed.unwrap()["container"]["image"], IMAGE);
}
