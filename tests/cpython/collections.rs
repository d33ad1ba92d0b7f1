//! How often a process's collector ran, against what it says itself.

use std::process::{Command, Stdio};

use claw_ebpf::target::{cpython::live::LivePython, process::Process};

use crate::pythons::{Running, all};

const PROGRAM: &str = "
import gc, time
gc.disable()
for generation in 0, 0, 0, 0, 0, 1, 1, 1, 2, 2:
    gc.collect(generation)
print([s['collections'] for s in gc.get_stats()], flush=True)
time.sleep(600)
";

#[test]
fn collections_are_those_that_the_process_counts() {
    for python in all() {
        let mut command = Command::new(&python);
        command.args(["-c", PROGRAM]).stdout(Stdio::piped());
        let mut running = Running::of(&mut command);
        let said: [u64; 3] = serde_json::from_value(running.ready()).unwrap();
        assert!(said[0] >= 5 && said[1] >= 3 && said[2] >= 2, "{said:?}");
        let live = LivePython::open(Process::open(running.child.id()).unwrap()).unwrap();
        let known = live.python.version.minor < 15;
        assert_eq!(live.collections(), known.then_some((said, false)), "{}", python.display());
    }
}
