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
            layout::{self, Layout, flags},
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

/// Address of the types, and bytes of each.
const TYPES: u64 = 0x6000_0000_0000;
const TYPE_SIZE: usize = 1024;
/// Where in a type its name is.
const NAME: usize = 960;

/// Names of types that have a layout of their own, and their flags.
const NAMES: [(&str, u64); 20] = [
    ("type", flags::TYPE_SUBCLASS),
    ("module", 0),
    ("set", 0),
    ("code", 0),
    ("str", flags::UNICODE_SUBCLASS),
    ("int", flags::LONG_SUBCLASS),
    ("list", flags::LIST_SUBCLASS),
    ("dict", flags::DICT_SUBCLASS),
    ("tuple", flags::TUPLE_SUBCLASS),
    ("collections.deque", 0),
    ("function", 0),
    ("functools._lru_cache_wrapper", 0),
    ("frame", 0),
    ("coroutine", 0),
    ("_asyncio.Task", 0),
    ("weakref", 0),
    ("hamt_bitmap_node", 0),
    ("hamt_array_node", 0),
    ("app.Session", flags::MANAGED_DICT | flags::HEAPTYPE),
    ("app.Inline", flags::MANAGED_DICT | flags::INLINE_VALUES),
];

/// Sound types, and pools with sound headers and objects of those types whose
/// content is anything; every other address leads somewhere as well.
struct Heap<'a> {
    types: Vec<u8>,
    pools: Vec<u8>,
    rest: Folded<'a>,
}

impl Memory for Heap<'_> {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        if buf.len() > MOST_READ {
            let source = std::io::ErrorKind::UnexpectedEof.into();
            return Err(MemoryError { address, len: buf.len(), source });
        }
        let within =
            [(BASE, &self.pools), (TYPES, &self.types)].into_iter().find_map(|(base, of)| {
                let at = usize::try_from(address.checked_sub(base)?).ok()?;
                of.get(at..at.checked_add(buf.len())?)
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

fn type_at(i: usize) -> u64 {
    TYPES + (i * TYPE_SIZE) as u64
}

fn types(bytes: &[u8], qualname: u64) -> Vec<u8> {
    let mut all: Vec<u8> = bytes.iter().copied().cycle().take(NAMES.len() * TYPE_SIZE).collect();
    for (i, ((name, flags), of)) in NAMES.iter().zip(all.chunks_exact_mut(TYPE_SIZE)).enumerate() {
        let odd = u64::from(of[0]);
        let mut put = |at: u64, value: u64| {
            of[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
        };
        put(layout::OB_TYPE, type_at(0));
        put(layout::TP_NAME, type_at(i) + NAME as u64);
        let collected = if odd % 4 == 0 { 0 } else { flags::HAVE_GC };
        put(layout::TP_FLAGS, flags | collected | flags::READY);
        put(layout::TP_BASICSIZE, 16 + odd);
        put(layout::TP_ITEMSIZE, if odd % 2 == 0 { 8 } else { 0 });
        put(layout::TP_BASE, type_at((odd % 32) as usize));
        put(qualname, BASE + odd * 64);
        of[NAME..NAME + name.len()].copy_from_slice(name.as_bytes());
        of[NAME + name.len()] = 0;
    }
    all
}

fn heap<'a>(bytes: &'a [u8], layout: &Layout) -> Heap<'a> {
    let size = layout.pool_size;
    let mut pools: Vec<u8> = bytes.iter().copied().cycle().take(MOST).collect();
    for (i, pool) in pools.chunks_exact_mut(size).enumerate() {
        let class = u32::from(bytes.get(i % bytes.len()).copied().unwrap_or(0) % 33);
        let block = (class + 1) * 16;
        let used = ((size as u32 - OVERHEAD as u32) / block / 2).max(1);
        for at in (OVERHEAD..OVERHEAD + (used * block) as usize).step_by(block as usize) {
            let odd = usize::from(pool[at]);
            let head = at + odd % 3 * 16;
            if let Some(head) = pool.get_mut(head..head + 16).filter(|_| odd % 8 != 7) {
                head[..8].copy_from_slice(&1u64.to_le_bytes());
                head[8..].copy_from_slice(&type_at(odd / 3 % NAMES.len()).to_le_bytes());
            }
        }
        let mut put = |at: usize, value: u32| {
            pool[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(0, used);
        put(8, 0);
        put(12, 0);
        put(32, 1);
        put(36, class);
        put(40, OVERHEAD as u32 + used * block);
        put(44, size as u32 - block);
    }
    Heap { types: types(bytes, layout.ht_qualname), pools, rest: Folded(bytes) }
}

/// Read everything that the agent reads of a CPython process; gives how many
/// types, threads and ways of holding were found.
pub fn python(bytes: &[u8]) -> [usize; 3] {
    let mut found = [0; 3];
    let [version, head @ ..] = bytes else { return found };
    let Some((addresses, bytes)) = head.split_first_chunk::<8>().filter(|(_, b)| b.len() >= 16)
    else {
        return found;
    };
    let Some(layout) = Layout::of(8 + version % 8) else { return found };
    let memory = heap(bytes, layout);
    let at = |i: usize| {
        let byte = u64::from(addresses[i]);
        if byte % 4 == 0 { BASE + byte * 64 } else { byte * 8 + 0x1_0000 }
    };
    let types = Types {
        type_: type_at(0),
        module: type_at(1),
        set: type_at(2),
        code: type_at(3),
        str_: type_at(4),
        int: type_at(5),
    };
    let objects = Objects { memory: &memory, layout, types };
    let regions = [Region { start: BASE, end: BASE + MOST as u64 }];
    let taken = census::take(&objects, &regions);
    assert!(taken.pool_bytes <= MOST as u64 && taken.blocks() <= MOST as u64 / 16);
    found[0] = taken.rows.len();
    for i in 0..8 {
        objects.type_at(at(i));
        objects.string(at(i));
        objects.items(at(i));
        objects.tuple(at(i));
        objects.find_item(at(i), "a");
        owned(&objects, &[at(i)], &rustc_hash::FxHashSet::from_iter([at(i)]));
        holder::find(&objects, &[at(i), at(7 - i)], at(0));
    }
    let wanted: Vec<Wanted> =
        (0..NAMES.len()).filter_map(|i| Wanted::at(&objects, layout, type_at(i))).collect();
    members::find(&objects, &regions, &wanted, u32::MAX);
    used_pools::find(&memory, BASE, BASE + MOST as u64);
    let Some(running) = Running::of(layout.minor) else { return found };
    // Objects of all kinds lie at the beginnings of blocks.
    for i in 0..8 {
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
        found[1] = reader.threads(at(6)).map_or(0, |t| t.all.len() + t.unknown as usize);
        let tasks: Vec<u64> = taken.tasks.iter().copied().chain((0..8).map(at)).collect();
        reader.tasks(&tasks);
    }
    found[2] = held(objects, at(6), &regions, &|_| true).types.len();
    found
}
