//! Labels of goroutines, read from their memory: what `claw-ebpf/labels.rs`
//! does in the kernel, for goroutines that no probe saw. Many at once, each
//! step of all of them in a few large reads.

use std::sync::Arc;

use claw_common::{
    LabelLayout,
    config::MAX_KEY_LEN,
    event::MAX_LABEL,
    labels::{
        BMAP_KEYS, BMAP_OVERFLOW, BMAP_SIZE, BMAP_VALUES, HMAP, HMAP_B, HMAP_BUCKETS, MIN_TOP_HASH,
        STRING,
    },
};
use rustc_hash::FxHashMap;

use crate::{
    decode::Label,
    target::{
        bulk::{Piece, gather},
        memory::Memory,
    },
};

/// Labels of one goroutine, buckets of a Go ≤ 1.23 map and links of each chain
/// that are believed; who sets labels sets a handful.
const MOST_LABELS: u64 = 256;
const MOST_BUCKETS_LOG2: u8 = 5;
const MOST_CHAIN: usize = 4;
/// Address and length of a Go string.
type GoString = (u64, u64);
type Pairs = Vec<(GoString, GoString)>;

/// Longest key or value that [`all`] reads.
const MOST_TEXT: usize = 1024;
/// Goroutines whose labels are read together.
const TOGETHER: usize = 1024;
/// Bytes that are read for the labels of one call: a million goroutines, each
/// with a map of its own, need less.
const MOST_BYTES: usize = 512 << 20;

/// They cannot be read, or are no labels: perhaps they changed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("labels that cannot be read")]
pub struct Unreadable;

/// All labels at each of `addresses`, which are values of `g.labels`: `each`
/// gets the index and the labels as key and value.
pub fn all(
    memory: &impl Memory,
    layout: LabelLayout,
    addresses: &[u64],
    mut each: impl FnMut(usize, Result<&[(Arc<str>, Arc<str>)], Unreadable>),
) {
    let mut reader = Reader { memory, layout, left: MOST_BYTES };
    let mut index = 0..;
    for addresses in addresses.chunks(TOGETHER) {
        let pairs = reader.pairs(addresses);
        let strings = pairs.iter().flatten().flatten().flat_map(|(k, v)| [*k, *v]);
        let texts = reader.texts(strings, MOST_TEXT);
        let text = |s: &GoString| texts.get(s).cloned().flatten();
        for (pairs, i) in pairs.iter().zip(&mut index) {
            let labels: Option<Vec<_>> =
                pairs.iter().flatten().map(|(k, v)| Some((text(k)?, text(v)?))).collect();
            let labels = labels.filter(|_| pairs.is_some());
            each(i, labels.as_deref().ok_or(Unreadable));
        }
    }
}

/// At each of `addresses`, which are values of `g.labels`, the label that the
/// first of `keys` found names.
pub fn tenants(
    memory: &impl Memory,
    layout: LabelLayout,
    addresses: &[u64],
    keys: &[String],
) -> Vec<Result<Option<Label>, Unreadable>> {
    let mut reader = Reader { memory, layout, left: MOST_BYTES };
    let mut found = Vec::with_capacity(addresses.len());
    for addresses in addresses.chunks(TOGETHER) {
        let pairs = reader.pairs(addresses);
        let names = pairs.iter().flatten().flatten().map(|(key, _)| *key);
        let names = reader.texts(names.filter(|(_, n)| *n <= MAX_KEY_LEN as u64), MAX_KEY_LEN);
        let rank = |key: &GoString| match names.get(key) {
            Some(Some(name)) => Ok(keys.iter().position(|k| **k == **name)),
            Some(None) => Err(Unreadable),
            None => Ok(None),
        };
        let best: Vec<Result<Option<(usize, GoString)>, Unreadable>> = pairs
            .iter()
            .map(|pairs| {
                let mut best = None;
                for (key, value) in pairs.as_ref().ok_or(Unreadable)? {
                    let Some(rank) = rank(key)? else { continue };
                    if best.is_none_or(|(b, _)| rank < b) {
                        best = Some((rank, *value));
                    }
                }
                Ok(best)
            })
            .collect();
        let values = best.iter().filter_map(|b| Some((*b).ok()??.1));
        let values = reader.texts(values, MAX_LABEL);
        found.extend(best.into_iter().map(|best| {
            let Some((rank, value)) = best? else { return Ok(None) };
            let text = values.get(&value).cloned().flatten().ok_or(Unreadable)?;
            Ok(Some(Label {
                key: u8::try_from(rank).unwrap_or(u8::MAX),
                value: text.as_ref().to_owned(),
                cut: value.1 > MAX_LABEL as u64,
            }))
        }));
    }
    found
}

struct Reader<'a, M> {
    memory: &'a M,
    layout: LabelLayout,
    /// Bytes that may still be read.
    left: usize,
}

