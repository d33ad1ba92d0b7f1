//! Go's own heap profile, read from memory (`runtime/mprof.go`): what
//! `runtime/pprof` would write, without asking the program.
//!
//! Buckets are never freed and their stacks never change, so they can be read
//! while the process runs. Counts move a few times per GC cycle: they are read
//! until two readings agree, and those that never do are counted.

use std::collections::HashSet;

use crate::target::memory::{Memory, MemoryError};

use super::{
    binary::GoBinary,
    layout::GoLayout,
    variables::{MBUCKETS, MEM_PROFILE_RATE, MPROF_CYCLE, VariableError},
};

/// `bucket`: next@0 allnext@8 typ@16 hash@24 size@32 nstk@40, stk@48, record.
const ALLNEXT: usize = 8;
const TYP: usize = 16;
const SIZE: usize = 32;
const NSTK: usize = 40;
const STK: u64 = 48;
/// `memProfile`, the first of the bucket types.
const MEM_PROFILE: u64 = 1;
/// `maxProfStackDepth`.
const MAX_DEPTH: u64 = 1024;
/// Distinct allocation stacks of one process, and words of them together.
const MAX_BUCKETS: usize = 1 << 20;
const MAX_WORDS: usize = 1 << 25;
/// `len(memRecord.future)`.
const FUTURES: usize = 3;
/// Readings until two agree.
const TRIES: usize = 6;
/// Largest rate that is believed.
const MAX_RATE: u64 = 1 << 40;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Variable(#[from] VariableError),
    #[error("the heap profile's bucket at {address:#x} is not one: {why}")]
    Bucket { address: u64, why: &'static str },
    #[error("runtime.MemProfileRate reads {0}: not a sampling rate")]
    Rate(u64),
}

/// What one allocation stack has, in samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub address: u64,
    /// Bytes of each object.
    pub size: u64,
    /// Return addresses, leaf first, inlined calls each with their own.
    pub stack: Vec<u64>,
    /// Sampled objects allocated and freed.
    pub allocs: u64,
    pub frees: u64,
    /// … and not freed by now: with what the profile does not show yet.
    pub held: u64,
}

impl Bucket {
    pub fn in_use(&self) -> u64 {
        self.allocs.saturating_sub(self.frees)
    }
}

/// The profile as of the last GC cycle whose sweep is done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapProfile {
    pub buckets: Vec<Bucket>,
    /// Mean bytes between two samples; 0 when the runtime does not sample.
    pub rate: u64,
    /// Buckets whose counts changed with every reading.
    pub torn: usize,
    /// No GC cycle was complete yet: garbage is counted too.
    pub before_gc: bool,
}

/// Addresses of the variables in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variables {
    pub mbuckets: u64,
    pub rate: u64,
    pub cycle: u64,
}

impl Variables {
    /// # Errors
    /// Names the variable, the function and the pattern that did not match.
    pub fn find(binary: &GoBinary, bias: u64) -> Result<Self, VariableError> {
        let at = |v: super::variables::Variable| Ok(v.find(binary)?.wrapping_add(bias));
        Ok(Self { mbuckets: at(MBUCKETS)?, rate: at(MEM_PROFILE_RATE)?, cycle: at(MPROF_CYCLE)? })
    }
}

/// Counts of one bucket: `{allocs, frees}` of active, then of the futures.
type Record = [(u64, u64); 1 + FUTURES];

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Bytes of a `memRecord`: active, future[3], each {allocs, frees, …}.
fn record_len(layout: &GoLayout) -> usize {
    layout.record_words as usize * 8 * (1 + FUTURES)
}

fn record(bytes: &[u8], layout: &GoLayout) -> Record {
    let cycle = layout.record_words as usize * 8;
    std::array::from_fn(|i| (word(bytes, i * cycle), word(bytes, i * cycle + 8)))
}

/// A bucket's header, and its number of frames.
fn depth(header: &[u8], address: u64) -> Result<u64, ProfileError> {
    if word(header, TYP) != MEM_PROFILE {
        return Err(ProfileError::Bucket { address, why: "it is of another type" });
    }
    let depth = word(header, NSTK);
    if depth > MAX_DEPTH {
        return Err(ProfileError::Bucket { address, why: "its stack is too deep" });
    }
    Ok(depth)
}

/// Return addresses of the bucket at `address`, leaf first.
///
/// # Errors
/// When it cannot be read or is no heap-profile bucket.
pub fn bucket_stack(memory: &impl Memory, address: u64) -> Result<Vec<u64>, ProfileError> {
    let mut h = [0; STK as usize];
    memory.read(address, &mut h)?;
    let mut stack = vec![0; depth(&h, address)? as usize * 8];
    memory.read(address.saturating_add(STK), &mut stack)?;
    Ok(stack.chunks_exact(8).map(|c| word(c, 0)).collect())
}

