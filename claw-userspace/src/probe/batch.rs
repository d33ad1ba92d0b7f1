//! A whole hash map of the kernel's in a few system calls
//! (`BPF_MAP_LOOKUP_BATCH`, Linux ≥ 5.6), for which aya 0.14 has no door. Entry
//! by entry it takes two calls for each, at every window, of CPU time that the
//! service may want.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd};

/// Entries of one call. More than any bucket of the map holds, or the kernel
/// could not go on (`ENOSPC`).
const AT_ONCE: usize = 1024;

/// All entries of `map`, whose keys and values are a `K` and a `V`. What is added
/// meanwhile may be missing.
///
/// # Errors
/// When the kernel has no such call, or refuses.
pub fn entries<K: Pod, V: Pod>(map: &OwnedFd) -> io::Result<Vec<(K, V)>> {
    // SAFETY: any bytes are a value of a plain type, so are zeros.
    let (key, value): (K, V) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let (mut keys, mut values) = (vec![key; AT_ONCE], vec![value; AT_ONCE]);
    let mut all = Vec::new();
    // Where the kernel goes on, in its own terms: a number of four bytes.
    let (mut from, mut to) = (0u64, 0u64);
    let mut first = true;
    loop {
        // SAFETY: all zero is what an attribute without settings is.
        let mut attr: bpf_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the part of the union that this call reads.
        let batch = unsafe { &mut attr.batch };
        batch.in_batch = if first { 0 } else { (&raw mut from) as u64 };
        batch.out_batch = (&raw mut to) as u64;
        batch.keys = keys.as_mut_ptr() as u64;
        batch.values = values.as_mut_ptr() as u64;
        batch.count = AT_ONCE as u32;
        batch.map_fd = map.as_raw_fd().unsigned_abs();
        // SAFETY: the kernel writes at most `AT_ONCE` keys and values, for which
        // there is room, and eight bytes at most to say where it stands.
        let done = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                bpf_cmd::BPF_MAP_LOOKUP_BATCH as libc::c_int,
                &raw mut attr,
                size_of::<bpf_attr>(),
            )
        };
        let over = done != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT);
        if done != 0 && !over {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above; the kernel has written how many there were.
        let n = (unsafe { attr.batch.count } as usize).min(AT_ONCE);
        all.extend(keys.iter().copied().zip(values.iter().copied()).take(n));
        if over {
            return Ok(all);
        }
        (from, first) = (to, false);
    }
}