impl<M: Memory> Reader<'_, M> {
    fn gather(&mut self, pieces: &[Piece]) -> Vec<Option<Vec<u8>>> {
        let wanted = pieces.iter().fold(0usize, |sum, p| sum.saturating_add(p.len));
        match self.left.checked_sub(wanted) {
            Some(left) => {
                self.left = left;
                gather(self.memory, pieces)
            }
            None => vec![None; pieces.len()],
        }
    }

    fn pairs(&mut self, addresses: &[u64]) -> Vec<Option<Pairs>> {
        match self.layout {
            LabelLayout::Slice => self.slices(addresses),
            LabelLayout::Map => self.maps(addresses),
        }
    }

    /// `[]label{key, value string}`.
    fn slices(&mut self, addresses: &[u64]) -> Vec<Option<Pairs>> {
        let heads = addresses.iter().map(|a| Piece { address: *a, len: present(*a) * 16 });
        let heads = self.gather(&heads.collect::<Vec<_>>());
        let arrays: Vec<Option<Piece>> = heads
            .iter()
            .map(|head| {
                let (address, n) = pair(head.as_ref()?, 0);
                let len = usize::try_from(n).ok().filter(|_| n <= MOST_LABELS)? * 32;
                Some(Piece { address, len })
            })
            .collect();
        let nothing = Piece { address: 0, len: 0 };
        let pieces: Vec<Piece> = arrays.iter().map(|p| p.unwrap_or(nothing)).collect();
        let read = self.gather(&pieces);
        let both = arrays.iter().zip(read);
        both.map(|(piece, bytes)| {
            piece.as_ref()?;
            Some(bytes?.chunks_exact(32).map(|c| (pair(c, 0), pair(c, 16))).collect())
        })
        .collect()
    }

    /// `*map[string]string`.
    fn maps(&mut self, addresses: &[u64]) -> Vec<Option<Pairs>> {
        let pointers = addresses.iter().map(|a| Piece { address: *a, len: present(*a) * 8 });
        let pointers = self.gather(&pointers.collect::<Vec<_>>());
        let heads = pointers.iter().map(|p| {
            let address = p.as_ref().map_or(0, |p| word(p, 0));
            Piece { address, len: present(address) * HMAP as usize }
        });
        let heads = self.gather(&heads.collect::<Vec<_>>());
        let mut found: Vec<Option<Pairs>> =
            pointers.iter().map(|p| p.as_ref().map(|_| Pairs::new())).collect();
        // Whose it is, and the bucket.
        let mut level: Vec<(usize, u64)> = Vec::new();
        for ((i, head), found) in heads.iter().enumerate().zip(&mut found) {
            let Some(head) = head else {
                *found = None;
                continue;
            };
            let b = head.get(HMAP_B as usize).copied().unwrap_or(0);
            let first = word(head, HMAP_BUCKETS as usize);
            if b > MOST_BUCKETS_LOG2 {
                *found = None;
            } else if first != 0 {
                let n = 1u64 << b;
                level.extend((0..n).map(|k| (i, first.wrapping_add(k * u64::from(BMAP_SIZE)))));
            }
        }
        for _ in 0..MOST_CHAIN {
            let pieces = level.iter().map(|(_, a)| Piece { address: *a, len: BMAP_SIZE as usize });
            let buckets = self.gather(&pieces.collect::<Vec<_>>());
            let mut next = Vec::new();
            for ((i, _), bucket) in level.iter().zip(buckets) {
                let Some(pairs) = found.get_mut(*i) else { continue };
                let (Some(known), Some(bucket)) = (pairs.as_mut(), bucket) else {
                    *pairs = None;
                    continue;
                };
                let used = (0..8).filter(|s| bucket.get(*s).is_some_and(|t| *t >= MIN_TOP_HASH));
                known.extend(used.map(|slot| {
                    let at = slot * STRING as usize;
                    (
                        pair(&bucket, BMAP_KEYS as usize + at),
                        pair(&bucket, BMAP_VALUES as usize + at),
                    )
                }));
                let overflow = word(&bucket, BMAP_OVERFLOW as usize);
                if overflow != 0 {
                    next.push((*i, overflow));
                }
            }
            level = next;
        }
        for (i, _) in level {
            if let Some(pairs) = found.get_mut(i) {
                *pairs = None;
            }
        }
        found
    }

    /// The text of each string, of long ones the first `most` bytes; `None`
    /// for those that cannot be read.
    fn texts(
        &mut self,
        strings: impl Iterator<Item = GoString>,
        most: usize,
    ) -> FxHashMap<GoString, Option<Arc<str>>> {
        let mut texts: FxHashMap<GoString, Option<Arc<str>>> = strings.map(|s| (s, None)).collect();
        let keys: Vec<GoString> = texts.keys().copied().collect();
        let pieces: Vec<Piece> = keys
            .iter()
            .map(|(address, len)| Piece {
                address: *address,
                len: usize::try_from(*len).unwrap_or(usize::MAX).min(most),
            })
            .collect();
        for (key, bytes) in keys.iter().zip(self.gather(&pieces)) {
            texts.insert(*key, bytes.map(|b| String::from_utf8_lossy(&b).into()));
        }
        texts
    }
}

/// 1 where there is something to read, 0 for nil.
fn present(address: u64) -> usize {
    usize::from(address != 0)
}

