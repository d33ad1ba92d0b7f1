//! What the BPF programs must know: struct offsets of each target's Go version
//! and the label keys that name a tenant.

/// Tenant label keys looked for, in order of preference.
pub const MAX_KEYS: usize = 4;
/// Longest label key.
pub const MAX_KEY_LEN: usize = 32;
/// Labels of one goroutine that are looked at.
pub const MAX_LABELS: usize = 16;
/// Targets watched at once.
pub const MAX_TARGETS: u32 = 1024;

/// How `g.labels` stores pprof labels (`runtime/pprof/label.go`).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelLayout {
    /// Go ≤ 1.23: pointer to a `map[string]string` (bucket map).
    Map = 1,
    /// Go ≥ 1.24: pointer to a slice of sorted `{key, value string}`.
    Slice = 2,
}

/// A label key, zero-padded: the key of the map from label key to its rank,
/// so that the length is part of what is compared.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantKey {
    pub len: u64,
    pub bytes: [u8; MAX_KEY_LEN],
}

/// Offsets are in bytes from the start of the named runtime struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoTarget {
    /// `g.goid`, `g.labels`, `g.gopc`, `g.startpc`.
    pub g_goid: u32,
    pub g_labels: u32,
    pub g_gopc: u32,
    pub g_startpc: u32,
    /// `g.m` and `m.curg`: from a system stack to the user goroutine.
    pub g_m: u32,
    pub m_curg: u32,
    /// `special.kind` and the value that marks a heap-profile sample.
    pub special_kind: u32,
    pub special_kind_profile: u32,
    /// `specialprofile.b`.
    pub special_bucket: u32,
    /// A [`LabelLayout`].
    pub label_layout: u32,
}

impl TenantKey {
    /// `None` when the key is empty or longer than [`MAX_KEY_LEN`].
    pub fn new(key: &str) -> Option<Self> {
        let mut k = Self { len: key.len() as u64, bytes: [0; MAX_KEY_LEN] };
        k.bytes.get_mut(..key.len())?.copy_from_slice(key.as_bytes());
        (!key.is_empty()).then_some(k)
    }
}

const _: () = assert!(core::mem::size_of::<TenantKey>() == 40);
const _: () = assert!(core::mem::size_of::<GoTarget>() == 40);
