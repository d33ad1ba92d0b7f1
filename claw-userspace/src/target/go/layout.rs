//! Where each Go version keeps the runtime fields that are read from outside.
//! One row per minor version; `tests/layouts.rs` checks every number against
//! the DWARF of a binary built with that version.

use claw_common::{GoTarget, LabelLayout};

use super::version::GoVersion;

/// Byte offsets within the runtime's structs (`runtime2.go`, `mheap.go`,
/// `mprof.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoLayout {
    pub minor: u32,
    pub g_m: u32,
    pub g_goid: u32,
    pub g_gopc: u32,
    pub g_startpc: u32,
    pub g_labels: u32,
    pub m_curg: u32,
    /// `g.sched.bp`, after which follow `g.syscallsp` and `g.syscallpc`.
    pub g_sched_bp: u32,
    /// Counts, modulo 256, how often a goroutine stopped running.
    pub g_tracking_seq: u32,
    pub g_lockedm: u32,
    /// 0 where there is none (Go 1.19).
    pub g_parent: u32,
    pub special_kind: u32,
    /// `_KindSpecialProfile`.
    pub kind_profile: u32,
    /// `specialprofile.b`.
    pub special_bucket: u32,
    pub labels: LabelLayout,
    /// Words of a `memRecordCycle`: allocs, frees and, up to 1.26, bytes of
    /// both.
    pub record_words: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no layout row for {version}: known are Go 1.19 and 1.21 to 1.27 \
     (add the row for 1.{minor} to target/go/layout.rs)"
)]
pub struct LayoutError {
    pub version: String,
    pub minor: u32,
}

const fn row(
    minor: u32,
    [g_goid, g_gopc, g_startpc, g_labels, m_curg]: [u32; 5],
    [special_kind, kind_profile, special_bucket]: [u32; 3],
    labels: LabelLayout,
    record_words: u32,
    [g_sched_bp, g_tracking_seq, g_lockedm, g_parent]: [u32; 4],
) -> GoLayout {
    GoLayout {
        minor,
        g_m: 48,
        g_goid,
        g_gopc,
        g_startpc,
        g_labels,
        m_curg,
        g_sched_bp,
        g_tracking_seq,
        g_lockedm,
        g_parent,
        special_kind,
        kind_profile,
        special_bucket,
        labels,
        record_words,
    }
}

pub const LAYOUTS: [GoLayout; 8] = [
    row(19, [152, 296, 312, 360, 192], [10, 2, 16], LabelLayout::Map, 4, [104, 189, 232, 0]),
    row(21, [152, 280, 296, 344, 192], [10, 2, 16], LabelLayout::Map, 4, [104, 188, 208, 272]),
    row(22, [152, 280, 296, 344, 192], [10, 2, 16], LabelLayout::Map, 4, [104, 191, 208, 272]),
    row(23, [160, 288, 304, 352, 192], [10, 3, 16], LabelLayout::Map, 4, [104, 199, 216, 280]),
    row(24, [160, 288, 304, 352, 192], [16, 3, 24], LabelLayout::Slice, 4, [104, 199, 216, 280]),
    row(25, [152, 280, 296, 344, 184], [16, 4, 24], LabelLayout::Slice, 4, [96, 191, 208, 272]),
    row(26, [152, 288, 304, 352, 184], [16, 4, 24], LabelLayout::Slice, 4, [96, 191, 208, 280]),
    row(27, [152, 288, 304, 352, 184], [16, 4, 24], LabelLayout::Slice, 2, [96, 191, 208, 280]),
];

impl GoLayout {
    /// # Errors
    /// When the version has no row; older and newer ones alike are refused,
    /// since a wrong offset would give wrong answers and not errors.
    pub fn of(version: &GoVersion) -> Result<&'static Self, LayoutError> {
        LAYOUTS
            .iter()
            .find(|l| version.major == 1 && l.minor == version.minor)
            .ok_or_else(|| LayoutError { version: version.raw.clone(), minor: version.minor })
    }

    /// What the BPF programs need of it.
    pub fn target(&self) -> GoTarget {
        GoTarget {
            g_goid: self.g_goid,
            g_labels: self.g_labels,
            g_gopc: self.g_gopc,
            g_startpc: self.g_startpc,
            g_m: self.g_m,
            m_curg: self.m_curg,
            special_kind: self.special_kind,
            special_kind_profile: self.kind_profile,
            special_bucket: self.special_bucket,
            label_layout: self.labels as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_versions_name_the_missing_row() {
        let v = |raw: &str| GoVersion::parse(raw).map(|v| GoLayout::of(&v).map(|l| l.minor));
        assert_eq!(v("go1.26.8"), Some(Ok(26)));
        let error = v("go1.28rc1").and_then(Result::err).map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("go1.28rc1") && e.contains("row for 1.28")));
        assert!(v("go1.20.14").is_some_and(|r| r.is_err()));
    }
}
