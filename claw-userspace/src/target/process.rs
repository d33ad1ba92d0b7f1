//! One process, as /proc describes it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("no process {0}: see `claw-ebpf discover` for what runs")]
    NoSuch(u32),
    #[error("not permitted to look at process {0}: run as root, or see `claw-ebpf doctor`")]
    Permission(u32),
    #[error("process {pid}: {what}: {source}")]
    Io { pid: u32, what: &'static str, source: io::Error },
    #[error("process {pid}: {what} cannot be understood")]
    Format { pid: u32, what: &'static str },
    #[error("process {0} is a kernel thread")]
    Kernel(u32),
}

impl ProcessError {
    fn from_io(pid: u32, what: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            // ESRCH: it went while its file was read.
            Some(libc::ENOENT | libc::ESRCH) => Self::NoSuch(pid),
            Some(libc::EACCES | libc::EPERM) => Self::Permission(pid),
            _ => Self::Io { pid, what, source },
        }
    }
}

/// Its threads, by `/proc/PID/task`.
///
/// # Errors
/// When it has ended or may not be looked at.
pub fn threads(pid: u32) -> io::Result<impl Iterator<Item = u32>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()))
}

/// A process by pid and start time, which together are not reused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    /// Field 22 of /proc/PID/stat, clock ticks since boot.
    pub start_ticks: u64,
    /// Basename of the executable, or the thread name where that is hidden.
    pub name: String,
    /// Path within the process's own mount namespace.
    pub exe: String,
}

/// What /proc/PID/status says of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    pub rss_bytes: u64,
    pub anon_bytes: u64,
    pub threads: u32,
}

/// A mapping of the executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub offset: u64,
    pub executable: bool,
    pub path: String,
}

impl Mapping {
    /// A path at which the mapped file can be opened from any mount namespace,
    /// also when it has been deleted or replaced since.
    pub fn opened(&self, pid: u32) -> PathBuf {
        let mapped =
            PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", self.start, self.end));
        if mapped.exists() {
            return mapped;
        }
        Path::new(&format!("/proc/{pid}/root")).join(self.path.trim_start_matches('/'))
    }
}

impl Process {
    /// # Errors
    /// When there is no such process, it is a kernel thread, or /proc is closed
    /// to the caller.
    pub fn open(pid: u32) -> Result<Self, ProcessError> {
        let stat = read(pid, "stat")?;
        let (comm, fields) =
            split_stat(&stat).ok_or(ProcessError::Format { pid, what: "/proc/PID/stat" })?;
        let start_ticks = fields
            .get(19)
            .and_then(|f| f.parse().ok())
            .ok_or(ProcessError::Format { pid, what: "start time" })?;
        let exe = match fs::read_link(format!("/proc/{pid}/exe")) {
            Ok(path) => path.to_string_lossy().into_owned(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Kernel threads have no executable; what has exited neither.
                let exited = matches!(fields.first(), Some(&("Z" | "X")));
                return Err(if exited {
                    ProcessError::NoSuch(pid)
                } else {
                    ProcessError::Kernel(pid)
                });
            }
            Err(e) => return Err(ProcessError::from_io(pid, "executable", e)),
        };
        let exe = exe.strip_suffix(" (deleted)").unwrap_or(&exe).to_owned();
        let name = match exe.rsplit('/').next() {
            Some(n) if !n.is_empty() => n.to_owned(),
            _ => comm.to_owned(),
        };
        Ok(Self { pid, start_ticks, name, exe })
    }