/// 0 where there is none.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Two words of `bytes`.
fn pair(bytes: &[u8], at: usize) -> GoString {
    (word(bytes, at), word(bytes, at + 8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::memory::BytesMemory;

    const BASE: u64 = 0x1000;

    /// Lays out strings and words one after the other.
    #[derive(Default)]
    struct Builder(Vec<u8>);

    impl Builder {
        fn bytes(&mut self, bytes: &[u8]) -> u64 {
            let at = BASE + self.0.len() as u64;
            self.0.extend(bytes);
            self.0.resize(self.0.len().next_multiple_of(8), 0);
            at
        }

        fn words(&mut self, words: &[u64]) -> u64 {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            self.bytes(&bytes)
        }

        fn memory(self) -> BytesMemory {
            BytesMemory { base: BASE, bytes: self.0 }
        }
    }

    fn tenant(
        memory: &BytesMemory,
        layout: LabelLayout,
        address: u64,
        keys: &[String],
    ) -> Result<Option<Label>, Unreadable> {
        tenants(memory, layout, &[address], keys).remove(0)
    }

    fn keys() -> Vec<String> {
        ["tenant", "tenant_id"].map(str::to_owned).to_vec()
    }

    fn slice_of(labels: &[(&str, &str)]) -> (BytesMemory, u64) {
        let mut b = Builder::default();
        let words: Vec<u64> = labels
            .iter()
            .flat_map(|(k, v)| {
                let (key, value) = (b.bytes(k.as_bytes()), b.bytes(v.as_bytes()));
                [key, k.len() as u64, value, v.len() as u64]
            })
            .collect();
        let data = b.words(&words);
        let header = b.words(&[data, labels.len() as u64, 8]);
        (b.memory(), header)
    }

    #[test]
    fn first_key_wins_in_a_slice() {
        let (m, at) = slice_of(&[("tenant_id", "two"), ("x", "y"), ("tenant", "one")]);
        let label = tenant(&m, LabelLayout::Slice, at, &keys()).unwrap().unwrap();
        assert_eq!((label.key, label.value.as_str(), label.cut), (0, "one", false));
        let (m, at) = slice_of(&[("other", "x")]);
        assert_eq!(tenant(&m, LabelLayout::Slice, at, &keys()).unwrap(), None);
        assert_eq!(tenant(&m, LabelLayout::Slice, 0, &keys()).unwrap(), None);
    }

    #[test]
    fn long_values_are_cut() {
        let (m, at) = slice_of(&[("tenant", &"x".repeat(100))]);
        let label = tenant(&m, LabelLayout::Slice, at, &keys()).unwrap().unwrap();
        assert!(label.cut && label.value.len() == MAX_LABEL);
    }

    #[test]
    fn maps_with_overflow_buckets() {
        let mut b = Builder::default();
        let (k, v) = (b.bytes(b"tenant_id"), b.bytes(b"acme"));
        let bucket = |tophash: u64, key: [u64; 2], value: [u64; 2], next: u64| {
            let mut words = vec![tophash];
            words.extend(key.iter().chain(&[0; 14]).chain(&value).chain(&[0; 14]));
            words.push(next);
            words
        };
        let overflow = b.words(&bucket(9, [k, 9], [v, 4], 0));
        let first = b.words(&bucket(0, [u64::MAX; 2], [u64::MAX; 2], overflow));
        let hmap = b.words(&[1, 0, first]);
        let labels = b.words(&[hmap]);
        let m = b.memory();
        let label = tenant(&m, LabelLayout::Map, labels, &keys()).unwrap().unwrap();
        assert_eq!((label.key, label.value.as_str()), (1, "acme"));
        let mut found = Vec::new();
        all(&m, LabelLayout::Map, &[labels, 0, 3, labels], |i, l| found.push(format!("{i} {l:?}")));
        assert_eq!(found[0], "0 Ok([(\"tenant_id\", \"acme\")])");
        assert_eq!(found[1..3], ["1 Ok([])", "2 Err(Unreadable)"]);
        assert_eq!(found[3], "3 Ok([(\"tenant_id\", \"acme\")])");
    }

    #[test]
    fn a_chain_that_runs_in_a_circle_ends() {
        let mut b = Builder::default();
        let own = BASE + 8;
        let mut words = vec![0; BMAP_SIZE as usize / 8 - 1];
        words.push(own);
        b.words(&[0]);
        assert_eq!(b.words(&words), own);
        let hmap = b.words(&[1, 0, own]);
        let labels = b.words(&[hmap]);
        assert_eq!(tenant(&b.memory(), LabelLayout::Map, labels, &keys()), Err(Unreadable));
    }

    #[test]
    fn wild_pointers_are_an_error() {
        let mut b = Builder::default();
        let header = b.words(&[u64::MAX - 4, u64::MAX, 0]);
        let m = b.memory();
        assert!(tenant(&m, LabelLayout::Slice, header, &keys()).is_err());
        assert!(tenant(&m, LabelLayout::Map, header, &keys()).is_err());
        assert!(tenant(&m, LabelLayout::Map, 3, &keys()).is_err());
    }
}
