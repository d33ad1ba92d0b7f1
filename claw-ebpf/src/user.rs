//! Reads from the target's memory.

use aya_ebpf::helpers::bpf_probe_read_user;

/// The value at `base + offset`; `None` when the page is not readable now or
/// `base` is nil.
#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Option<T> {
    if base == 0 {
        return None;
    }
    // SAFETY: the helper checks the address and fails instead of faulting.
    unsafe { bpf_probe_read_user((base.wrapping_add(u64::from(offset))) as *const T) }.ok()
}
