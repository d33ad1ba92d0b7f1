//! Core dumps of test programs: gdb's, and the kernel's.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

/// A dump made by gdb.
pub fn gcore(pid: u32, dir: &Path) -> PathBuf {
    let out = Command::new("gcore").arg("-o").arg(dir.join("core")).arg(pid.to_string()).output();
    let out = out.unwrap_or_else(|e| panic!("gdb's gcore: {e}: apt-get install gdb"));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    dir.join(format!("core.{pid}"))
}

/// Whether a program that crashes here leaves a dump in its folder; otherwise
/// the reason is printed.
pub fn kernel_dumps_to_files() -> bool {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let files = pattern.trim() == "core";
    if !files {
        println!("skipped: the kernel gives dumps to `{}`, not to a file", pattern.trim());
    }
    files
}

/// Let it leave a dump in `dir` when it crashes.
pub fn dumps_core<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    command.env("GOTRACEBACK", "crash").current_dir(dir).stderr(std::process::Stdio::null());
    // SAFETY: setrlimit is async-signal-safe and touches only its argument.
    unsafe {
        command.pre_exec(|| {
            let most = libc::RLIM_INFINITY;
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            libc::setrlimit(libc::RLIMIT_CORE, &limit);
            Ok(())
        })
    }
}

/// End it by `signal`; gives its dump.
pub fn crash(child: &mut Child, signal: i32, dir: &Path) -> PathBuf {
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
    child.wait().unwrap();
    let with_pid = dir.join(format!("core.{}", child.id()));
    if with_pid.exists() { with_pid } else { dir.join("core") }
}
