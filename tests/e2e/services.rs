//! Servers nobody here wrote, unmodified, under real clients: no finding, no
//! lost event, and the heap that is seen is the heap they report themselves.
//!
//! `cargo xtask soak` runs the same for ten minutes (`CLAW_SOAK_SECONDS`).

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use claw_ebpf::{
    decode::{Event, What},
    record::Reader,
    stream::Item,
};
use serde_json::Value;

use crate::common::*;

/// Samples that may differ, those taken while the collection ran and the two
/// that a runtime takes before it can record any, and the share of all.
const SAMPLES_APART: f64 = 6.0;
const SHARE_APART: f64 = 0.02;

fn service(name: &str) -> PathBuf {
    let path = root().join("target/services").join(name);
    assert!(path.exists(), "no {}: run `cargo xtask test`, which builds it", path.display());
    path
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A process that stands still at its first instruction, so that a watch sees
/// all that it ever allocates.
struct Held(Running);

impl Held {
    fn start(command: &mut Command) -> Self {
        // SAFETY: only an async-signal-safe call between fork and exec.
        unsafe {
            command.pre_exec(|| {
                let none = std::ptr::null_mut::<libc::c_void>();
                match libc::ptrace(libc::PTRACE_TRACEME, 0, none, none) {
                    -1 => Err(std::io::Error::last_os_error()),
                    _ => Ok(()),
                }
            });
        }
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut status = 0;
        // SAFETY: the child is ours; exec stops it with SIGTRAP.
        let stopped = unsafe { libc::waitpid(child.id() as i32, &mut status, 0) };
        assert!(stopped == child.id() as i32 && libc::WIFSTOPPED(status), "{command:?}: {status}");
        Self(child.into())
    }

    fn release(self) -> Running {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the child is ours and stopped, and this thread is its tracer.
        let detached =
            unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0.pid() as i32, none, none) };
        assert_eq!(detached, 0, "{}", std::io::Error::last_os_error());
        self.0
    }
}

fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn wait_for(address: &str, path: &str) {
    let began = Instant::now();
    while !get(address, path).is_ok_and(|a| a.starts_with("HTTP/1.0 200")) {
        assert!(began.elapsed() < Duration::from_secs(60), "{address} does not answer");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Samples of a heap profile, as taken: in use and ever allocated.
#[derive(Clone, Copy, Debug, Default)]
struct Samples {
    live: f64,
    live_bytes: f64,
    taken: f64,
}

impl Samples {
    /// A server's own, right after a collection: the first line of
    /// `/debug/pprof/heap?debug=1`, "heap profile: 35: 1219792 [1679: …] @ …".
    fn own(address: &str) -> Self {
        let text = get(address, "/debug/pprof/heap?debug=1&gc=1").unwrap();
        let line = text.split("heap profile: ").nth(1).unwrap_or_else(|| panic!("{text}"));
        let numbers: Vec<f64> = line
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|n| n.parse().ok())
            .take(3)
            .collect();
        Self { live: numbers[0], live_bytes: numbers[1], taken: numbers[2] }
    }

    /// What probes saw of `pid` until `t_ns`: allocations up to the last mark
    /// phase, which is as far as the runtime's profile goes, and all frees.
    fn seen(recording: &Path, pid: u32, t_ns: u64) -> Self {
        let (_, reader) = Reader::open(recording).unwrap();
        let events: Vec<Event> = reader
            .filter_map(|item| match item {
                Item::Event(e) if e.pid == pid && e.t_ns <= t_ns => Some(e),
                _ => None,
            })
            .collect();
        let marked = events.iter().rfind(|e| e.what == What::Gc).expect("a collection").t_ns;
        let mut live: HashMap<u64, u64> = HashMap::new();
        let mut taken = 0.0;
        for e in events {
            match e.what {
                What::Alloc { addr, size, .. } if e.t_ns <= marked => {
                    live.insert(addr, size);
                    taken += 1.0;
                }
                What::Free { addr, .. } => {
                    live.remove(&addr);
                }
                _ => {}
            }
        }
        let live_bytes = live.values().sum::<u64>() as f64;
        Self { live: live.len() as f64, live_bytes, taken }
    }
}

fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn start_etcd(dir: &Path, address: &str) -> Held {
    let client = format!("http://{address}");
    let mut etcd = Command::new(service("etcd"));
    etcd.args(["--enable-pprof", "--log-level", "error", "--auto-compaction-mode", "periodic"]);
    etcd.args(["--auto-compaction-retention", "10s", "--listen-client-urls", &client]);
    etcd.args(["--advertise-client-urls", &client]);
    etcd.args(["--listen-peer-urls", &format!("http://{}", free_address())]);
    Held::start(etcd.arg("--data-dir").arg(dir.join("etcd")))
}

/// Caddy as a file server and as a proxy of etcd. Request bodies are buffered:
/// streamed ones it may close under its own transport, which then gives up the
/// answer half read (some 1 of 100,000, watched or not).
fn start_caddy(dir: &Path, address: &str, admin: &str, etcd: &str) -> Held {
    let site = dir.join("site");
    fs::create_dir(&site).unwrap();
    for i in 0..4 {
        let page = "<h1>{{.Req.URL.Path}}</h1>{{range (splitList \",\" \"a,b,c\")}}<p>{{.}}{{end}}";
        fs::write(site.join(format!("page-{i}.html")), page).unwrap();
    }
    let config = format!(
        "{{\n admin {admin}\n persist_config off\n log {{\n level ERROR\n }}\n}}\n\
         http://{address} {{\n encode gzip\n reverse_proxy /v3/* {etcd} {{\n\
         request_buffers 1MiB\n }}\n root * {}\n\
         templates\n file_server browse\n}}\n",
        site.display()
    );
    let file = dir.join("Caddyfile");
    fs::write(&file, config).unwrap();
    let mut caddy = Command::new(service("caddy"));
    caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(file);
    Held::start(&mut caddy)
}

#[test]
#[ignore = "needs root and BPF"]
fn etcd_and_caddy_under_load() {
    let seconds: u64 =
        std::env::var("CLAW_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let clients = build_default("clients", &[]);
    let dir = tempfile::tempdir().unwrap();
    let [etcd_at, caddy_at, admin] = [(); 3].map(|()| free_address());
    let held =
        [start_etcd(dir.path(), &etcd_at), start_caddy(dir.path(), &caddy_at, &admin, &etcd_at)];
    let pids = [&held[0], &held[1]].map(|h| h.0.pid());

    let recording = dir.path().join("run.claw");
    let mut watch = claw(&["watch", "--format", "jsonl", "-q", "--fail-on", "suspect"]);
    watch.args(pids.iter().flat_map(|pid| ["--pid".to_owned(), pid.to_string()]));
    watch.arg("--record").arg(&recording);
    let mut watch = Running::from(watch.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(watch.child.stdout.take().unwrap())
        .lines()
        .map(|l| serde_json::from_str::<Value>(&l.unwrap()).unwrap());
    assert_eq!(lines.by_ref().filter(|l| l["event"] == "target").take(2).count(), 2);
    let lines = std::thread::spawn(move || lines.collect::<Vec<_>>());
    let [_etcd, _caddy] = held.map(Held::release);

    wait_for(&etcd_at, "/health");
    wait_for(&caddy_at, "/");
    let mut watcher = Command::new(service("etcdctl"));
    watcher.args(["--endpoints", &etcd_at, "watch", "--prefix", "key/"]);
    let _watcher = Running::from(watcher.stdout(Stdio::null()).spawn().unwrap());
    let load = Command::new(clients)
        .args([
            "-etcd",
            &etcd_at,
            "-caddy",
            &caddy_at,
            "-size",
            "16384",
            "-duration",
            &format!("{seconds}s"),
        ])
        .output()
        .unwrap();
    let first_failure = String::from_utf8_lossy(&load.stderr);
    let load: Value = serde_json::from_slice(&load.stdout).unwrap();
    let [requests, failures] = ["requests", "failures"].map(|n| load[n].as_u64().unwrap());
    assert!(requests > seconds * 100, "{load}");
    // A server on a slow disk may keep a client waiting for too long now and then.
    assert!(failures <= requests.div_ceil(100_000), "{load} {first_failure}");
    let own = [&etcd_at, &admin].map(|at| (Samples::own(at), monotonic_ns()));

    // SAFETY: the child is ours and not reaped yet.
    unsafe { libc::kill(watch.pid() as i32, libc::SIGTERM) };
    let code = watch.child.wait().unwrap().code();
    let lines = lines.join().unwrap();
    let report = lines.iter().rfind(|l| l["event"] == "report").expect("a report");
    let mut wrong = Vec::new();
    for (pid, (own, at)) in pids.iter().zip(own) {
        let target = report["targets"].as_array().unwrap().iter().find(|t| t["pid"] == *pid);
        let target = target.unwrap();
        let seen = Samples::seen(&recording, *pid, at);
        println!(
            "{}: {seconds} s, {} events, lost {}; samples taken {} seen {}, in use {} ({} kB) \
             seen {} ({} kB); live {} ± {} bytes; probes took {} of a CPU",
            target["name"],
            target["events"]["received"],
            target["events"]["lost"]["ring_full"],
            own.taken,
            seen.taken,
            own.live,
            own.live_bytes / 1e3,
            seen.live,
            seen.live_bytes / 1e3,
            target["live_bytes"],
            target["live_bytes_se"],
            target["overhead"]["estimated_ratio"],
        );
        for (what, own, seen) in [("taken", own.taken, seen.taken), ("in use", own.live, seen.live)]
        {
            if (own - seen).abs() > SAMPLES_APART + SHARE_APART * own {
                wrong.push(format!("{}: samples {what}: {own}, seen {seen}", target["name"]));
            }
        }
        if target["events"]["lost"]["ring_full"] != 0 || target["blocked"] != serde_json::json!([])
        {
            wrong.push(format!("{target:#}"));
        }
    }
    println!("{} requests", load["requests"]);
    if code != Some(0) {
        wrong.push(format!("exit code {code:?}: {:#} {:#}", report["findings"], report["summary"]));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
