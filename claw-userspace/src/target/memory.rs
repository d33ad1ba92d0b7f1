//! Reading the memory of a target: a live process, a core dump (`core`), or bytes in a
//! test.

use std::{fs::File, io, os::unix::fs::FileExt};

#[derive(Debug, thiserror::Error)]
#[error("cannot read {len} bytes of target memory at {address:#x}: {source}")]
pub struct MemoryError {
    pub address: u64,
    pub len: usize,
    pub source: io::Error,
}

/// A range of addresses to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub address: u64,
    /// Bytes.
    pub len: usize,
}

/// Memory by address. A read gives all the bytes or an error.
pub trait Memory {
    /// # Errors
    /// When any byte of the range is not readable.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

    /// Read all `ranges`, one after the other, into `buf`; says of each whether
    /// it could be read.
    fn read_ranges(&self, ranges: &[Range], buf: &mut [u8]) -> Vec<bool> {
        let mut rest = buf;
        ranges
            .iter()
            .map(|r| {
                let Some((part, after)) = std::mem::take(&mut rest).split_at_mut_checked(r.len)
                else {
                    return false;
                };
                rest = after;
                self.read(r.address, part).is_ok()
            })
            .collect()
    }

    /// # Errors
    /// As [`Memory::read`].
    fn u64_at(&self, address: u64) -> Result<u64, MemoryError> {
        let mut b = [0; 8];
        self.read(address, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }
}

/// `/proc/PID/mem`, opened once: a reused pid is never read by mistake.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: u32,
    file: File,
}

/// Ranges that the kernel takes at once (`UIO_MAXIOV`).
const MOST_RANGES: usize = 1024;

impl ProcessMemory {
    /// # Errors
    /// When the process is gone or the caller may not trace it.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, file: File::open(format!("/proc/{pid}/mem"))? })
    }
}

impl Memory for ProcessMemory {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        // A process that is gone reads as end of file.
        self.file.read_exact_at(buf, address).map_err(|source| MemoryError {
            address,
            len: buf.len(),
            source,
        })
    }

    /// With `process_vm_readv`: one system call for a thousand ranges.
    fn read_ranges(&self, ranges: &[Range], buf: &mut [u8]) -> Vec<bool> {
        let mut read = Vec::with_capacity(ranges.len());
        let mut rest = buf;
        while read.len() < ranges.len() {
            let left = ranges.get(read.len()..).unwrap_or_default();
            let batch = left.get(..MOST_RANGES).unwrap_or(left);
            let mut done = self.vm_read(batch, rest);
            // The kernel stops at the first range that it cannot read.
            for r in batch {
                let Some((part, after)) = std::mem::take(&mut rest).split_at_mut_checked(r.len)
                else {
                    read.push(false);
                    continue;
                };
                rest = after;
                if done >= r.len {
                    done -= r.len;
                    read.push(true);
                    continue;
                }
                read.push(self.read(r.address, part).is_ok());
                break;
            }
        }
        // A pid may have been reused, the open file cannot.
        let first = read.iter().position(|ok| *ok).and_then(|i| ranges.get(i));
        if first.is_some_and(|r| self.read(r.address, &mut [0]).is_err()) {
            read.fill(false);
        }
        read
    }
}

impl ProcessMemory {
    /// Gives the number of bytes read.
    fn vm_read(&self, ranges: &[Range], buf: &mut [u8]) -> usize {
        let Ok(pid) = libc::pid_t::try_from(self.pid) else { return 0 };
        let wanted = ranges.iter().map(|r| r.len).sum::<usize>().min(buf.len());
        let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: wanted };
        let remote: Vec<libc::iovec> = ranges
            .iter()
            .map(|r| libc::iovec { iov_base: r.address as *mut _, iov_len: r.len })
            .collect();
        // SAFETY: the kernel writes at most `wanted` bytes to `buf`, which is
        // that long; `remote` holds as many entries as is said, addresses of
        // another process which the kernel checks.
        let n = unsafe {
            libc::process_vm_readv(
                pid,
                &raw const local,
                1,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        usize::try_from(n).unwrap_or(0)
    }
}

/// One region of bytes at an address.
#[derive(Clone, Debug)]
pub struct BytesMemory {
    pub base: u64,
    pub bytes: Vec<u8>,
}

impl Memory for BytesMemory {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let found = address
            .checked_sub(self.base)
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| self.bytes.get(at..at.checked_add(buf.len())?));
        match found {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(MemoryError {
                address,
                len: buf.len(),
                source: io::ErrorKind::UnexpectedEof.into(),
            }),
        }
    }
}
