//! One pymalloc pool: is it one, and which of its blocks are in use
//! (`struct pool_header`, `Objects/obmalloc.c`). The copy may be torn, since
//! the process runs on while it is read: nothing in it is trusted.

/// `POOL_OVERHEAD`: the header, a multiple of the alignment.
pub const OVERHEAD: usize = 48;
const ALIGNMENT: usize = 16;
/// Size classes: 16, 32 … 512 bytes.
pub const CLASSES: usize = 32;
/// Blocks of the smallest class in the largest pool.
const MOST_BLOCKS: usize = (16 << 10) / ALIGNMENT;
/// Arenas a process can have: 2^24 of 1 MiB are more than any machine has.
const MOST_ARENAS: u32 = 1 << 24;

/// A pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Of each block, bytes.
    pub block_size: usize,
    /// Blocks that were ever handed out.
    carved: usize,
    /// Blocks in use, by the pool's own count.
    pub used: usize,
    /// Bit per block: free. `None` when the free list makes no sense.
    free: Option<[u64; MOST_BLOCKS / 64]>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Pool {
    /// Whether the bytes are a pool without a block in use, which stays with its
    /// arena: `pymalloc_free` leaves the rest of its header as it was.
    pub fn is_free(bytes: &[u8]) -> bool {
        u32_at(bytes, 0) == 0 && Self::header(bytes).is_some()
    }

    /// The pool whose bytes, read at `address`, are `bytes`. `None` when they
    /// are no pool, or one without a block in use.
    pub fn parse(bytes: &[u8], address: u64) -> Option<Self> {
        let mut pool = Self::header(bytes).filter(|pool| pool.used > 0)?;
        pool.free = pool.free_list(bytes, address);
        Some(pool)
    }

    fn header(bytes: &[u8]) -> Option<Self> {
        let class = u32_at(bytes, 36) as usize;
        let size = bytes.len();
        if class >= CLASSES || u32_at(bytes, 32) >= MOST_ARENAS {
            return None;
        }
        let block_size = (class + 1) * ALIGNMENT;
        let next = u32_at(bytes, 40) as usize;
        // `maxnextoffset` is fixed by the class: it tells a pool from chance.
        if u32_at(bytes, 44) as usize != size.checked_sub(block_size)? {
            return None;
        }
        let carved = next.checked_sub(OVERHEAD)? / block_size;
        let whole = carved * block_size + OVERHEAD == next && next <= size;
        let used = u32_at(bytes, 0) as usize;
        if !whole || carved == 0 || used > carved {
            return None;
        }
        Some(Self { block_size, carved, used, free: None })
    }

    /// Follow the free list; as many steps as there can be, and no block twice.
    fn free_list(&self, bytes: &[u8], address: u64) -> Option<[u64; MOST_BLOCKS / 64]> {
        let mut free = [0u64; MOST_BLOCKS / 64];
        let mut at = u64_at(bytes, 8);
        let mut left = self.carved - self.used;
        while at != 0 {
            left = left.checked_sub(1)?;
            let offset = usize::try_from(at.checked_sub(address)?).ok()?.checked_sub(OVERHEAD)?;
            let i = offset / self.block_size;
            let word = free.get_mut(i / 64)?;
            let taken = *word & (1 << (i % 64)) != 0;
            if i >= self.carved || offset % self.block_size != 0 || taken {
                return None;
            }
            *word |= 1 << (i % 64);
            at = u64_at(bytes, OVERHEAD + offset);
        }
        (left == 0).then_some(free)
    }

    /// Blocks that were ever handed out.
    pub fn carved(&self) -> usize {
        self.carved
    }

    /// Offsets of the blocks in use; `None` when the copy is torn, and only
    /// their number is known.
    pub fn blocks(&self) -> Option<impl Iterator<Item = usize>> {
        let free = self.free?;
        let used = move |i: &usize| free.get(i / 64).is_some_and(|w| w & (1 << (i % 64)) == 0);
        let size = self.block_size;
        Some((0..self.carved).filter(used).map(move |i| OVERHEAD + i * size))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const AT: u64 = 0x7f00_0000_4000;

    /// A pool of `carved` blocks of which those in `free` are free, in order.
    pub fn pool(size: usize, class: u32, carved: usize, free: &[usize]) -> Vec<u8> {
        let mut b = vec![0u8; size];
        let block = (class as usize + 1) * 16;
        let mut put = |at: usize, v: &[u8]| b[at..at + v.len()].copy_from_slice(v);
        let address = |i: usize| AT + (OVERHEAD + i * block) as u64;
        put(0, &((carved - free.len()) as u32).to_le_bytes());
        put(8, &free.first().map_or(0, |i| address(*i)).to_le_bytes());
        put(32, &3u32.to_le_bytes());
        put(36, &class.to_le_bytes());
        put(40, &((OVERHEAD + carved * block) as u32).to_le_bytes());
        put(44, &((size - block) as u32).to_le_bytes());
        for (n, i) in free.iter().enumerate() {
            let next = free.get(n + 1).map_or(0, |i| address(*i));
            put(OVERHEAD + i * block, &next.to_le_bytes());
        }
        b
    }

    #[test]
    fn a_pool_without_blocks_in_use_is_free() {
        let all: Vec<usize> = (0..10).collect();
        let free = pool(4096, 3, 10, &all);
        assert!(Pool::is_free(&free) && Pool::parse(&free, AT).is_none());
        assert!(!Pool::is_free(&pool(4096, 3, 10, &all[1..])));
        assert!(!Pool::is_free(&[0; 4096]) && !Pool::is_free(&[]));
    }

    #[test]
    fn blocks_in_use_are_those_not_free() {
        let p = Pool::parse(&pool(4096, 3, 10, &[7, 2]), AT).unwrap();
        assert_eq!((p.block_size, p.used), (64, 8));
        let blocks: Vec<usize> = p.blocks().unwrap().map(|o| (o - OVERHEAD) / 64).collect();
        assert_eq!(blocks, [0, 1, 3, 4, 5, 6, 8, 9]);
        let p = Pool::parse(&pool(16 << 10, 0, 1021, &[]), AT).unwrap();
        assert_eq!(p.blocks().unwrap().count(), 1021);
    }

    #[test]
    fn torn_free_lists_give_the_count_alone() {
        for (at, value) in [
            (8, 0u64),                    // shorter than the count says
            (8, AT + 49),                 // not at a block
            (8, AT + 48 + 64 * 20),       // beyond what was carved
            (8, 0xdead_beef),             // wild
            (48 + 64 * 2, AT + 48 + 128), // a cycle
        ] {
            let mut b = pool(4096, 3, 10, &[7, 2]);
            b[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let p = Pool::parse(&b, AT).unwrap();
            assert!(p.blocks().is_none() && p.used == 8, "{at} {value:#x}");
        }
    }

    #[test]
    fn what_is_no_pool_is_refused() {
        assert!(Pool::parse(&[], AT).is_none());
        assert!(Pool::parse(&[0; 4096], AT).is_none());
        assert!(Pool::parse(&[0xff; 4096], AT).is_none());
        assert!(Pool::parse(&pool(4096, 3, 10, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), AT).is_none());
        for at in [36, 40, 44] {
            let mut b = pool(4096, 3, 10, &[1]);
            b[at] ^= 1;
            assert!(Pool::parse(&b, AT).is_none(), "{at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(mut b in proptest::collection::vec(0u8.., 4096), class in 0u32..32) {
            b[36..40].copy_from_slice(&class.to_le_bytes());
            b[44..48].copy_from_slice(&(4096 - (class + 1) * 16).to_le_bytes());
            b[32..36].fill(0);
            if let Some(p) = Pool::parse(&b, AT) {
                for o in p.blocks().into_iter().flatten() {
                    assert!(o + p.block_size <= 4096);
                }
            }
        }
    }
}
