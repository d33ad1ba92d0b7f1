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

/// Memory by address. A read gives all the bytes or an error.
pub trait Memory {
    /// # Errors
    /// When any byte of the range is not readable.
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError>;

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
    file: File,
}

impl ProcessMemory {
    /// # Errors
    /// When the process is gone or the caller may not trace it.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self { file: File::open(format!("/proc/{pid}/mem"))? })
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
