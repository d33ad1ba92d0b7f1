//! How much memory a process may use before the kernel ends something: the
//! limits of its cgroups and of those around them, else the machine's memory.

use std::{
    fs,
    path::{Component, Path},
};

use crate::stream::{Limit, LimitOf};

/// What a cgroup may use, what it uses, and of that the file pages which the
/// kernel takes back first (the line in `memory.stat`): Documentation/admin-guide,
/// cgroup-v2.rst and cgroup-v1/memory.rst. What is left is the working set, as
/// the kubelet reckons it.
struct Files {
    limit: &'static str,
    used: &'static str,
    reclaimable: &'static str,
}

const V2: Files =
    Files { limit: "memory.max", used: "memory.current", reclaimable: "inactive_file" };
const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    reclaimable: "total_inactive_file",
};

/// The limit that is nearest; `cgroup` is the text of /proc/PID/cgroup.
pub fn of_process(cgroup: &str) -> Option<Limit> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    nearest(cgroup, Path::new("/sys/fs/cgroup"), &meminfo)
}

fn nearest(cgroup: &str, mounted: &Path, meminfo: &str) -> Option<Limit> {
    let field = |name: &str| number(meminfo, name).map(|kib| kib.saturating_mul(1024));
    let bytes = field("MemTotal:")?;
    let used_bytes = bytes.saturating_sub(field("MemAvailable:")?);
    let machine = Limit { bytes, used_bytes, of: LimitOf::Machine };
    let hierarchies = cgroup.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some(match (parts.next()?, parts.next()?) {
            ("", path) if mounted.join("unified").is_dir() => (mounted.join("unified"), path, V2),
            ("", path) => (mounted.to_owned(), path, V2),
            (names, path) => {
                names.split(',').find(|n| *n == "memory")?;
                (mounted.join("memory"), path, V1)
            }
        })
    });
    let limits = hierarchies.flat_map(|(root, path, files)| {
        let path = Path::new(path.trim_start_matches('/'));
        // One of another namespace cannot be seen from here.
        let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
        let levels: Vec<&Path> = path.ancestors().filter(|_| inside).collect();
        levels.into_iter().filter_map(|p| at(&root.join(p), &files)).collect::<Vec<_>>()
    });
    // Without a limit there is one that no machine reaches.
    let binding = limits.filter(|l| l.bytes <= machine.bytes);
    binding.chain([machine]).min_by_key(|l| l.bytes.saturating_sub(l.used_bytes))
}

fn at(cgroup: &Path, files: &Files) -> Option<Limit> {
    let read = |name: &str| fs::read_to_string(cgroup.join(name)).ok();
    let bytes = read(files.limit)?.trim().parse().ok()?;
    let used: u64 = read(files.used)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let reclaimable = number(&stat, files.reclaimable).unwrap_or(0);
    Some(Limit { bytes, used_bytes: used.saturating_sub(reclaimable), of: LimitOf::Cgroup })
}

/// The number behind a name, in lines of `name number …`.
fn number(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then_some(words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:  400 kB\n";
    const MACHINE: Limit = Limit { bytes: 1000 << 10, used_bytes: 600 << 10, of: LimitOf::Machine };

    fn put(root: &Path, cgroup: &str, files: &[(&str, &str)]) {
        let at = root.join(cgroup);
        fs::create_dir_all(&at).unwrap();
        files.iter().for_each(|(name, text)| fs::write(at.join(name), text).unwrap());
    }

    #[test]
    fn the_nearest_of_all_levels_counts() {
        let dir = tempfile::tempdir().unwrap();
        let at = |cgroup: &str| nearest(cgroup, dir.path(), MEMINFO);
        assert_eq!(at("0::/a/b\n"), Some(MACHINE), "no such cgroup");
        let own = [("memory.max", "max\n"), ("memory.current", "9\n")];
        put(dir.path(), "a/b", &own);
        assert_eq!(at("0::/a/b\n"), Some(MACHINE), "no limit");
        let pod = [
            ("memory.max", "300000\n"),
            ("memory.current", "250000\n"),
            ("memory.stat", "anon 1\ninactive_file 50000\n"),
        ];
        put(dir.path(), "a", &pod);
        let found = Limit { bytes: 300_000, used_bytes: 200_000, of: LimitOf::Cgroup };
        assert_eq!(at("0::/a/b\n"), Some(found));
        for not_here in ["0::/../a\n", "", "0:/a\n", "x\n"] {
            assert_eq!(at(not_here), Some(MACHINE), "{not_here:?}");
        }
    }

    #[test]
    fn the_first_version_of_cgroups_is_read_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let none = [
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.usage_in_bytes", "100\n"),
        ];
        put(dir.path(), "memory", &none);
        let limited = [
            ("memory.limit_in_bytes", "400000\n"),
            ("memory.usage_in_bytes", "399000\n"),
            ("memory.stat", "inactive_file 7\ntotal_inactive_file 9000\n"),
        ];
        put(dir.path(), "memory/x", &limited);
        let cgroup = "9:cpu:/\n4:hugetlb,memory:/x\n0::/\n";
        let found = Limit { bytes: 400_000, used_bytes: 390_000, of: LimitOf::Cgroup };
        assert_eq!(nearest(cgroup, dir.path(), MEMINFO), Some(found));
        assert_eq!(nearest("4:memory:/\n", dir.path(), MEMINFO), Some(MACHINE));
        assert_eq!(nearest(cgroup, dir.path(), "MemTotal: 5 kB\n"), None);
    }
}
