//! What a census counts is what `sys.getallocatedblocks()` and
//! `gc.get_objects()` count.

use claw_ebpf::target::cpython::{
    census::{self, Census},
    holder,
    object::Objects,
    regions,
};

use crate::pythons::{Running, all, fixture};

fn objects(census: &Census, name: &str) -> u64 {
    census.rows.iter().filter(|r| r.type_name == name).map(|r| r.objects).sum()
}

#[test]
fn counts_and_holders_of_every_python() {
    for path in all() {
        let mut running = Running::start(&path, "census.py");
        let (said, blocks) = (running.line(), running.ready());
        let (python, memory) = running.open();
        let at = format!("{} {}", path.display(), python.version);
        assert_eq!(python.version.to_string(), said["version"], "{at}");

        let layout = python.layout().unwrap();
        let reader = Objects { memory: &memory, layout, types: python.types };
        let resident = regions::resident(running.child.id(), layout.pool_size as u64).unwrap();
        let census = census::take(&reader, &resident.regions);
        let blocks = blocks.as_u64().unwrap();
        // The interpreter's figure includes blocks that it passed on to malloc
        // (`raw_allocated_blocks`); the census equals that of the pools.
        assert!(
            census.blocks().abs_diff(blocks) < blocks / 50,
            "{at}: {} {blocks}",
            census.blocks()
        );
        assert_eq!(census.torn, (0, 0), "{at}: it stands still");

        let counts = said["counts"].as_object().unwrap();
        let count = |name: &str| counts[name].as_u64().unwrap();
        assert_eq!(objects(&census, "__main__.Plain"), 20_000, "{at}");
        assert_eq!(objects(&census, "__main__.Plain"), count("Plain"), "{at}");
        assert_eq!(objects(&census, "__main__.Outer.Inner"), count("Inner"), "{at}");
        assert_eq!(objects(&census, "__main__.Slotted"), 3_000, "{at}");
        assert_eq!(objects(&census, "collections.deque"), count("deque"), "{at}");
        assert!(objects(&census, "function").abs_diff(count("function")) < 20, "{at}");
        assert!(objects(&census, "module").abs_diff(count("module")) < 5, "{at}");
        assert!((5_000..6_000).contains(&objects(&census, "bytearray")), "{at}");
        assert!(objects(&census, "str") > 5_000, "{at}");

        holders(&reader, &census, &at);
    }
}

fn holders<M: claw_ebpf::target::memory::Memory>(
    reader: &Objects<'_, M>,
    census: &Census,
    at: &str,
) {
    let file = fixture("census.py").display().to_string();
    for (elements, class, name) in [
        (20_000, None, "CACHE"),
        (3_000, Some("Outer"), "registry"),
        (777, None, "INNER"),
        (500, None, "QUEUE"),
    ] {
        let container = census.containers.iter().find(|c| c.elements == elements).unwrap();
        let place = holder::find(reader, &census.modules, container.address)
            .unwrap_or_else(|| panic!("{at}: {name} is not found"));
        assert_eq!((place.module.as_str(), place.name.as_str()), ("__main__", name), "{at}");
        assert_eq!(place.class.as_deref(), class, "{at}");
        assert_eq!(place.file.as_deref(), Some(file.as_str()), "{at}");
    }
    assert_eq!(holder::find(reader, &census.modules, 0x1234_5678), None);
}
