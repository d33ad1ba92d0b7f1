//! What this kernel and these capabilities allow: `doctor`.

use std::{fmt::Write, fs, path::Path};

use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
    /// What to do when it is not ok.
    pub remedy: Option<&'static str>,
}

fn check(name: &'static str, ok: bool, detail: String, remedy: &'static str) -> Check {
    Check { name, ok, detail, remedy: (!ok).then_some(remedy) }
}

/// Capability bits (`linux/capability.h`).
const CAPABILITIES: [(&str, u32, &str); 5] = [
    ("CAP_BPF", 39, "to load BPF programs"),
    ("CAP_PERFMON", 38, "to let them read memory"),
    ("CAP_SYS_ADMIN", 21, "to attach uprobes"),
    ("CAP_SYS_PTRACE", 19, "to read /proc/PID/mem and follow /proc/PID/exe"),
    ("CAP_DAC_READ_SEARCH", 2, "to open the files of other users' processes"),
];

/// The inode of the initial pid namespace (`PROC_PID_INIT_INO`).
const INIT_PID_NS: &str = "pid:[4026531836]";

pub fn checks() -> Vec<Check> {
    let root = Path::new("/");
    let mut all = vec![kernel(root), uprobes(root), btf(), pid_namespace()];
    all.extend(capabilities());
    all.push(lockdown());
    all
}

/// Whether the agent may attach at all.
///
/// # Errors
/// The first capability that is missing, with the remedy.
pub fn may_attach() -> Result<(), String> {
    match capabilities().into_iter().find(|c| !c.ok) {
        Some(c) => {
            Err(format!("not permitted: {} is missing ({}): run with sudo", c.name, c.detail))
        }
        None => Ok(()),
    }
}

/// Whether the kernel has what every probe needs; `root` is where its /proc and
/// /sys are.
///
/// # Errors
/// What is missing, with the remedy.
pub fn kernel_can(root: &Path) -> Result<(), String> {
    match [kernel(root), uprobes(root)].into_iter().find(|c| !c.ok) {
        Some(c) => {
            let remedy = c.remedy.unwrap_or_default();
            Err(format!("this kernel cannot be used ({}: {}): {remedy}", c.name, c.detail))
        }
        None => Ok(()),
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|s| s.trim().to_owned())
}

fn kernel(root: &Path) -> Check {
    let release = read(root.join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    let ok = matches!(version, (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 8));
    check("kernel", ok, format!("Linux {release}"), "BPF ring buffers need Linux 5.8 or later")
}

fn uprobes(root: &Path) -> Check {
    let found = read(root.join("sys/bus/event_source/devices/uprobe/type"));
    let detail = if found.is_some() { "available" } else { "no uprobe event source in /sys" };
    check(
        "uprobes",
        found.is_some(),
        detail.into(),
        "needs a kernel with CONFIG_UPROBE_EVENTS, and /sys mounted",
    )
}

fn btf() -> Check {
    let found = fs::metadata("/sys/kernel/btf/vmlinux").is_ok();
    // Nothing here depends on it: shown because people ask.
    let detail = if found { "available" } else { "absent (not needed)" };
    check("kernel BTF", true, detail.into(), "")
}

fn pid_namespace() -> Check {
    let own = fs::read_link("/proc/self/ns/pid").map(|p| p.to_string_lossy().into_owned());
    let ok = own.as_deref().is_ok_and(|p| p == INIT_PID_NS);
    let detail = if ok { "the host's" } else { "not the host's: pids would not match" };
    check("pid namespace", ok, detail.into(), "run on the host, or in a container with hostPID")
}

fn capabilities() -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .map(|(name, bit, what)| {
            let ok = effective >> bit & 1 == 1;
            check(name, ok, (*what).into(), "run with sudo, or grant the capability")
        })
        .collect()
}

fn lockdown() -> Check {
    let state = read("/sys/kernel/security/lockdown");
    let confidential = state.as_deref().is_some_and(|s| s.contains("[confidentiality]"));
    let detail = match state {
        Some(s) => s,
        None => "not in force".into(),
    };
    check(
        "lockdown",
        !confidential,
        detail,
        "kernel lockdown in confidentiality mode forbids BPF to read memory",
    )
}

pub fn render(checks: &[Check]) -> String {
    let mut out = String::new();
    for c in checks {
        let state = if c.ok { "ok" } else { "BLOCKED" };
        let _ = writeln!(out, "{state:<8} {:<20} {}", c.name, c.detail);
        if let Some(remedy) = c.remedy {
            let _ = writeln!(out, "{:<8} {:<20} → {remedy}", "", "");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_without_what_probes_need() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let why = || kernel_can(root.path()).unwrap_err();
        put("proc/sys/kernel/osrelease", "5.4.0-42-generic\n");
        assert!(why().contains("Linux 5.4.0-42-generic") && why().contains("5.8 or later"));
        put("proc/sys/kernel/osrelease", "6.1.0-44-amd64\n");
        assert!(why().contains("CONFIG_UPROBE_EVENTS"), "{}", why());
        put("sys/bus/event_source/devices/uprobe/type", "9\n");
        assert_eq!(kernel_can(root.path()), Ok(()));
    }
}
