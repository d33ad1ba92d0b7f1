//! Which parts of a live process's memory can hold pymalloc pools: writable,
//! anonymous, resident. What is swapped out or was never touched is left
//! alone: reading it would bring it into memory.

use std::{fs, fs::File, io, os::unix::fs::FileExt};

/// A stretch of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub start: u64,
    pub end: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    pub regions: Vec<Region>,
    /// Bytes swapped out, which were not looked at.
    pub swapped: u64,
}

const PAGE: u64 = 4096;
/// Pages asked for at once.
const BATCH: usize = 64 << 10;
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// Private writable anonymous mappings. pymalloc's arenas are mapped without a
/// name; the heap and stacks belong to others.
/// Adjoining ones are one region: a pool may lie across their border.
pub fn anonymous(maps: &str) -> Vec<Region> {
    let anonymous = |l: &Line<'_>| {
        let unnamed = l.name.is_empty() || l.name.starts_with("[anon");
        l.permissions.starts_with("rw-p") && l.inode == "0" && unnamed
    };
    joined(maps.lines().filter_map(line).filter(anonymous).map(|l| l.region))
}

/// Adjoining regions, in order of address, as one.
pub fn joined(regions: impl Iterator<Item = Region>) -> Vec<Region> {
    let mut found: Vec<Region> = Vec::new();
    for region in regions {
        match found.last_mut() {
            Some(last) if last.end == region.start => last.end = region.end,
            _ => found.push(region),
        }
    }
    found
}

/// One line of `/proc/PID/maps`.
struct Line<'a> {
    region: Region,
    permissions: &'a str,
    inode: &'a str,
    name: &'a str,
}

fn line(line: &str) -> Option<Line<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    let inode = fields.nth(2)?;
    let name = fields.next().unwrap_or("");
    let hex = |s| u64::from_str_radix(s, 16).ok();
    let region = Region { start: hex(start)?, end: hex(end)? };
    (region.start < region.end).then_some(Line { region, permissions, inode, name })
}

/// Mappings of files.
pub fn files(maps: &str) -> Vec<Region> {
    let of_file = |l: &Line<'_>| l.inode != "0" && l.permissions.starts_with('r');
    maps.lines().filter_map(line).filter(of_file).map(|l| l.region).collect()
}

/// The resident parts of all private writable mappings, with the heap, stacks
/// and the data of libraries.
///
/// # Errors
/// As [`resident`].
pub fn writable(pid: u32, align: u64) -> io::Result<Vec<Region>> {
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    let maps = String::from_utf8_lossy(&maps);
    let private = |l: &Line<'_>| l.permissions.starts_with("rw-p");
    let regions = maps.lines().filter_map(line).filter(private).map(|l| l.region);
    Ok(resident_parts(pid, &joined(regions), align)?.regions)
}

/// The resident parts of a process's anonymous mappings, widened to multiples
/// of `align`.
///
/// # Errors
/// When the process is gone or closed to the caller.
pub fn resident(pid: u32, align: u64) -> io::Result<Resident> {
    let maps = fs::read(format!("/proc/{pid}/maps"))?;
    resident_parts(pid, &anonymous(&String::from_utf8_lossy(&maps)), align)
}

fn resident_parts(pid: u32, mappings: &[Region], align: u64) -> io::Result<Resident> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut found = Resident::default();
    let mut buf = vec![0u8; BATCH * 8];
    for region in mappings.iter().copied() {
        let mut page = region.start / PAGE;
        let end = region.end / PAGE;
        while page < end {
            let pages = (end - page).min(BATCH as u64);
            let bytes = buf.get_mut(..pages as usize * 8).unwrap_or_default();
            if pagemap.read_exact_at(bytes, page * 8).is_err() {
                // Unmapped meanwhile.
                break;
            }
            for (i, entry) in (page..).zip(bytes.as_chunks::<8>().0) {
                let entry = u64::from_le_bytes(*entry);
                if entry & SWAPPED != 0 {
                    found.swapped += PAGE;
                }
                if entry & PRESENT != 0 {
                    found.add(i * PAGE, region, align);
                }
            }
            page += pages;
        }
    }
    Ok(found)
}

impl Resident {
    /// Add the page at `page`, widened to `align` within its mapping.
    fn add(&mut self, page: u64, within: Region, align: u64) {
        let start = (page & !(align - 1)).max(within.start);
        let end = (page + PAGE).next_multiple_of(align).min(within.end);
        match self.regions.last_mut() {
            Some(last) if last.end >= start && last.start <= start => last.end = last.end.max(end),
            _ => self.regions.push(Region { start, end }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_anonymous_writable_mappings() {
        let maps = "\
7f0000000000-7f0000100000 rw-p 00000000 00:00 0 
7f0000200000-7f0000300000 r-xp 00000000 00:00 0 
7f0000400000-7f0000500000 rw-p 00001000 08:01 77                 /usr/lib/x.so
7f0000600000-7f0000700000 rw-p 00000000 00:00 0                  [heap]
7f0000800000-7f0000900000 rw-p 00000000 00:00 0                  [anon:arena]
9-1 rw-p 0 0:0 0
garbage";
        let found = anonymous(maps);
        assert_eq!(found.iter().map(|r| r.start >> 20).collect::<Vec<_>>(), [0x7f00000, 0x7f00008]);
    }

    #[test]
    fn pages_are_widened_and_joined() {
        let mut r = Resident::default();
        let within = Region { start: 0x1_1000, end: 0x4_0000 };
        for page in [0x1_2000, 0x1_3000, 0x1_4000, 0x3_0000] {
            r.add(page, within, 0x4000);
        }
        let want =
            [Region { start: 0x1_1000, end: 0x1_8000 }, Region { start: 0x3_0000, end: 0x3_4000 }];
        assert_eq!(r.regions, want);
    }

    #[test]
    fn own_memory() {
        // Never read: an optimised build would not make it.
        let big = std::hint::black_box(vec![1u8; 4 << 20]);
        let found = resident(std::process::id(), 4096).unwrap();
        let total: u64 = found.regions.iter().map(|r| r.end - r.start).sum();
        assert!(total >= big.len() as u64 && found.regions.iter().all(|r| r.start < r.end));
    }
}
