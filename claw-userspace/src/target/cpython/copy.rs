//! A copy of a process's writable memory, taken while it stood still. What
//! cannot change (code, constants) is read from the files' mappings of the
//! process itself.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use super::{
    binary::Version,
    regions::{self, Region},
};
use crate::target::{
    memory::{Memory, MemoryError, ProcessMemory, Range},
    pause::{PauseError, Paused},
};

/// Read between two looks at the clock, and one range of it, bytes.
const BATCH: usize = 32 << 20;
const MOST_RANGE: u64 = 4 << 20;
const MOST_RANGES: usize = 1024;
/// Room for what the process allocates between the measurement and the stop.
const SLACK: u64 = 16 << 20;
/// The stop may take this much longer than the same read before it.
const MARGIN: f64 = 1.25;
/// Share of the machine's available memory that a copy may take.
const SHARE_OF_MEMORY: u64 = 2;
const PAGE: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(
        "it was not stopped: a copy of its {} MiB would take {needed:?}, more than --max-pause \
         {most:?}", bytes >> 20
    )]
    TooLong { bytes: u64, needed: Duration, most: Duration },
    #[error(
        "it was not stopped: a copy of its {} MiB does not fit into half of the memory that is \
         available ({} MiB)", bytes >> 20, available >> 20
    )]
    TooBig { bytes: u64, available: u64 },
    #[error(
        "a copy of its {} MiB does not fit into half of the memory that is available ({} MiB)",
        bytes >> 20, available >> 20
    )]
    NoRoom { bytes: u64, available: u64 },
    #[error("the copy was given up and the process let go on after {0:?}, at --max-pause")]
    Overran(Duration),
    #[error("its garbage collector ran at each of {0} attempts")]
    Collecting(usize),
    #[error(
        "where CPython {0} keeps its threads and frames is not known, so ways from them are not"
    )]
    Version(Version),
    #[error(transparent)]
    Pause(#[from] PauseError),
    #[error("its memory cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Memory as it was at one moment.
#[derive(Debug)]
pub struct MemoryCopy<'a, M> {
    /// Copied regions, in order of address, and where each begins in `bytes`.
    regions: Vec<(Region, usize)>,
    bytes: Vec<u8>,
    /// What may be read where it was copied from: mappings of files.
    files: Vec<Region>,
    behind: &'a M,
}

/// How a copy came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    pub took: Duration,
    /// Bytes copied meanwhile.
    pub bytes: u64,
    pub attempts: usize,
}

impl<'a> MemoryCopy<'a, ProcessMemory> {
    /// Stop process `pid`, copy it, let it go on. The read is made once before
    /// without stopping, which tells how long it takes. `busy` says whether
    /// the moment is a bad one; then it is tried again.
    ///
    /// # Errors
    /// When it was not stopped, or not for long enough.
    pub fn take(
        pid: u32,
        behind: &'a ProcessMemory,
        align: u64,
        most: Duration,
        busy: impl Fn() -> bool,
    ) -> Result<(Self, Pause), CopyError> {
        const ATTEMPTS: usize = 5;
        let mut copy = Self { regions: Vec::new(), bytes: Vec::new(), files: Vec::new(), behind };
        let size = size_of(&regions::writable(pid, align)?);
        let available = available_memory()?;
        if size + SLACK > available / SHARE_OF_MEMORY {
            return Err(CopyError::TooBig { bytes: size, available });
        }
        // Touched before: page faults in the agent would lengthen the stop.
        let room = usize::try_from(size + size / 8 + SLACK).unwrap_or(usize::MAX);
        copy.bytes.reserve_exact(room);
        copy.bytes.resize(room, 0);
        copy.bytes.iter_mut().step_by(PAGE).for_each(|b| *b = 1);
        let began = Instant::now();
        copy.read_all(pid, align, &|| false)?;
        let needed = began.elapsed().mul_f64(MARGIN);
        if needed > most {
            return Err(CopyError::TooLong { bytes: size, needed, most });
        }
        for attempt in 1..=ATTEMPTS {
            let paused = Paused::stop(pid, most)?;
            if busy() {
                drop(paused);
                std::thread::sleep(Duration::from_millis(20 * attempt as u64));
                continue;
            }
            let whole = copy.read_all(pid, align, &|| paused.elapsed() > most);
            let took = paused.resume();
            if !whole? {
                return Err(CopyError::Overran(took));
            }
            let bytes = copy.regions.iter().map(|(r, _)| r.end - r.start).sum();
            return Ok((copy, Pause { took, bytes, attempts: attempt }));
        }
        Err(CopyError::Collecting(ATTEMPTS))
    }

