//! Who puts something into a container that grows: in every Python, stripped
//! ones among them, for objects that mostly come from free lists.

use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc, time::Duration};

use claw_ebpf::{
    pipeline::pywindow::{On, Open, Seen, Watch, budget},
    probe::{HitCost, PyWindows},
    stream::PyWindow,
    target::process::Process,
    tenant::Rule,
};

use crate::{common::*, interpreters::all};

const FIXTURE: &str = "tests/fixtures/python/stores.py";

/// Those that are watched together: a CPU has four watchpoints.
const WATCHED: [&[&str]; 2] =
    [&["text", "numbers", "list", "ordered"], &["right", "left", "members"]];

/// One window on containers of `stores.py`.
fn window(python: &PathBuf, containers: &[&str], windows: Arc<PyWindows>) -> PyWindow {
    let script = root().join(FIXTURE);
    let running = Running::start(Command::new(python).arg(script));
    let addresses = running.json();
    let watch = Watch {
        process: Process::open(running.pid()).unwrap(),
        windows,
        types: vec!["dict".to_owned(), "list".to_owned()],
        containers: containers.iter().map(|c| addresses[c].as_u64().unwrap()).collect(),
        allocators: false,
        rules: vec![(0, Rule::Local("tenant_id".to_owned()))],
        cost: HitCost { emulated: 1500.0, stepped: 1500.0 },
        max_overhead: 1.0,
    };
    let open = Open::start(watch, On::Objects, budget(1.0, running.pid()));
    std::thread::sleep(Duration::from_secs(4));
    match open.end(true).unwrap().1 {
        Ok((Seen::Objects(seen), _)) => seen,
        other => panic!("{}: {other:?}", python.display()),
    }
}

#[test]
#[ignore = "needs root and BPF"]
fn lines_that_fill_containers() {
    let windows = Arc::new(PyWindows::load().unwrap());
    for containers in WATCHED {
        lines_that_fill(containers, &windows);
    }
}

fn lines_that_fill(containers: &[&str], windows: &Arc<PyWindows>) {
    let seen: Vec<(PathBuf, PyWindow)> = std::thread::scope(|s| {
        let start = |python: PathBuf| {
            let windows = Arc::clone(windows);
            s.spawn(move || (python.clone(), window(&python, containers, windows)))
        };
        let all: Vec<_> = all().into_iter().map(start).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (python, w) in seen {
        let at = python.display();
        let watched = format!("{} containers", containers.len());
        assert!(w.functions.contains(&watched), "{at}: {:?}", w.functions);
        for type_name in ["dict", "list"] {
            let gain = w.gains.iter().find(|g| g.type_name == type_name).unwrap();
            assert!(gain.held && gain.stayed > 20, "{at}: {gain:?}");
            let mut by: BTreeMap<u64, u64> = BTreeMap::new();
            for writer in &gain.by {
                let stack = &w.stacks[writer.stack as usize];
                let own = stack.iter().find(|f| f.file.ends_with(FIXTURE)).unwrap();
                *by.entry(u64::from(own.line)).or_default() += writer.stayed;
                assert!(writer.tenant.is_some(), "{at}: {writer:?}");
            }
            let marked: Vec<u64> = containers
                .iter()
                .map(|c| marked_line_of(FIXTURE, &format!("# {type_name}: {c}")))
                .collect();
            let right: Vec<u64> =
                marked.iter().map(|l| by.get(l).copied().unwrap_or_default()).collect();
            println!("{at}: {type_name}: {right:?} of {} ({})", gain.stayed, gain.entered);
            assert!(by.keys().all(|l| marked.contains(l)), "{at}: {type_name}: {by:?}");
            assert!(right.iter().all(|n| *n > 4), "{at}: {type_name}: {by:?}");
            assert!(gain.entered * 20 >= gain.stayed * 19, "{at}: {gain:?}");
        }
    }
}
