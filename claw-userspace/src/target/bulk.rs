//! Reading many small pieces of a target's memory at once: pieces that lie
//! close together are read as one, and many of those in one system call.

use super::memory::{Memory, Range};

/// A piece to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub address: u64,
    /// Bytes.
    pub len: usize,
}

/// Bytes that are read in vain rather than beginning a new range.
const GAP: u64 = 2048;
/// Bytes of one range, and of all ranges that are read before they are handed
/// out: what was read is still in a core's own cache then.
const MOST_RANGE: u64 = 1 << 18;
const MOST_BATCH: usize = 1 << 19;

/// Read all `pieces`; `each` gets the index and, where it could be read, the
/// bytes of every one, in the order of their addresses.
pub fn read_pieces(
    memory: &impl Memory,
    pieces: &[Piece],
    mut each: impl FnMut(usize, Option<&[u8]>),
) {
    let mut order: Vec<(u64, u32)> = pieces.iter().map(|p| p.address).zip(0..).collect();
    // Mostly in order already, which a stable sort makes use of.
    order.sort_by_key(|(address, _)| *address);
    let mut batch = Batch::default();
    for (_, i) in order {
        let Some(piece) = pieces.get(i as usize) else { continue };
        if piece.len == 0 {
            each(i as usize, Some(&[]));
            continue;
        }
        if batch.bytes + piece.len > MOST_BATCH {
            batch.read(memory, &mut each);
        }
        batch.add(i as usize, *piece);
    }
    batch.read(memory, &mut each);
}

/// The bytes of each piece, in the order of `pieces`; `None` where they cannot be
/// read. A piece of no bytes is never read.
pub fn gather(memory: &impl Memory, pieces: &[Piece]) -> Vec<Option<Vec<u8>>> {
    let mut found: Vec<Option<Vec<u8>>> = vec![None; pieces.len()];
    read_pieces(memory, pieces, |i, bytes| {
        if let Some(slot) = found.get_mut(i) {
            *slot = bytes.map(<[u8]>::to_vec);
        }
    });
    found
}

#[derive(Default)]
struct Batch {
    ranges: Vec<Range>,
    /// Index, the range that holds it, and the piece.
    pieces: Vec<(usize, usize, Piece)>,
    bytes: usize,
    buffer: Vec<u8>,
}

impl Batch {
    fn add(&mut self, index: usize, piece: Piece) {
        let end = piece.address.saturating_add(piece.len as u64);
        if let Some(last) = self.ranges.last_mut() {
            let last_end = last.address.saturating_add(last.len as u64);
            if piece.address <= last_end.saturating_add(GAP)
                && end.saturating_sub(last.address) <= MOST_RANGE
            {
                let more = end.saturating_sub(last_end) as usize;
                last.len += more;
                self.bytes += more;
                self.pieces.push((index, self.ranges.len() - 1, piece));
                return;
            }
        }
        self.ranges.push(Range { address: piece.address, len: piece.len });
        self.bytes += piece.len;
        self.pieces.push((index, self.ranges.len() - 1, piece));
    }

    fn read(&mut self, memory: &impl Memory, each: &mut impl FnMut(usize, Option<&[u8]>)) {
        if self.buffer.len() < self.bytes {
            self.buffer.resize(self.bytes, 0);
        }
        let read = memory.read_ranges(&self.ranges, &mut self.buffer);
        let mut starts = Vec::with_capacity(self.ranges.len());
        let mut at = 0;
        for r in &self.ranges {
            starts.push(at);
            at += r.len;
        }
        for (index, range, piece) in self.pieces.drain(..) {
            let whole = read.get(range).copied().unwrap_or(false);
            if !whole {
                // What lies between the pieces may be what cannot be read.
                let mut bytes = vec![0; piece.len];
                let ok = memory.read(piece.address, &mut bytes).is_ok();
                each(index, ok.then_some(bytes.as_slice()));
                continue;
            }
            let found = self.ranges.get(range).zip(starts.get(range)).and_then(|(r, start)| {
                let from = start + usize::try_from(piece.address.checked_sub(r.address)?).ok()?;
                self.buffer.get(from..from.checked_add(piece.len)?)
            });
            each(index, found);
        }
        self.ranges.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::BytesMemory;

    #[test]
    fn near_and_far_overlapping_and_unreadable_pieces() {
        let bytes: Vec<u8> = (0..64 << 10).map(|i: u32| (i % 251) as u8).collect();
        let m = BytesMemory { base: 0x1_0000, bytes };
        let at = [0x1_fff8, 0x1_0000, 0x1_0004, 0x1_8000, 0x1_fffc, 0x5000, u64::MAX - 2, 0x1_0000];
        let pieces: Vec<Piece> = at.iter().map(|a| Piece { address: *a, len: 8 }).collect();
        let mut got = vec![None; at.len()];
        read_pieces(&m, &pieces, |i, b| got[i] = Some(b.map(<[u8]>::to_vec)));
        for (piece, got) in pieces.iter().zip(got) {
            let mut b = [0; 8];
            let expected = m.read(piece.address, &mut b).ok().map(|()| b.to_vec());
            assert_eq!(got, Some(expected), "{:#x}", piece.address);
        }
    }
}
