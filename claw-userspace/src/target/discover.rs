//! Which processes can be watched.

use std::fmt::Write;

use serde::Serialize;

use super::{
    container,
    cpython::{
        binary::{Python, PythonError},
        live::LivePython,
    },
    go::{
        binary::{GoBinary, GoBinaryError},
        layout::GoLayout,
        rate,
        variables::MEM_PROFILE_RATE,
    },
    memory::ProcessMemory,
    process::{Process, ProcessError, all_pids},
};
use crate::{
    probe::Plan,
    report::{clean::clean, text::wrapped},
    stream::{Blocked, Container, Part},
};

/// Build settings that change what can be seen or what it costs.
const SETTINGS: [&str; 8] = [
    "-buildmode",
    "-compiler",
    "-ldflags",
    "-race",
    "-tags",
    "CGO_ENABLED",
    "GOARCH",
    "GOEXPERIMENT",
];

#[derive(Clone, Debug, Serialize)]
pub struct Discovered {
    pub pid: u32,
    pub name: String,
    pub runtime: &'static str,
    pub version: Option<String>,
    pub stripped: Option<bool>,
    pub pie: Option<bool>,
    pub settings: Vec<(String, String)>,
    pub container: Option<Container>,
    /// What can be watched now.
    pub watchable: Vec<&'static str>,
    pub blocked: Vec<Blocked>,
}

/// The processes found, and how many could not be looked at.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Discovery {
    pub processes: Vec<Discovered>,
    pub unreadable: usize,
}

/// All Go and CPython processes. Those that end meanwhile are left out.
///
/// # Errors
/// When /proc cannot be listed.
pub fn discover() -> std::io::Result<Discovery> {
    let mut found = Discovery::default();
    for pid in all_pids()? {
        match Process::open(pid) {
            Ok(process) => found.processes.extend(describe(&process, &mut found.unreadable)),
            Err(ProcessError::Permission(_)) => found.unreadable += 1,
            Err(_) => {}
        }
    }
    Ok(found)
}

fn describe(process: &Process, unreadable: &mut usize) -> Option<Discovered> {
    let container =
        container::of_process(&process.cgroup().unwrap_or_default(), process.namespaced());
    let mut d = Discovered {
        pid: process.pid,
        name: clean(&process.name),
        runtime: "go",
        version: None,
        stripped: None,
        pie: None,
        settings: Vec::new(),
        container,
        watchable: Vec::new(),
        blocked: Vec::new(),
    };
    match GoBinary::open(&process.exe_path()) {
        Ok(binary) => go(&mut d, process, &binary),
        Err(e) if e.is_not_go() => {
            d.runtime = "cpython";
            if !cpython(&mut d, process, unreadable) {
                return None;
            }
        }
        Err(GoBinaryError::Elf(super::elf::ElfError::Io(e)))
            if e.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            *unreadable += 1;
            return None;
        }
        Err(GoBinaryError::Elf(_)) => return None,
        Err(e) => {
            d.blocked.push(Blocked { what: "everything".into(), why: e.to_string() });
        }
    }
    Some(d)
}

fn go(d: &mut Discovered, process: &Process, binary: &GoBinary) {
    d.version = Some(clean(&binary.version.raw));
    d.stripped = Some(binary.stripped());
    d.pie = Some(binary.elf().pie);
    d.settings = SETTINGS
        .iter()
        .filter_map(|k| Some(((*k).to_owned(), clean(binary.build.setting(k)?))))
        .collect();
    if let Err(e) = GoLayout::of(&binary.version) {
        let what = "tenants, goroutines, in-use heap".to_owned();
        d.blocked.push(Blocked { what, why: e.to_string() });
        return;
    }
    let plan = Plan::sampled(binary);
    d.blocked.extend(plan.blocked.iter().cloned());
    let has = |part| plan.points.iter().any(|p| p.program.part() == part);
    if has(Part::Goroutines) {
        d.watchable.push("goroutines");
    }
    if has(Part::Heap) {
        match sample_rate(process, binary) {
            Ok(0) => d.blocked.push(no_samples()),
            Ok(_) => d.watchable.push("heap"),
            Err(why) => d.blocked.push(Blocked { what: Part::Heap.name().into(), why }),
        }
    }
}

