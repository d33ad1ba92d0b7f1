//! What was in a target's heap before it was attached to: the runtime's own
//! profile, as the stream has it.

use super::Watched;
use crate::{
    report::text,
    stream::{Blocked, Item},
    target::{
        go::{
            memprofile::{self, Bucket, HeapProfile, sampled_share},
            program::GoProgram,
        },
        memory::Memory,
        process::Process,
    },
};

/// Stacks that are sent.
const MOST: usize = 1 << 14;

pub fn read(program: &GoProgram<impl Memory>) -> Result<HeapProfile, Blocked> {
    program.heap_profile().map_err(|e| Blocked {
        what: "in-use heap from before watching began".to_owned(),
        why: e.to_string(),
    })
}

/// In-use heap in bytes: Go's own profile, else resident anonymous memory,
/// which is larger by what the collector keeps free.
pub fn heap_bytes(profile: Option<&HeapProfile>, process: &Process) -> Option<u64> {
    let bytes = profile.filter(|p| p.rate > 0).map(memprofile::heap_in_use);
    bytes
        .filter(|b| *b >= 1.0)
        .map(|b| b as u64)
        .or_else(|| process.memory_use().ok().map(|m| m.anon_bytes).filter(|b| *b > 0))
}

impl Watched {
    /// What was in use when it was attached to, largest first. Gives a line for
    /// the log.
    pub fn put_before(&mut self, put: &mut impl FnMut(Item)) -> Option<String> {
        let HeapProfile { mut buckets, rate, torn, .. } = self.at_attach.take()?;
        let pid = self.process.pid;
        buckets.retain(|b| b.held > 0 && b.size > 0);
        let weight = |b: &Bucket| b.held as f64 * b.size as f64 / sampled_share(b.size, rate);
        buckets.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        let total: f64 = buckets.iter().map(weight).sum();
        let cut = buckets.split_off(buckets.len().min(MOST));
        for b in &buckets {
            if self.seen_buckets.insert(b.address) {
                self.put_bucket(pid, b.address, &b.stack, put);
            }
            let (bucket, size, samples) = (b.address, b.size, b.held);
            put(Item::Before { pid, bucket, size, samples, rate });
        }
        let mut line = format!(
            "process {pid}: {} in use from {} stacks before watching began",
            text::bytes(total),
            buckets.len()
        );
        if !cut.is_empty() {
            let bytes = text::bytes(cut.iter().map(weight).sum());
            line += &format!(", {} more stacks with {bytes} found no room", cut.len());
        }
        if torn > 0 {
            line += &format!(", {torn} of them changed while they were read");
        }
        Some(line)
    }
}