    /// Read everything; false when `late` said so before it was whole.
    fn read_all(&mut self, pid: u32, align: u64, late: &dyn Fn() -> bool) -> io::Result<bool> {
        let resident = regions::writable(pid, align)?;
        self.files = regions::files(&fs::read_to_string(format!("/proc/{pid}/maps"))?);
        let size = usize::try_from(size_of(&resident)).unwrap_or(usize::MAX);
        if self.bytes.len() < size {
            self.bytes.resize(size, 0);
        }
        self.regions.clear();
        let mut ranges: Vec<Range> = Vec::new();
        let (mut placed, mut read, mut batch) = (0usize, 0usize, 0usize);
        for region in resident {
            self.regions.push((region, placed));
            placed += (region.end - region.start) as usize;
            let mut at = region.start;
            while at < region.end {
                let len = (region.end - at).min(MOST_RANGE) as usize;
                ranges.push(Range { address: at, len });
                batch += len;
                at += len as u64;
                if batch >= BATCH || ranges.len() >= MOST_RANGES {
                    self.read_batch(&mut ranges, read, batch);
                    read += std::mem::take(&mut batch);
                    if late() {
                        return Ok(false);
                    }
                }
            }
        }
        self.read_batch(&mut ranges, read, batch);
        Ok(!late())
    }

    fn read_batch(&mut self, ranges: &mut Vec<Range>, at: usize, len: usize) {
        let Some(buf) = self.bytes.get_mut(at..at + len) else { return };
        let read = self.behind.read_ranges(ranges, buf);
        let mut from = 0;
        for (range, ok) in ranges.drain(..).zip(read) {
            // Unmapped meanwhile: nothing is there.
            if !ok && let Some(part) = buf.get_mut(from..from + range.len) {
                part.fill(0);
            }
            from += range.len;
        }
    }
}

impl<'a, M: Memory> MemoryCopy<'a, M> {
    /// A copy of what does not change: `regions`, in order of address; the rest
    /// is read where it is.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn of(behind: &'a M, regions: &[Region]) -> Result<Self, CopyError> {
        let (size, available) = (size_of(regions), available_memory()?);
        if size > available / SHARE_OF_MEMORY {
            return Err(CopyError::NoRoom { bytes: size, available });
        }
        let mut copied = Vec::new();
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut rest = bytes.as_mut_slice();
        let mut at = 0;
        for region in regions {
            let len = usize::try_from(region.end - region.start).unwrap_or(usize::MAX);
            let Some((part, after)) = std::mem::take(&mut rest).split_at_mut_checked(len) else {
                break;
            };
            rest = after;
            // What cannot be read is not there, and no zeros.
            if behind.read(region.start, part).is_ok() {
                copied.push((*region, at));
            }
            at += len;
        }
        let files = vec![Region { start: 0, end: u64::MAX }];
        Ok(Self { regions: copied, bytes, files, behind })
    }

    /// What was copied.
    pub fn regions(&self) -> Vec<Region> {
        self.regions.iter().map(|(r, _)| *r).collect()
    }
}

impl<M: Memory> Memory for MemoryCopy<'_, M> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let i = self.regions.partition_point(|(r, _)| r.start <= address);
        let copied = i.checked_sub(1).and_then(|i| self.regions.get(i)).and_then(|(r, at)| {
            let from = usize::try_from(address - r.start).ok()?;
            let end = from.checked_add(buf.len())?;
            (end as u64 <= r.end - r.start).then(|| self.bytes.get(at + from..at + end))?
        });
        if let Some(bytes) = copied {
            buf.copy_from_slice(bytes);
            return Ok(());
        }
        let end = address.saturating_add(buf.len() as u64);
        if self.files.iter().any(|f| f.start <= address && end <= f.end) {
            return self.behind.read(address, buf);
        }
        let source = io::ErrorKind::UnexpectedEof.into();
        Err(MemoryError { address, len: buf.len(), source })
    }
}

fn size_of(regions: &[Region]) -> u64 {
    regions.iter().map(|r| r.end - r.start).sum()
}

fn available_memory() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text.lines().find_map(|l| {
        l.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse().ok()
    });
    kib.map(|k: u64| k << 10).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
