//! Who holds objects, in every way that CPython knows, as a copy shows it.

use std::time::Duration;

use claw_ebpf::target::{
    cpython::{
        graph::paths::{Path, RootKind},
        live::LivePython,
    },
    process::Process,
};

use crate::pythons::{Running, all};

/// Type, what holds it, and the fields on the way.
const HELD: [(&str, RootKind, &str, &str); 17] = [
    ("InDict", RootKind::Global, "__main__.SESSIONS", "[…]"),
    ("InNested", RootKind::Global, "__main__.STATE", "[\"users\"][\"alive\"][…]"),
    ("InDeque", RootKind::Global, "__main__.RECENT", "[…]"),
    ("InSet", RootKind::Global, "__main__.MEMBERS", "[…]"),
    ("InSlot", RootKind::Global, "__main__.SLOTTED", ".inside[…]"),
    ("OnClass", RootKind::ClassAttribute, "__main__.Registry.handlers", "[…]"),
    ("OnInstance", RootKind::Global, "__main__.SERVICE", ".pending[…]"),
    ("InClosure", RootKind::Closure, "kept of __main__.remember", "[…]"),
    ("InDefault", RootKind::DefaultArgument, "__main__.default", "[…]"),
    ("Cached", RootKind::LruCache, "__main__.compute", "[…]"),
    ("OfMethod", RootKind::LruCache, "__main__.OfMethod.compute", "[…][\"0\"]"),
    ("InGenerator", RootKind::Global, "__main__.STREAM", ".buffered[…]"),
    ("InThread", RootKind::Local, "jobs of worker", "[…]"),
    ("InFrame", RootKind::Local, "local of main", "[…]"),
    ("InTraceback", RootKind::Global, "__main__.ERRORS", ".payload[…]"),
    ("Linked", RootKind::Global, "__main__.HEAD", ".next"),
    ("InCycle", RootKind::Unreachable, "", ""),
];

fn fields(path: &Path) -> String {
    path.steps.iter().skip(1).filter_map(|s| s.field.as_deref()).collect()
}

#[test]
fn every_way_of_holding_is_named() {
    let mut wrong = Vec::new();
    for python in all() {
        let mut running = Running::start(&python, "holders.py");
        assert_eq!(running.ready(), "ready");
        let at = python.display();
        let live = LivePython::open(Process::open(running.child.id()).unwrap()).unwrap();
        let held = live
            .holders(Duration::from_secs(60), &|name| name.starts_with("__main__."))
            .unwrap_or_else(|e| panic!("{at}: {e}"));
        assert!(held.found.whole && held.found.gc_off, "{at}");
        assert!(held.pause.bytes > 1 << 20 && !held.pause.took.is_zero(), "{at}");
        for (name, kind, root, way) in &HELD {
            let of = held.found.types.iter().find(|t| t.type_name == format!("__main__.{name}"));
            let of = of.unwrap_or_else(|| panic!("{at}: no {name}"));
            let most = &of.paths[0];
            let bound = match *name {
                "InDeque" => Some(5000),
                "Cached" => Some(2000),
                _ => None,
            };
            let fits = of.objects == 1000
                && most.objects >= 960
                && (most.kind, most.root.as_str()) == (*kind, *root)
                && fields(most).replace(".gi_frame", "").replace("[…].tb_frame", "") == *way
                && most.bound == bound;
            if !fits {
                wrong.push(format!("{at}: {name}: {} {most:?}", fields(most)));
            }
        }
        assert!(live.is_same_program());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
