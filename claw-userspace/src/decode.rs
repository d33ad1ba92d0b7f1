//! Ring-buffer bytes → events. The only `unsafe` outside `probe`; every length
//! in a record is checked against the bytes that are there.

use claw_common::RecordedLabel;
use claw_common::event::{EventHeader, EventKind, HEADER_SIZE, MAX_LABEL, MAX_STACK};
use serde::{Deserialize, Serialize};

/// One thing that happened in a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `CLOCK_MONOTONIC`, ns.
    pub t_ns: u64,
    pub pid: u32,
    pub tid: u32,
    /// Goroutine on whose behalf it happened; 0 when there is none.
    pub goid: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The runtime sampled an allocation of `size` bytes at `addr`. `stack`
    /// holds return addresses, leaf first.
    Alloc {
        addr: u64,
        size: u64,
        label: Option<Label>,
        stack: Vec<u64>,
    },
    /// A sampled object was freed. `bucket` identifies its allocation stack
    /// (see [`crate::stream::Item::Bucket`]); 0 when unknown.
    Free {
        addr: u64,
        size: u64,
        bucket: u64,
    },
    /// Goroutine `id` was created at `gopc` to run the function at `startpc`.
    GoroutineNew {
        id: u64,
        gopc: u64,
        startpc: u64,
        label: Option<Label>,
        stack: Vec<u64>,
    },
    /// Goroutine `id`, created at `gopc`, ended.
    GoroutineExit {
        gopc: u64,
        id: u64,
    },
    /// A GC mark phase ended: what was dead when it began is freed before the
    /// next one ends.
    Gc,
    Exec,
    Exit,
    /// One allocation of `size` bytes of the type at `typ` in an open window of
    /// exact mode; `caller` is where the allocator returns to, `stack` an id
    /// in the map of stacks. Not kept in recordings.
    EveryAlloc {
        stack: i32,
        size: u64,
        typ: u64,
        caller: u64,
        label: Option<Label>,
    },
}

/// A tenant label as found on a goroutine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Which of the configured keys matched.
    pub key: u8,
    /// Value, invalid UTF-8 replaced; at most [`MAX_LABEL`] bytes of it.
    pub value: String,
    /// The target's value was longer.
    pub cut: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("record of {len} bytes is shorter than an event header ({HEADER_SIZE} bytes)")]
    Short { len: usize },
    #[error("unknown event kind {0}")]
    Kind(u16),
    #[error("record says {frames} frames but {bytes} bytes follow the header")]
    Stack { frames: usize, bytes: usize },
    #[error("label of {0} bytes exceeds the limit of {MAX_LABEL}")]
    Label(u8),
}

/// Decode one record.
///
/// # Errors
/// When the record is cut, of an unknown kind or contradicts itself.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    if bytes.len() < HEADER_SIZE {
        return Err(DecodeError::Short { len: bytes.len() });
    }
    // SAFETY: the length was checked, every bit pattern is a valid
    // `EventHeader` (integers and byte arrays only), and the read is unaligned.
    let h: EventHeader = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
    let kind = EventKind::from_u16(h.kind).ok_or(DecodeError::Kind(h.kind))?;
    let frames = usize::from(h.stack_len);
    let rest = &bytes[HEADER_SIZE..];
    // The ring buffer hands out records padded to 8 bytes, so more is fine.
    if frames > MAX_STACK || rest.len() < frames * 8 {
        return Err(DecodeError::Stack { frames, bytes: rest.len() });
    }
    let stack = || {
        rest.chunks_exact(8)
            .take(frames)
            .map(|c| u64::from_ne_bytes(c.try_into().unwrap_or_default()))
            .collect::<Vec<u64>>()
    };
    let label = self::label(&h.label)?;
    let what = match kind {
        EventKind::GoAlloc => What::Alloc { addr: h.addr, size: h.size, label, stack: stack() },
        EventKind::GoFree => What::Free { addr: h.addr, size: h.size, bucket: h.aux },
        EventKind::GoroutineNew => What::GoroutineNew {
            id: h.aux,
            gopc: h.gopc,
            startpc: h.startpc,
            label,
            stack: stack(),
        },
        EventKind::GoroutineExit => What::GoroutineExit { id: h.aux, gopc: h.gopc },
        EventKind::GoGc => What::Gc,
        EventKind::Exec => What::Exec,
        EventKind::Exit => What::Exit,
        EventKind::GoEveryAlloc => {
            let stack = i32::try_from(h.addr.cast_signed()).unwrap_or(-1);
            What::EveryAlloc { stack, size: h.size, typ: h.aux, caller: h.gopc, label }
        }
    };
    Ok(Event { t_ns: h.time_ns, pid: h.tgid, tid: h.tid, goid: h.goid, what })
}

/// A label as the BPF side records it.
///
/// # Errors
/// When it says that it is longer than it can be.
pub fn label(l: &RecordedLabel) -> Result<Option<Label>, DecodeError> {
    if l.key == RecordedLabel::NONE {
        return Ok(None);
    }
    let value = l.value.get(..usize::from(l.len)).ok_or(DecodeError::Label(l.len))?;
    Ok(Some(Label {
        key: l.key,
        value: String::from_utf8_lossy(value).into_owned(),
        cut: usize::from(l.full_len) > value.len(),
    }))
}
