//! Lines and local variables of code objects are what the interpreter says,
//! and the allocator's table of pools is where objects come from.

use claw_ebpf::target::{
    cpython::{
        code::{self, Code},
        live::LivePython,
        object::Objects,
        running::{Lines, Running as Frames},
    },
    process::Process,
};

use crate::pythons::{Running, all};

#[test]
fn lines_and_locals_of_every_python() {
    for path in all() {
        let mut running = Running::start(&path, "code.py");
        let said = running.ready();
        let (python, memory) = running.open();
        let at = format!("{} {}", path.display(), python.version);
        let layout = python.layout().unwrap();
        let objects = Objects { memory: &memory, layout, types: python.types };
        let frames = Frames::of(python.version.minor).unwrap();
        let mut checked = 0;
        for told in said.as_array().unwrap() {
            let address = told["at"].as_u64().unwrap();
            let found = Code::read(&objects, frames, address).unwrap_or_else(|| panic!("{at}"));
            assert_eq!(found.function, told["name"], "{at}");
            assert_eq!(found.file, told["file"], "{at}");
            for pair in told["lines"].as_array().unwrap() {
                let (offset, line) = (pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap());
                let instruction = match frames.lines {
                    Lines::Lnotab(_) => offset,
                    Lines::Table310(_) => offset / 2,
                    Lines::Locations { code, .. } => address + code + offset,
                };
                let got = found.line(frames, address, instruction);
                assert_eq!(u64::from(got), line, "{at}: {} at {offset}", found.function);
                checked += 1;
            }
            let names = code::local_names(&objects, frames, address).unwrap();
            let name = |n: &serde_json::Value| n.as_str().unwrap().to_owned();
            for cell in told["cells"].as_array().unwrap().iter().map(name) {
                let first = names.iter().find(|(n, _, _)| *n == cell);
                assert!(first.is_some_and(|(_, _, cell)| *cell), "{at}: {cell} {names:?}");
            }
            for (place, local) in told["locals"].as_array().unwrap().iter().map(name).enumerate() {
                let found = |(n, i, _): &(String, u16, bool)| *n == local && *i == place as u16;
                assert!(names.iter().any(found), "{at}: {local} {names:?}");
            }
        }
        assert!(checked > 1000, "{at}");
        assert_eq!(Code::read(&objects, frames, python.types.type_), None, "{at}: no code object");

        let live = LivePython::open(Process::open(running.child.id()).unwrap()).unwrap();
        let inside = live.inside().unwrap_or_else(|e| panic!("{at}: {e}"));
        // Asleep, it has given the lock away; from 3.12 on who had it last stays
        // known.
        use claw_ebpf::target::memory::Memory;
        let thread = memory.u64_at(inside.thread_at).unwrap();
        let interpreter = memory.u64_at(thread.wrapping_add(frames.ts_interp));
        assert!(thread == 0 || interpreter.is_ok_and(|i| i != 0), "{at}");
    }
}
