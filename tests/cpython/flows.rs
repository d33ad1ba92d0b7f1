//! Threads and asyncio tasks of every Python: what they were started with,
//! where they stand, whose they are.

use std::collections::BTreeMap;

use claw_ebpf::{
    target::{
        cpython::{flows::Flow, live::LivePython},
        process::Process,
    },
    tenant::Rule,
};

use crate::pythons::{Running, all, fixture};

fn line_of(end: &str) -> u32 {
    let text = std::fs::read_to_string(fixture("flows.py")).unwrap();
    let at = text.lines().position(|l| l.ends_with(end)).unwrap_or_else(|| panic!("no {end}"));
    at as u32 + 1
}

/// Function; line it stands at; part of what it waits for; tenant; how many.
type Told = (&'static str, &'static str, &'static str, Option<&'static str>, usize);

const THREADS: [Told; 5] = [
    ("waits", "# event", "threading.", Some("acme"), 1),
    ("locked", "# lock", "a lock", None, 1),
    ("run", "# recv", "recv", None, 1),
    ("in_context", "# sleep", "sleep", Some("globex"), 1),
    ("<module>", "# main", "sleep", None, 1),
];

const TASKS: [Told; 4] = [
    ("handler", "# queue", "queues.", Some("initech"), 5),
    ("stream", "# future", "future", None, 1),
    ("named", "# asyncio.sleep", "tasks.sleep", Some("umbrella"), 1),
    ("main", "# main", "", None, 1),
];

fn check(at: &str, found: &[Flow], told: &[Told]) {
    for (function, place, waits_for, tenant, count) in told {
        let of: Vec<&Flow> = found
            .iter()
            .filter(|f| f.start.function.rsplit('.').next() == Some(function))
            .collect();
        assert_eq!(of.len(), *count, "{at}: {function}: {found:#?}");
        for flow in of {
            let stands = flow.at.as_ref().unwrap();
            assert_eq!(stands.line, line_of(place), "{at}: {flow:?}");
            assert!(stands.file.ends_with("/flows.py") && flow.start.line > 0, "{at}: {flow:?}");
            assert_eq!(flow.tenant.as_deref(), *tenant, "{at}: {flow:?}");
            let waits = flow.waits_for.as_deref().unwrap_or_default();
            assert!(waits.contains(waits_for), "{at}: {flow:?}");
        }
    }
}

#[test]
fn threads_and_tasks_of_every_python() {
    let names = ["tenant", "tenant_id"].map(str::to_owned);
    let rules: Vec<(u8, Rule)> = (0..)
        .zip(names.clone().map(Rule::ContextVar).into_iter().chain(names.map(Rule::Local)))
        .collect();
    for python in all() {
        let at = python.display().to_string();
        let mut running = Running::start(&python, "flows.py");
        assert_eq!(running.ready(), "ready");
        let live = LivePython::open(Process::open(running.child.id()).unwrap()).unwrap();
        let threads = live.threads(&rules).unwrap();
        check(&at, &threads.all, &THREADS);
        let workers = threads.all.iter().filter(|f| f.start.function == "_worker");
        assert_eq!(workers.count(), 2, "{at}: {threads:#?}");
        let census = live.census().unwrap().census;
        let tasks = live.tasks(&rules, &census.tasks).unwrap();
        check(&at, &tasks.all, &TASKS);
        assert_eq!(tasks.all.len(), 8, "{at}: those that are over are left out: {tasks:#?}");
        // Each has an identity of its own, the same at another look.
        let again = live.tasks(&rules, &live.census().unwrap().census.tasks).unwrap();
        let ids =
            |f: &[Flow]| f.iter().map(|f| (f.id, f.start.clone())).collect::<BTreeMap<_, _>>();
        assert_eq!(ids(&tasks.all).len(), 8, "{at}");
        assert_eq!(ids(&tasks.all), ids(&again.all), "{at}");
        assert_eq!(threads.unknown, 0, "{at}");
    }
}
