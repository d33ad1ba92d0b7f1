//! The readers of CPython's memory over memory that is not what it should be.

use claw_ebpf::{
    target::{
        cpython::{
            binary::Types,
            census,
            code::{self, Code},
            flows::Reader,
            graph::{owned, paths::held},
            holder,
            layout::Layout,
            members::{self, Wanted},
            object::Objects,
            pool::OVERHEAD,
            regions::Region,
            running::Running,
            used_pools,
        },
        memory::{Memory, MemoryError},
    },
    tenant::Rule,
};

use super::exercise::Folded;

/// Address of the memory that can hold pools.
const BASE: u64 = 0x7f00_0000_0000;
const MOST: usize = 1 << 16;
/// What is longer than this is not mapped as a whole.
const MOST_READ: usize = 1 << 18;

/// What `bytes` are made into: pools whose headers are sound enough to be
/// taken for pools, behind them memory that is anything, in which every other
/// address leads somewhere.
struct Heap<'a> {
    pools: Vec<u8>,
    rest: Folded<'a>,
}

impl Memory for Heap<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        if buf.len() > MOST_READ {
            let source = std::io::ErrorKind::UnexpectedEof.into();
            return Err(MemoryError { address, len: buf.len(), source });
        }
        let within = address.checked_sub(BASE).and_then(|at| {
            let at = usize::try_from(at).ok()?;
            self.pools.get(at..at.checked_add(buf.len())?)
        });
        match within {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => self.rest.read(address, buf),
        }
    }
}

fn heap(bytes: &[u8], pool_size: usize) -> Heap<'_> {
    let mut pools: Vec<u8> = bytes.iter().copied().cycle().take(MOST).collect();
    for (i, pool) in pools.chunks_exact_mut(pool_size).enumerate() {
        let class = u32::from(bytes.get(i % bytes.len()).copied().unwrap_or(0) % 33);
        let block = (class + 1) * 16;
        let blocks = (pool_size as u32 - OVERHEAD as u32) / block;
        let used = (blocks / 2).max(1);
        let mut put = |at: usize, value: u32| {
            pool[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0, used);
        put(8, 0);
        put(12, 0);
        put(32, 1);
        put(36, class);
        put(40, OVERHEAD as u32 + used * block);
        put(44, pool_size as u32 - block);
    }
    Heap { pools, rest: Folded(bytes) }
}

/// Read everything that the agent reads of a CPython process.
pub fn python(bytes: &[u8]) {
    let [version, head @ ..] = bytes else { return };
    let Some((addresses, bytes)) = head.split_first_chunk::<8>().filter(|(_, b)| b.len() >= 16)
    else {
        return;
    };
    let Some(layout) = Layout::of(8 + version % 6) else { return };
    let memory = heap(bytes, layout.pool_size);
    // Every type's type has to be one: then some are.
    let at = |i: usize| {
        let byte = u64::from(addresses[i]);
        if byte % 4 == 0 { BASE + byte * 64 } else { byte * 8 + 0x1_0000 }
    };
    let word = |at: u64| memory.u64_at(at).unwrap_or(0);
    let types = Types {
        type_: word(at(0) + 8),
        module: at(1),
        set: at(2),
        code: word(at(3) + 8),
        str_: word(at(4) + 8),
        int: word(at(5) + 8),
    };
    let objects = Objects { memory: &memory, layout, types };
    let regions = [Region { start: BASE, end: BASE + MOST as u64 }];
    let taken = census::take(&objects, &regions);
    assert!(taken.pool_bytes <= MOST as u64 && taken.blocks() <= MOST as u64 / 16);
    for i in 0..8 {
        objects.type_at(at(i));
        objects.string(at(i));
        objects.items(at(i));
        objects.tuple(at(i));
        objects.find_item(at(i), "a");
        owned(&objects, &[at(i)]);
        holder::find(&objects, &[at(i), at(7 - i)], at(0));
    }
    let wanted: Vec<Wanted> =
        (0..8).filter_map(|i| Wanted::at(&objects, layout, word(at(i) + 8))).collect();
    members::find(&objects, &regions, &wanted, u32::MAX);
    used_pools::find(&memory, BASE, BASE + MOST as u64);
    let Some(running) = Running::of(layout.minor) else { return };
    for i in 0..4 {
        if let Some(code) = Code::read(&objects, running, at(i)) {
            for instruction in [0, 2, at(i), u64::MAX] {
                code.line(running, at(i), instruction);
            }
        }
        code::local_names(&objects, running, at(i));
    }
    let rules =
        [Rule::ContextVar("a".into()), Rule::Local("b".into())].map(|rule| (0, rule)).to_vec();
    if let Some(mut reader) = Reader::new(objects, &rules, None) {
        let _ = reader.threads(at(6));
        let tasks: Vec<u64> = (0..64).map(|i| BASE + i * 512).chain((0..8).map(at)).collect();
        reader.tasks(&tasks);
    }
    held(objects, at(6), &regions, &|_| true);
}
