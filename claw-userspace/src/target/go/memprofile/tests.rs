use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::target::{
    go::{layout::LAYOUTS, version::GoVersion},
    memory::BytesMemory,
};

const BASE: u64 = 0x10_000;
/// mbuckets, rate, cycle, then the buckets.
const VARIABLES: Variables = Variables { mbuckets: BASE, rate: BASE + 8, cycle: BASE + 16 };
const FIRST: u64 = BASE + 24;

/// One bucket with two frames: next, size, and `{allocs, frees}` of active and
/// the futures. `NEXT` is the bucket behind it.
type Fake = (u64, u64, Record);
const NEXT: u64 = u64::MAX;

fn bucket_len(words: usize) -> u64 {
    48 + 16 + words as u64 * 32
}

fn memory(cycle: u32, buckets: &[Fake], words: usize) -> BytesMemory {
    let len = bucket_len(words);
    let mut bytes = vec![0; 24];
    bytes[0..8].copy_from_slice(&FIRST.to_le_bytes());
    bytes[8..16].copy_from_slice(&(512u64 << 10).to_le_bytes());
    bytes[16..20].copy_from_slice(&(cycle << 1).to_le_bytes());
    for (i, (next, size, record)) in (1u64..).zip(buckets) {
        let mut b = vec![0u8; len as usize];
        let mut put = |at: usize, v: u64| b[at..at + 8].copy_from_slice(&v.to_le_bytes());
        put(8, if *next == NEXT { FIRST + i * len } else { *next });
        put(16, 1);
        put(32, *size);
        put(40, 2);
        put(48, 0x40_1234);
        put(56, 0x40_5678);
        for (c, (allocs, frees)) in record.iter().enumerate() {
            put(64 + c * words * 8, *allocs);
            put(72 + c * words * 8, *frees);
        }
        bytes.extend(b);
    }
    BytesMemory { base: BASE, bytes }
}

fn layout(minor: u32) -> &'static GoLayout {
    let raw = format!("go1.{minor}.0");
    GoVersion::parse(&raw).and_then(|v| GoLayout::of(&v).ok()).unwrap_or(&LAYOUTS[0])
}

const NONE: (u64, u64) = (0, 0);

#[test]
fn list_of_both_record_layouts() {
    for (minor, words) in [(26, 4), (27, 2)] {
        let first = [(9, 4), NONE, (1, 0), (50, 50)];
        let m = memory(4, &[(NEXT, 1 << 20, first), (0, 64, [(3, 0), NONE, NONE, NONE])], words);
        let p = read(&m, layout(minor), &VARIABLES).unwrap();
        assert_eq!((p.rate, p.torn, p.before_gc), (512 << 10, 0, false));
        // Cycle 4 still has future[1] to hand over, and only that.
        let seen: Vec<_> = p.buckets.iter().map(|b| (b.size, b.allocs, b.frees)).collect();
        assert_eq!(seen, [(1 << 20, 10, 4), (64, 3, 0)]);
        assert_eq!(p.buckets[0].held, 60 - 54, "with what cycles to come will publish");
        assert_eq!(p.buckets[1].stack, [0x40_1234, 0x40_5678]);
        assert_eq!(bucket_stack(&m, FIRST).unwrap(), [0x40_1234, 0x40_5678]);
        // 6 objects of 1 MiB at p = .8647, 3 of 64 B at p = 1/8192.
        let expected = 6.0 * 1_048_576.0 / 0.8647 + 3.0 * 524_288.0;
        assert!((heap_in_use(&p) / expected - 1.0).abs() < 1e-3);
    }
}

#[test]
fn before_the_first_cycle_everything_counts() {
    let m = memory(1, &[(0, 64, [NONE, (1, 0), NONE, (2, 1)])], 4);
    let p = read(&m, layout(26), &VARIABLES).unwrap();
    assert!(p.before_gc, "but what is pending of cycle 1 is future[1]");
    assert_eq!((p.buckets[0].allocs, p.buckets[0].frees), (3, 1));
}

#[test]
fn hostile_lists_end() {
    let one = |next| memory(1, &[(next, 64, [(1, 0); 4])], 4);
    let error = |m: &BytesMemory| read(m, layout(26), &VARIABLES).unwrap_err().to_string();
    assert!(error(&one(FIRST)).contains("circle"));
    assert!(error(&one(0xdead_beef)).contains("cannot read"));
    assert!(error(&one(u64::MAX - 7)).contains("cannot read"));
    let set = |at: usize, value: u64| {
        let mut m = one(0);
        m.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        m
    };
    for depth in [1025, u64::MAX, 1 << 63] {
        let deep = set(24 + 40, depth);
        assert!(error(&deep).contains("too deep"));
        assert!(bucket_stack(&deep, FIRST).is_err());
    }
    assert!(error(&set(24 + 40, 1024)).contains("cannot read"), "more than there is");
    assert!(error(&set(24 + 16, 2)).contains("another type"));
    assert!(error(&set(8, u64::MAX)).contains("not a sampling rate"));
}

/// Every read of a counter gives another value, until `still` reads are done.
struct Moving {
    inner: BytesMemory,
    reads: Cell<u64>,
    still: u64,
}

impl Memory for Moving {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        self.inner.read(address, buf)?;
        let at = FIRST + 64;
        if let Some(at) = at.checked_sub(address).filter(|at| at + 8 <= buf.len() as u64) {
            let n = self.reads.get().min(self.still);
            self.reads.set(n + 1);
            buf[at as usize..at as usize + 8].copy_from_slice(&(100 + n).to_le_bytes());
        }
        Ok(())
    }
}

#[test]
fn counts_that_move_are_read_again_and_else_counted() {
    let moving = |still| {
        let inner = memory(1, &[(NEXT, 64, [(9, 4); 4]), (0, 64, [(9, 4); 4])], 4);
        let m = Moving { inner, reads: Cell::new(0), still };
        read(&m, layout(26), &VARIABLES).unwrap()
    };
    let p = moving(3);
    assert_eq!((p.torn, p.buckets[0].allocs), (0, 112), "103 and 9 pending");
    assert_eq!(moving(u64::MAX).torn, 1);
    // Half of a change: more freed than allocated.
    let m = memory(1, &[(0, 64, [(1, 4), NONE, NONE, NONE])], 4);
    let p = read(&m, layout(26), &VARIABLES).unwrap();
    assert_eq!((p.torn, p.buckets[0].in_use()), (1, 0));
}

proptest! {
    /// Whatever the memory holds, the reader ends with a bounded answer.
    #[test]
    fn any_memory(
        minor in prop::sample::select(vec![19u32, 22, 26, 27]),
        damage in prop::collection::vec(
            (0usize..640, prop_oneof![
                any::<u64>(),
                0u64..2000,
                (0u64..800).prop_map(|o| BASE + o),
                Just(FIRST),
            ]),
            0..12,
        ),
        keep in 0usize..700,
    ) {
        let words = layout(minor).record_words as usize;
        let one = [(9, 4); 4];
        let mut m = memory(7, &[(NEXT, 64, one), (NEXT, 4096, one), (0, 1 << 20, one)], words);
        for (at, word) in damage {
            if let Some(place) = m.bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        }
        m.bytes.truncate(keep);
        if let Ok(p) = read(&m, layout(minor), &VARIABLES) {
            prop_assert!(p.buckets.len() <= 32);
            prop_assert!(heap_in_use(&p).is_finite());
        }
    }
}
