//! Recordings: the stream of a run in a file.
//!
//! A file is a 16-byte header and then frames.
//!
//! - Header: the magic `CLAWREC\0`, the format version as `u16`, six zero bytes.
//! - Frame: payload length as `u32`, CRC-32 (IEEE) of the payload as `u32`, the
//!   payload: one [`Item`](crate::stream::Item) in postcard's encoding.
//!
//! All integers are little-endian. The first item is the session. A file may
//! end anywhere: a frame that is cut, or whose checksum is wrong, ends the
//! recording, and what was whole before it is replayed. So a torn write is
//! harmless, and so is a full disk or a `kill -9` of the agent.
//!
//! The version changes whenever an item's encoding does, and when there are new
//! items: those come last, so that older recordings are still read.

mod reader;
mod writer;

pub use reader::{ReadError, Reader, Tail};
pub use writer::{WriteError, Writer};

pub const MAGIC: [u8; 8] = *b"CLAWREC\0";
pub const VERSION: u16 = 5;
/// Oldest version that is read.
const OLDEST: u16 = 1;
const HEADER: usize = 16;
/// Largest payload; most items are a few KiB at most.
const MAX_PAYLOAD: u32 = 1 << 24;