/// One bucket: itself without counts, its record, the next one's address.
fn bucket(
    memory: &impl Memory,
    layout: &GoLayout,
    address: u64,
) -> Result<(Bucket, Record, u64), ProfileError> {
    /// Most buckets are shorter: one read for all of it.
    const GUESS: usize = 512;
    let mut bytes = vec![0; GUESS];
    let guessed = memory.read(address, &mut bytes).is_ok();
    if !guessed {
        memory.read(address, &mut bytes[..STK as usize])?;
    }
    let stack_end = STK as usize + depth(&bytes, address)? as usize * 8;
    let end = stack_end + record_len(layout);
    if !guessed || end > GUESS {
        bytes.resize(end, 0);
        memory.read(address, &mut bytes)?;
    }
    let stack = bytes.get(STK as usize..stack_end).unwrap_or_default();
    let found = Bucket {
        address,
        size: word(&bytes, SIZE),
        stack: stack.chunks_exact(8).map(|c| word(c, 0)).collect(),
        allocs: 0,
        frees: 0,
        held: 0,
    };
    let record = record(bytes.get(stack_end..end).unwrap_or_default(), layout);
    Ok((found, record, word(&bytes, ALLNEXT)))
}

/// The counts once more.
fn again(memory: &impl Memory, layout: &GoLayout, b: &Bucket) -> Result<Record, ProfileError> {
    let mut bytes = vec![0; record_len(layout)];
    memory.read(b.address.saturating_add(STK + b.stack.len() as u64 * 8), &mut bytes)?;
    Ok(record(&bytes, layout))
}

/// `mProfCycle`: the number of the cycle above a flag.
fn cycle(memory: &impl Memory, address: u64) -> Result<usize, ProfileError> {
    let mut b = [0; 4];
    memory.read(address, &mut b)?;
    Ok((u32::from_le_bytes(b) >> 1) as usize)
}

/// What `runtime.MemProfile` would report of a bucket during `cycle`: it first
/// adds what the last complete cycle still has to hand over.
fn published(record: &Record, cycle: usize) -> (u64, u64) {
    let (active, pending) = (record[0], record[1 + cycle % FUTURES]);
    (active.0.saturating_add(pending.0), active.1.saturating_add(pending.1))
}

/// The mean distance of samples in force, bytes.
///
/// # Errors
/// When it cannot be read or is no rate.
pub fn rate(memory: &impl Memory, address: u64) -> Result<u64, ProfileError> {
    match memory.u64_at(address)? {
        rate if rate > MAX_RATE => Err(ProfileError::Rate(rate)),
        rate => Ok(rate),
    }
}

/// The whole profile, newest bucket first.
///
/// # Errors
/// When the list leads to memory that is no bucket, runs in a circle or is
/// absurdly long.
pub fn read(
    memory: &impl Memory,
    layout: &GoLayout,
    variables: &Variables,
) -> Result<HeapProfile, ProfileError> {
    let rate = rate(memory, variables.rate)?;
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut records: Vec<Record> = Vec::new();
    let mut now = cycle(memory, variables.cycle)?;
    let (mut seen, mut words) = (HashSet::new(), 0);
    let mut address = memory.u64_at(variables.mbuckets)?;
    while address != 0 {
        if !seen.insert(address) {
            return Err(ProfileError::Bucket { address, why: "the list runs in a circle" });
        }
        let (found, counts, next) = bucket(memory, layout, address)?;
        words += found.stack.len();
        if seen.len() > MAX_BUCKETS || words > MAX_WORDS {
            return Err(ProfileError::Bucket { address, why: "the list is absurdly long" });
        }
        buckets.push(found);
        records.push(counts);
        address = next;
    }
    let mut torn = buckets.len();
    for _ in 0..TRIES {
        let before = std::mem::take(&mut records);
        records = buckets.iter().map(|b| again(memory, layout, b)).collect::<Result<_, _>>()?;
        let then = std::mem::replace(&mut now, cycle(memory, variables.cycle)?);
        torn = before
            .iter()
            .zip(&records)
            .filter(|(a, b)| published(a, now) != published(b, now))
            .count();
        if torn == 0 && then == now {
            break;
        }
    }
    let sum = |r: &Record| {
        r.iter().fold((0u64, 0u64), |s, c| (s.0.saturating_add(c.0), s.1.saturating_add(c.1)))
    };
    for (b, r) in buckets.iter_mut().zip(&records) {
        let (allocs, frees) = sum(r);
        b.held = allocs.saturating_sub(frees);
    }
    let mut counts: Vec<(u64, u64)> = records.iter().map(|r| published(r, now)).collect();
    let before_gc = counts.iter().all(|c| *c == (0, 0));
    if before_gc {
        counts = records.iter().map(sum).collect();
    }
    for (b, (allocs, frees)) in buckets.iter_mut().zip(counts) {
        (b.allocs, b.frees) = (allocs, frees);
        // More freed than allocated: half of a change was seen.
        torn += usize::from(frees > allocs);
    }
    Ok(HeapProfile { buckets, rate, torn, before_gc })
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
pub fn heap_in_use(profile: &HeapProfile) -> f64 {
    profile
        .buckets
        .iter()
        .filter(|b| b.size > 0)
        .map(|b| b.in_use() as f64 * b.size as f64 / sampled_share(b.size, profile.rate))
        .sum()
}

#[cfg(test)]
mod tests;