    /// A path at which the executable can be opened from any mount namespace.
    pub fn exe_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/exe", self.pid))
    }

    /// Whether this very process, not another with its pid, still runs.
    pub fn is_alive(&self) -> bool {
        read(self.pid, "stat").ok().is_some_and(|stat| {
            split_stat(&stat).is_some_and(|(_, f)| {
                let zombie = matches!(f.first(), Some(&("Z" | "X")));
                !zombie && f.get(19).and_then(|t| t.parse().ok()) == Some(self.start_ticks)
            })
        })
    }

    /// ns since it started; `None` when /proc/uptime is unreadable.
    pub fn uptime_ns(&self) -> Option<u64> {
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let seconds: f64 = uptime.split(' ').next()?.parse().ok()?;
        // SAFETY: sysconf has no preconditions.
        let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
        let started = self.start_ticks as f64 / hz.max(1) as f64;
        Some(((seconds - started).max(0.0) * 1e9) as u64)
    }

    /// # Errors
    /// When the process is gone.
    pub fn memory_use(&self) -> Result<MemoryUse, ProcessError> {
        let status = read(self.pid, "status")?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|l| l.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok())
        };
        Ok(MemoryUse {
            rss_bytes: field("VmRSS:").unwrap_or(0) * 1024,
            anon_bytes: field("RssAnon:").unwrap_or(0) * 1024,
            threads: field("Threads:").and_then(|t| t.try_into().ok()).unwrap_or(0),
        })
    }

    /// Environment variable of the process as it was started.
    pub fn env(&self, name: &str) -> Option<String> {
        let environ = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        environ.split(|b| *b == 0).find_map(|entry| {
            let value = entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(String::from_utf8_lossy(value).into_owned())
        })
    }

    /// Contents of /proc/PID/cgroup.
    pub fn cgroup(&self) -> Option<String> {
        read(self.pid, "cgroup").ok()
    }

    /// Whether it sees another file system or other pids than the caller.
    pub fn namespaced(&self) -> bool {
        ["mnt", "pid"].iter().any(|ns| {
            let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{ns}")).ok();
            link("self") != link(&self.pid.to_string())
        })
    }

    /// # Errors
    /// When the process is gone or closed to the caller.
    pub fn mappings(&self) -> Result<Vec<Mapping>, ProcessError> {
        Ok(read(self.pid, "maps")?.lines().filter_map(parse_mapping).collect())
    }

    /// What to add to an address in the file to get the one in memory:
    /// the executable's first mapping minus its first segment.
    ///
    /// # Errors
    /// When the executable is not mapped.
    pub fn load_bias(&self, first_vaddr: u64) -> Result<u64, ProcessError> {
        let page = !0xfffu64;
        self.mappings()?
            .iter()
            .filter(|m| m.path.strip_suffix(" (deleted)").unwrap_or(&m.path) == self.exe)
            .map(|m| m.start.wrapping_sub(m.offset & page))
            .min()
            .map(|start| start.wrapping_sub(first_vaddr & page))
            .ok_or(ProcessError::Format { pid: self.pid, what: "mapping of the executable" })
    }
}

fn read(pid: u32, file: &'static str) -> Result<String, ProcessError> {
    fs::read(format!("/proc/{pid}/{file}"))
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .map_err(|e| ProcessError::from_io(pid, file, e))
}

/// `pid (comm) state …` → comm and the fields from the state on; comm may hold
/// spaces and parentheses.
fn split_stat(stat: &str) -> Option<(&str, Vec<&str>)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    Some((stat.get(open + 1..close)?, stat.get(close + 1..)?.split_whitespace().collect()))
}

/// One line of /proc/PID/maps that maps a file.
fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let executable = fields.next()?.contains('x');
    let offset = fields.next()?;
    let _device = fields.next()?;
    let _inode = fields.next()?;
    let path = fields.next()?.trim_start();
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    (!path.is_empty()).then_some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
        executable,
        path: path.to_owned(),
    })
}

/// A process and its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    pub pid: u32,
    pub parent: u32,
    pub start_ticks: u64,
}

/// Who descends from whom, of all processes that can be seen and have not
/// exited.
///
/// # Errors
/// When /proc is not mounted.
pub fn parents() -> io::Result<Vec<Parent>> {
    let of = |pid: u32| {
        let stat = read(pid, "stat").ok()?;
        let (_, fields) = split_stat(&stat)?;
        let exited = matches!(fields.first(), Some(&("Z" | "X")));
        (!exited).then_some(Parent {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    };
    Ok(all_pids()?.into_iter().filter_map(of).collect())
}

/// All pids that can be seen.
///
/// # Errors
/// When /proc is not mounted.
pub fn all_pids() -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> =
        fs::read_dir("/proc")?.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses() {
        let (comm, fields) = split_stat("7 (a) b (c)) S 1 2 3").unwrap();
        assert_eq!((comm, fields[0], fields[1]), ("a) b (c)", "S", "1"));
        assert!(split_stat("7 )(").is_none());
    }

    #[test]
    fn mapping_lines() {
        let m = parse_mapping("00400000-00452000 r-xp 00001000 08:02 173521   /a b (deleted)");
        let m = m.unwrap();
        assert_eq!((m.start, m.end, m.offset), (0x40_0000, 0x45_2000, 0x1000));
        assert!(m.executable && m.path == "/a b (deleted)");
        assert!(parse_mapping("7f00-7f01 rw-p 0 0:0 0").is_none());
    }

    #[test]
    fn own_process() {
        let me = Process::open(std::process::id()).unwrap();
        assert!(me.is_alive() && !me.namespaced());
        assert!(me.memory_use().unwrap().rss_bytes > 0);
        assert!(me.uptime_ns().is_some());
        let other = Process { start_ticks: me.start_ticks + 1, ..me };
        assert!(!other.is_alive(), "a reused pid is another process");
    }

    #[test]
    fn no_such_process() {
        assert!(matches!(Process::open(u32::MAX), Err(ProcessError::NoSuch(_))));
        assert!(matches!(
            Process::open(2),
            Err(ProcessError::Kernel(_) | ProcessError::NoSuch(_) | ProcessError::Permission(_))
        ));
    }
}
