//! The tenant label among a goroutine's pprof labels, for both layouts that
//! the runtime has had (`runtime/pprof/label.go`).

use aya_ebpf::{helpers::bpf_probe_read_user_buf, macros::map, maps::HashMap};
use claw_common::{
    Counter, GoTarget, LabelLayout, RecordedLabel, TenantKey,
    config::{MAX_KEY_LEN, MAX_KEYS, MAX_LABELS},
    event::MAX_LABEL,
    labels::{
        BMAP_KEYS, BMAP_OVERFLOW, BMAP_SIZE, BMAP_VALUES, HMAP_B, HMAP_BUCKETS, MIN_TOP_HASH,
        STRING,
    },
};

use crate::{emit::count, user::read};

/// Label key → rank; the lowest rank present on a goroutine names its tenant.
#[map]
static TENANT_KEYS: HashMap<TenantKey, u32> = HashMap::with_max_entries(MAX_KEYS as u32, 0);

/// A Go string header.
#[repr(C)]
#[derive(Clone, Copy)]
struct GoString {
    data: u64,
    len: u64,
}

/// `label{key, value string}`, Go ≥ 1.24.
#[repr(C)]
#[derive(Clone, Copy)]
struct KeyValue {
    key: GoString,
    value: GoString,
}

struct Best {
    rank: u32,
    value: GoString,
}

/// Buckets of a Go ≤ 1.23 map that are looked at (B ≤ 2), and the length of
/// each one's chain of overflow buckets.
const MAP_BUCKETS: u64 = 4;
const MAP_CHAIN: usize = 2;

/// Fill `out` with the label of goroutine `g` that names its tenant, if any.
#[inline(always)]
pub fn tenant(target: &GoTarget, g: u64, out: &mut RecordedLabel) {
    let Some(labels) = read::<u64>(g, target.g_labels) else {
        count(Counter::LabelUnreadable);
        return;
    };
    if labels == 0 {
        return;
    }
    let mut best = Best { rank: u32::MAX, value: GoString { data: 0, len: 0 } };
    let seen = if target.label_layout == LabelLayout::Slice as u32 {
        scan_slice(labels, &mut best)
    } else {
        scan_map(labels, &mut best)
    };
    if seen.is_none() {
        count(Counter::LabelUnreadable);
    }
    if best.rank == u32::MAX {
        return;
    }
    let len = if best.value.len < MAX_LABEL as u64 { best.value.len as usize } else { MAX_LABEL };
    let Some(buf) = out.value.get_mut(..len) else { return };
    // SAFETY: the helper checks the address and fails instead of faulting.
    if len > 0 && unsafe { bpf_probe_read_user_buf(best.value.data as *const u8, buf) }.is_err() {
        count(Counter::LabelUnreadable);
        return;
    }
    out.key = best.rank as u8;
    out.len = len as u8;
    out.full_len = if best.value.len > 0xffff { 0xffff } else { best.value.len as u16 };
}

#[inline(always)]
fn scan_slice(labels: u64, best: &mut Best) -> Option<()> {
    let data: u64 = read(labels, 0)?;
    let len: u64 = read(labels, 8)?;
    if len > MAX_LABELS as u64 {
        count(Counter::LabelsSkipped);
    }
    for i in 0..MAX_LABELS as u32 {
        if u64::from(i) >= len {
            break;
        }
        let kv: KeyValue = read(data, i * 32)?;
        consider(&kv.key, &kv.value, best);
    }
    Some(())
}

#[inline(always)]
fn scan_map(labels: u64, best: &mut Best) -> Option<()> {
    let hmap: u64 = read(labels, 0)?;
    if hmap == 0 {
        return Some(());
    }
    let b: u8 = read(hmap, HMAP_B)?;
    let buckets: u64 = read(hmap, HMAP_BUCKETS)?;
    if buckets == 0 {
        return Some(());
    }
    let mut n = if b < 8 { 1u64 << b } else { 256 };
    if n > MAP_BUCKETS {
        count(Counter::LabelsSkipped);
        n = MAP_BUCKETS;
    }
    for i in 0..MAP_BUCKETS {
        if i >= n {
            break;
        }
        let mut bucket = buckets.wrapping_add(i * u64::from(BMAP_SIZE));
        for _ in 0..MAP_CHAIN {
            let tophash: [u8; 8] = read(bucket, 0)?;
            for slot in 0..8u32 {
                if tophash[slot as usize] < MIN_TOP_HASH {
                    continue;
                }
                let key: GoString = read(bucket, BMAP_KEYS + slot * STRING)?;
                let value: GoString = read(bucket, BMAP_VALUES + slot * STRING)?;
                consider(&key, &value, best);
            }
            bucket = read(bucket, BMAP_OVERFLOW)?;
            if bucket == 0 {
                break;
            }
        }
    }
    Some(())
}

#[inline(always)]
fn consider(key: &GoString, value: &GoString, best: &mut Best) {
    if key.len == 0 || key.len > MAX_KEY_LEN as u64 {
        return;
    }
    let mut wanted = TenantKey { len: key.len, bytes: [0; MAX_KEY_LEN] };
    let Some(buf) = wanted.bytes.get_mut(..key.len as usize) else { return };
    // SAFETY: the helper checks the address and fails instead of faulting.
    if unsafe { bpf_probe_read_user_buf(key.data as *const u8, buf) }.is_err() {
        count(Counter::LabelUnreadable);
        return;
    }
    // SAFETY: the map is only written by the agent, before it attaches.
    if let Some(rank) = unsafe { TENANT_KEYS.get(&wanted) } {
        if *rank < best.rank {
            best.rank = *rank;
            best.value = *value;
        }
    }
}
