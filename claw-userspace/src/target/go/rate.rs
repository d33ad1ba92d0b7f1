//! `--heap-rate`: the one place that writes into a target, and only on request.

use std::{fs::OpenOptions, io, os::unix::fs::FileExt};

use crate::target::{
    memory::{Memory, MemoryError, ProcessMemory},
    process::Process,
};

#[derive(Debug, thiserror::Error)]
pub enum RateError {
    #[error(transparent)]
    Read(#[from] MemoryError),
    #[error("cannot set runtime.MemProfileRate in process {pid}: {source}")]
    Write { pid: u32, source: io::Error },
    #[error("runtime.MemProfileRate of process {pid} reads {value}: not a sampling rate")]
    Implausible { pid: u32, value: u64 },
}

/// Largest rate that is believed; a program that wants none sets 0.
const MAX_RATE: u64 = 1 << 40;

/// The rate in force, in bytes; 0 when the runtime does not sample.
///
/// # Errors
/// When it cannot be read or is no rate.
pub fn current(pid: u32, memory: &ProcessMemory, address: u64) -> Result<u64, RateError> {
    let value = memory.u64_at(address)?;
    if value > MAX_RATE {
        return Err(RateError::Implausible { pid, value });
    }
    Ok(value)
}

/// A changed rate; dropping it puts the old one back.
#[derive(Debug)]
pub struct ChangedRate {
    process: Process,
    address: u64,
    pub old: u64,
    pub new: u64,
    restored: bool,
}

impl ChangedRate {
    /// # Errors
    /// When the target's memory cannot be written.
    pub fn set(process: &Process, address: u64, old: u64, new: u64) -> Result<Self, RateError> {
        write(process.pid, address, new)?;
        Ok(Self { process: process.clone(), address, old, new, restored: false })
    }

    /// Put the old value back, unless the process is gone or someone else has
    /// changed the rate meanwhile. Says what was done.
    pub fn restore(&mut self) -> String {
        if self.restored {
            return "already restored".to_owned();
        }
        self.restored = true;
        let pid = self.process.pid;
        if !self.process.is_alive() {
            return format!("process {pid} is gone, nothing to restore");
        }
        let now = ProcessMemory::open(pid).ok().and_then(|m| m.u64_at(self.address).ok());
        match now {
            Some(now) if now != self.new => {
                format!("MemProfileRate of process {pid} is {now}, set by itself: left alone")
            }
            _ => match write(pid, self.address, self.old) {
                Ok(()) => format!("MemProfileRate of process {pid} set back to {}", self.old),
                Err(e) => e.to_string(),
            },
        }
    }
}

impl Drop for ChangedRate {
    fn drop(&mut self) {
        self.restore();
    }
}

fn write(pid: u32, address: u64, value: u64) -> Result<(), RateError> {
    OpenOptions::new()
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .and_then(|f| f.write_all_at(&value.to_le_bytes(), address))
        .map_err(|source| RateError::Write { pid, source })
}