/// Said of a program whose heap profiling the linker removed or which turned
/// it off itself.
pub fn no_samples() -> Blocked {
    Blocked {
        what: Part::Heap.name().into(),
        why: "MemProfileRate is 0, the runtime takes no heap samples (the linker turns them off \
              when nothing in the program reads the memory profile); `--heap-rate 512KiB` turns \
              them on while watching"
            .into(),
    }
}

/// The sampling rate in force in a process, bytes.
///
/// # Errors
/// In words, what could not be found or read.
pub fn sample_rate(process: &Process, binary: &GoBinary) -> Result<u64, String> {
    let vaddr = MEM_PROFILE_RATE.find(binary).map_err(|e| e.to_string())?;
    let bias = process.load_bias(binary.elf().first_vaddr()).map_err(|e| e.to_string())?;
    let memory = ProcessMemory::open(process.pid).map_err(|e| e.to_string())?;
    rate::current(process.pid, &memory, vaddr.wrapping_add(bias)).map_err(|e| e.to_string())
}

/// False when it is no CPython process after all, or cannot be looked at.
fn cpython(d: &mut Discovered, process: &Process, unreadable: &mut usize) -> bool {
    let blocked = |what: &str, why| Blocked { what: what.into(), why };
    match Python::of(process) {
        Ok(python) => {
            d.version = Some(python.version.to_string());
            d.stripped = Some(python.stripped);
            d.pie = Some(python.pie);
            if let Err(why) = python.layout() {
                d.watchable.push("resident memory");
                d.blocked.push(blocked("objects and allocation sites", why));
                return true;
            }
            d.watchable.push("heap by type");
            let live = LivePython::open(process.clone()).map_err(|e| e.to_string());
            match live.and_then(|live| live.inside()) {
                Ok(_) => d.watchable.push("heap by site"),
                Err(why) => d.blocked.push(blocked("allocation sites", why)),
            }
            true
        }
        Err(e) if e.is_not_permitted() => {
            *unreadable += 1;
            false
        }
        Err(PythonError::NotPython | PythonError::Process(_)) => false,
        Err(e) => {
            d.watchable.push("resident memory");
            d.blocked.push(blocked("objects and allocation sites", e.to_string()));
            true
        }
    }
}

/// Of what is said below a process.
const INDENT: &str = "          ";

/// A table of at most 100 columns.
pub fn render(d: &Discovery) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>8}  {:<20} {:<9} {:<12} {:<17} {:<16}",
        "PID", "NAME", "RUNTIME", "VERSION", "BUILD", "WATCHABLE"
    );
    for p in &d.processes {
        let mut build = Vec::new();
        if p.stripped == Some(true) {
            build.push("stripped");
        }
        if p.pie == Some(true) {
            build.push("pie");
        }
        if p.settings.iter().any(|(k, v)| k == "CGO_ENABLED" && v == "1") {
            build.push("cgo");
        }
        let watchable =
            if p.watchable.is_empty() { "nothing".into() } else { p.watchable.join(",") };
        let version = p.version.as_deref().unwrap_or("-");
        let version = version.split(' ').next().unwrap_or(version);
        let name: String = p.name.chars().take(20).collect();
        let _ = writeln!(
            out,
            "{:>8}  {:<20} {:<9} {:<12} {:<17} {:<16}",
            p.pid,
            name,
            p.runtime,
            version,
            build.join(","),
            watchable
        );
        if let Some(c) = &p.container {
            let image = c.image.as_ref().map(|i| format!(" image {i}")).unwrap_or_default();
            wrapped(&mut out, &format!("container {}{image}", c.id), INDENT, INDENT);
        }
        let settings: Vec<String> = p
            .settings
            .iter()
            .filter(|(k, _)| !matches!(k.as_str(), "-compiler" | "CGO_ENABLED" | "GOARCH"))
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        if !settings.is_empty() {
            wrapped(&mut out, &settings.join(" "), INDENT, INDENT);
        }
        for b in &p.blocked {
            wrapped(&mut out, &format!("blocked: {}: {}", b.what, b.why), INDENT, INDENT);
        }
    }
    if d.processes.is_empty() {
        let _ = writeln!(out, "no Go or CPython process found");
    }
    if d.unreadable > 0 {
        let _ = writeln!(
            out,
            "not permitted to look at {} processes (see `claw-ebpf doctor`)",
            d.unreadable
        );
    }
    out
}
