//! Go's `map[string]string`, in which labels are kept up to Go 1.23
//! (`runtime/map.go`, Go 1.19–1.23). All in bytes.

/// `hmap.B` and `hmap.buckets`, and as much of an `hmap` as holds them.
pub const HMAP_B: u32 = 9;
pub const HMAP_BUCKETS: u32 = 16;
pub const HMAP: u32 = 24;
/// `bmap`: tophash [8]u8, keys [8]string, values [8]string, overflow pointer.
pub const BMAP_KEYS: u32 = 8;
pub const BMAP_VALUES: u32 = BMAP_KEYS + 8 * STRING;
pub const BMAP_OVERFLOW: u32 = BMAP_VALUES + 8 * STRING;
pub const BMAP_SIZE: u32 = BMAP_OVERFLOW + 8;
/// Smallest `tophash` of an occupied slot (`minTopHash`).
pub const MIN_TOP_HASH: u8 = 5;
/// A string: its address and its length.
pub const STRING: u32 = 16;
