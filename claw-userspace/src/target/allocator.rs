//! The C allocator of a process: which file holds `malloc` and `free`.

use std::path::PathBuf;

use super::{
    elf::Elf,
    process::{Mapping, Process},
};

/// Allocators that take the place of the C library's, by a part of their
/// file's name.
const OTHERS: [&str; 4] = ["jemalloc", "tcmalloc", "mimalloc", "libhoard"];

/// glibc's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    /// As the process names the file, and where the agent finds it.
    pub file: String,
    pub opened: PathBuf,
}

impl Allocator {
    /// # Errors
    /// In words, why allocations of this process cannot be followed.
    pub fn of(process: &Process) -> Result<Self, String> {
        let mappings = process.mappings().map_err(|e| e.to_string())?;
        let library = find(&mappings)?;
        let exe = Elf::open(&process.exe_path()).map_err(|e| e.to_string())?;
        if !exe.dynamic_symbols(|n| n == "malloc").is_empty() {
            return Err(format!("{} brings a malloc of its own", process.exe));
        }
        Ok(Self { opened: library.opened(process.pid), file: library.path.clone() })
    }
}

fn find(mappings: &[Mapping]) -> Result<&Mapping, String> {
    let name = |m: &Mapping| m.path.rsplit('/').next().unwrap_or_default().to_owned();
    if let Some(other) = mappings.iter().find(|m| OTHERS.iter().any(|o| name(m).contains(o))) {
        return Err(format!("its allocator is {}, of which glibc's alone is known", name(other)));
    }
    mappings
        .iter()
        .find(|m| name(m) == "libc.so.6" || name(m).starts_with("libc-2."))
        .ok_or_else(|| "no glibc is loaded: the layouts of other allocators are not known".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(path: &str) -> Mapping {
        Mapping { start: 0x1000, end: 0x2000, offset: 0, executable: true, path: path.into() }
    }

    #[test]
    fn glibc_alone() {
        let all = |paths: &[&str]| paths.iter().map(|p| mapping(p)).collect::<Vec<_>>();
        let glibc = all(&["/usr/bin/python3", "", "/usr/lib/x86_64-linux-gnu/libc.so.6"]);
        assert_eq!(find(&glibc).map(|m| &*m.path), Ok("/usr/lib/x86_64-linux-gnu/libc.so.6"));
        assert!(find(&all(&["/lib/x86_64-linux-gnu/libc-2.28.so"])).is_ok());
        let why = |paths: &[&str]| find(&all(paths)).unwrap_err();
        assert!(why(&["/usr/lib/libc.so.6", "/usr/lib/libjemalloc.so.2"]).contains("libjemalloc"));
        assert!(why(&["/lib/ld-musl-x86_64.so.1", "[heap]", "libcurl.so.4"]).contains("no glibc"));
    }
}
