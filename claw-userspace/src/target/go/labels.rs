//! A goroutine's tenant label, read from its memory: what `claw-ebpf/labels.rs`
//! does in the kernel, for goroutines that no probe saw.

use claw_common::{
    LabelLayout,
    config::{MAX_KEY_LEN, MAX_LABELS},
    event::MAX_LABEL,
};

use crate::{
    decode::Label,
    target::memory::{Memory, MemoryError},
};

/// Buckets of a Go ≤ 1.23 map and links of each chain that are looked at.
const MAP_BUCKETS: u64 = 4;
const MAP_CHAIN: usize = 2;
/// `hmap`: B@9, buckets@16; `bmap` of `map[string]string`: tophash [8]u8, keys
/// [8]string, values [8]string, overflow (`runtime/map.go`, Go 1.19–1.23).
const HMAP_B: u64 = 9;
const HMAP_BUCKETS: u64 = 16;
const BMAP_KEYS: usize = 8;
const BMAP_VALUES: usize = BMAP_KEYS + 8 * 16;
const BMAP_OVERFLOW: usize = BMAP_VALUES + 8 * 16;
const BMAP_SIZE: usize = BMAP_OVERFLOW + 8;
/// Smallest `tophash` of an occupied slot (`minTopHash`).
const MIN_TOP_HASH: u8 = 5;

/// Address and length of a Go string.
type GoString = (u64, u64);

/// Longest key or value that [`all`] reads.
const MOST_TEXT: u64 = 1024;

/// All labels in the order in which the runtime keeps them; `labels` is
/// `g.labels`.
///
/// # Errors
/// When the labels cannot be read, perhaps because they changed meanwhile.
pub fn all(
    memory: &impl Memory,
    layout: LabelLayout,
    labels: u64,
) -> Result<Vec<(String, String)>, MemoryError> {
    if labels == 0 {
        return Ok(Vec::new());
    }
    let pairs = match layout {
        LabelLayout::Slice => slice(memory, labels)?,
        LabelLayout::Map => map(memory, labels)?,
    };
    let text = |(data, len): GoString| {
        let mut bytes = vec![0; len.min(MOST_TEXT) as usize];
        if !bytes.is_empty() {
            memory.read(data, &mut bytes)?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    pairs.into_iter().map(|(key, value)| Ok((text(key)?, text(value)?))).collect()
}

/// The label that the first of `keys` found names; `labels` is `g.labels`.
///
/// # Errors
/// When the labels cannot be read, perhaps because they changed meanwhile.
pub fn tenant(
    memory: &impl Memory,
    layout: LabelLayout,
    labels: u64,
    keys: &[String],
) -> Result<Option<Label>, MemoryError> {
    if labels == 0 {
        return Ok(None);
    }
    let pairs = match layout {
        LabelLayout::Slice => slice(memory, labels)?,
        LabelLayout::Map => map(memory, labels)?,
    };
    let mut best: Option<(usize, GoString)> = None;
    for ((data, len), value) in pairs {
        if len == 0 || len > MAX_KEY_LEN as u64 {
            continue;
        }
        let mut key = vec![0; len as usize];
        memory.read(data, &mut key)?;
        if let Some(rank) = keys.iter().position(|k| k.as_bytes() == key)
            && best.is_none_or(|(b, _)| rank < b)
        {
            best = Some((rank, value));
        }
    }
    let Some((rank, (data, len))) = best else { return Ok(None) };
    let mut value = vec![0; len.min(MAX_LABEL as u64) as usize];
    memory.read(data, &mut value)?;
    Ok(Some(Label {
        key: u8::try_from(rank).unwrap_or(u8::MAX),
        value: String::from_utf8_lossy(&value).into_owned(),
        cut: len > MAX_LABEL as u64,
    }))
}

/// `[]label{key, value string}`.
fn slice(memory: &impl Memory, labels: u64) -> Result<Vec<(GoString, GoString)>, MemoryError> {
    let (data, len) = string(memory, labels)?;
    let n = len.min(MAX_LABELS as u64) as usize;
    let mut bytes = vec![0; n * 32];
    memory.read(data, &mut bytes)?;
    Ok(bytes.chunks_exact(32).map(|c| (pair(c, 0), pair(c, 16))).collect())
}

fn map(memory: &impl Memory, labels: u64) -> Result<Vec<(GoString, GoString)>, MemoryError> {
    let hmap = memory.u64_at(labels)?;
    if hmap == 0 {
        return Ok(Vec::new());
    }
    let mut b = [0];
    memory.read(hmap.wrapping_add(HMAP_B), &mut b)?;
    let buckets = memory.u64_at(hmap.wrapping_add(HMAP_BUCKETS))?;
    let mut pairs = Vec::new();
    for i in 0..MAP_BUCKETS.min(1 << b[0].min(8)) {
        let mut bucket = buckets.wrapping_add(i * BMAP_SIZE as u64);
        for _ in 0..MAP_CHAIN {
            if bucket == 0 {
                break;
            }
            let mut bytes = [0; BMAP_SIZE];
            memory.read(bucket, &mut bytes)?;
            for slot in (0..8).filter(|s| bytes[*s] >= MIN_TOP_HASH) {
                pairs.push((
                    pair(&bytes, BMAP_KEYS + slot * 16),
                    pair(&bytes, BMAP_VALUES + slot * 16),
                ));
            }
            bucket = pair(&bytes, BMAP_OVERFLOW - 8).1;
        }
    }
    Ok(pairs)
}

fn string(memory: &impl Memory, address: u64) -> Result<GoString, MemoryError> {
    let mut bytes = [0; 16];
    memory.read(address, &mut bytes)?;
    Ok(pair(&bytes, 0))
}

/// Two words of `bytes`, 0 where there are none.
fn pair(bytes: &[u8], at: usize) -> GoString {
    let word = |at: usize| {
        bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    };
    (word(at), word(at + 8))
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
        let label = tenant(&b.memory(), LabelLayout::Map, labels, &keys()).unwrap().unwrap();
        assert_eq!((label.key, label.value.as_str()), (1, "acme"));
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
