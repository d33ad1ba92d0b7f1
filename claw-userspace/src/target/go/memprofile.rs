//! Go's own heap profile, read from memory (`runtime/mprof.go`).
//!
//! Buckets are never freed and their stacks never change, so they can be read
//! while the process runs; counts are a moment old at worst.

use std::collections::HashSet;

use crate::target::memory::{Memory, MemoryError};

use super::layout::GoLayout;

/// `bucket`: next@0 allnext@8 typ@16 hash@24 size@32 nstk@40, stk@48, record.
const ALLNEXT: u64 = 8;
const TYP: usize = 16;
const SIZE: usize = 32;
const NSTK: usize = 40;
const STK: u64 = 48;
/// `memProfile`, the first of the bucket types.
const MEM_PROFILE: u64 = 1;
/// `maxProfStackDepth`.
const MAX_DEPTH: u64 = 1024;
/// Distinct allocation stacks of one process.
const MAX_BUCKETS: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("the heap profile's bucket at {address:#x} is not one: {why}")]
    Bucket { address: u64, why: &'static str },
}

/// What one allocation stack holds, in samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub address: u64,
    /// Bytes of each object.
    pub size: u64,
    /// Sampled objects allocated and freed, as of the last complete GC cycle,
    /// or including the current one when there was none yet.
    pub allocs: u64,
    pub frees: u64,
}

fn header(memory: &impl Memory, address: u64) -> Result<([u8; STK as usize], u64), ProfileError> {
    let mut h = [0; STK as usize];
    memory.read(address, &mut h)?;
    if word(&h, TYP) != MEM_PROFILE {
        return Err(ProfileError::Bucket { address, why: "it is of another type" });
    }
    let depth = word(&h, NSTK);
    if depth > MAX_DEPTH {
        return Err(ProfileError::Bucket { address, why: "its stack is too deep" });
    }
    Ok((h, depth))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
}

/// Return addresses of the bucket at `address`, leaf first.
///
/// # Errors
/// When it cannot be read or is no heap-profile bucket.
pub fn bucket_stack(memory: &impl Memory, address: u64) -> Result<Vec<u64>, ProfileError> {
    let (_, depth) = header(memory, address)?;
    let mut stack = vec![0; depth as usize * 8];
    memory.read(address + STK, &mut stack)?;
    Ok(stack.chunks_exact(8).map(|c| word(c, 0)).collect())
}

/// All buckets, from the list whose head is the variable at `mbuckets`.
///
/// # Errors
/// When the list leads to memory that is no bucket, or runs in a circle.
pub fn buckets(
    memory: &impl Memory,
    layout: &GoLayout,
    mbuckets: u64,
) -> Result<Vec<Bucket>, ProfileError> {
    let mut found: Vec<Bucket> = Vec::new();
    let mut seen = HashSet::new();
    let mut address = memory.u64_at(mbuckets)?;
    while address != 0 {
        if !seen.insert(address) || found.len() >= MAX_BUCKETS {
            return Err(ProfileError::Bucket { address, why: "the list runs in a circle" });
        }
        let (h, depth) = header(memory, address)?;
        // active, future[3], each {allocs, frees, …}.
        let words = layout.record_words as usize;
        let mut record = vec![0; words * 8 * 4];
        memory.read(address + STK + depth * 8, &mut record)?;
        let cycle = |i: usize| (word(&record, i * words * 8), word(&record, i * words * 8 + 8));
        let (mut allocs, mut frees) = cycle(0);
        if allocs == 0 {
            for (a, f) in (1..4).map(cycle) {
                allocs = allocs.saturating_add(a);
                frees = frees.saturating_add(f);
            }
        }
        found.push(Bucket { address, size: word(&h, SIZE), allocs, frees });
        address = word(&h, ALLNEXT as usize);
    }
    Ok(found)
}

/// Probability that an object of `size` bytes is sampled at mean distance
/// `rate` bytes; its inverse is what one sample stands for
/// (`runtime/pprof/protomem.go`, `scaleHeapSample`).
pub fn sampled_share(size: u64, rate: u64) -> f64 {
    if rate <= 1 {
        return 1.0;
    }
    -(-(size as f64) / rate as f64).exp_m1()
}

/// In-use heap in bytes, unsampled.
pub fn heap_in_use(buckets: &[Bucket], rate: u64) -> f64 {
    buckets
        .iter()
        .filter(|b| b.size > 0)
        .map(|b| {
            let objects = b.allocs.saturating_sub(b.frees) as f64;
            objects * b.size as f64 / sampled_share(b.size, rate)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{
        go::{layout::LAYOUTS, version::GoVersion},
        memory::BytesMemory,
    };

    const BASE: u64 = 0x10_000;

    /// A head pointer, then buckets with one frame each.
    fn memory(buckets: &[(u64, u64, u64, u64)], words: usize) -> BytesMemory {
        let len = 48 + 8 + words * 32;
        let mut bytes = (BASE + 8).to_le_bytes().to_vec();
        for (i, (next, size, allocs, frees)) in buckets.iter().enumerate() {
            let mut b = vec![0u8; len];
            let mut put = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
            let next =
                if *next == u64::MAX { BASE + 8 + (i as u64 + 1) * len as u64 } else { *next };
            put(8, next);
            put(16, 1);
            put(32, *size);
            put(40, 1);
            put(48, 0x40_1234);
            put(56, *allocs);
            put(64, *frees);
            bytes.extend(b);
        }
        BytesMemory { base: BASE, bytes }
    }

    fn layout(minor: u32) -> &'static GoLayout {
        let raw = format!("go1.{minor}.0");
        GoVersion::parse(&raw).and_then(|v| GoLayout::of(&v).ok()).unwrap_or(&LAYOUTS[0])
    }

    #[test]
    fn list_of_both_record_layouts() {
        for (minor, words) in [(26, 4), (27, 2)] {
            let m = memory(&[(u64::MAX, 1 << 20, 10, 4), (0, 64, 3, 0)], words);
            let list = buckets(&m, layout(minor), BASE).unwrap();
            assert_eq!(list.len(), 2);
            assert_eq!((list[0].size, list[0].allocs, list[0].frees), (1 << 20, 10, 4));
            assert_eq!(bucket_stack(&m, list[0].address).unwrap(), [0x40_1234]);
            let bytes = heap_in_use(&list, 512 << 10);
            // 6 objects of 1 MiB at p = .8647, 3 of 64 B at p = 1/8192.
            assert!((bytes / (6.0 * 1_048_576.0 / 0.8647 + 3.0 * 524_288.0) - 1.0).abs() < 1e-3);
        }
    }

    #[test]
    fn hostile_lists_end() {
        let circle = memory(&[(BASE + 8, 64, 1, 0)], 4);
        assert!(buckets(&circle, layout(26), BASE).is_err());
        let wild = memory(&[(0xdead_beef, 64, 1, 0)], 4);
        assert!(buckets(&wild, layout(26), BASE).is_err());
        let mut deep = memory(&[(0, 64, 1, 0)], 4);
        deep.bytes[48..56].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(buckets(&deep, layout(26), BASE).is_err());
        assert!(bucket_stack(&deep, BASE + 8).is_err());
    }
}
