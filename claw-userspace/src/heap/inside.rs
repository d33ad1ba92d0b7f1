//! `--tracemalloc TIME`: where a CPython process allocates what it keeps, told by
//! its own `tracemalloc`, which is switched on for that long. From 3.14 on, with
//! `--allow-remote-exec` alone.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use super::{By, LONGEST_COLLECTION, Sample, Snapshot, Values};
use crate::{
    report::clean::clean,
    stream::Blocked,
    symbol::{Frame, Location, origin::of_python_file},
    target::{cpython::live::LivePython, process::Process},
};

/// Lines that are told, those with the most bytes.
const MOST_LINES: usize = 1000;
/// What it takes to switch off by itself when the agent ends before it has.
const GRACE_S: u64 = 30;

/// Whether it was on before.
const START: &str = "\
import threading, tracemalloc
answer = str(int(tracemalloc.is_tracing()))
if not tracemalloc.is_tracing():
    tracemalloc.start(1)
    off = threading.Timer(SECONDS, tracemalloc.stop)
    off.daemon = True
    off.start()
    tracemalloc._claw_ebpf_off = off
";

/// A line each: bytes, blocks, line, file.
const TELL: &str = "\
import tracemalloc
found = tracemalloc.take_snapshot().statistics('lineno')[:MOST]
answer = '\\n'.join(f'{s.size} {s.count} {s.traceback[0].lineno} {s.traceback[0].filename}' for s in found)
";

const STOP: &str = "\
import tracemalloc
off = tracemalloc.__dict__.pop('_claw_ebpf_off', None)
if off is not None:
    off.cancel()
    tracemalloc.stop()
answer = str(int(tracemalloc.is_tracing()))
";

/// What a process allocated within `time` and still has at its end, by line.
///
/// # Errors
/// In one line, why it was not done.
pub fn tracemalloc(pid: u32, time: Duration) -> Result<Snapshot, String> {
    let process = Process::open(pid).map_err(|e| e.to_string())?;
    let live = LivePython::open(process).map_err(|e| e.to_string())?;
    let run = |script: &str| {
        live.run(script, LONGEST_COLLECTION).map(|ran| ran.answer).map_err(|e| e.to_string())
    };
    let seconds = time.as_secs().saturating_add(GRACE_S);
    let was_on = run(&START.replace("SECONDS", &seconds.to_string()))? == "1";
    let began = Instant::now();
    sleep(time);
    let told = run(&TELL.replace("MOST", &MOST_LINES.to_string()));
    let watched = began.elapsed().as_secs_f64();
    let stopped = run(STOP);
    let told = told?;
    let mut why = format!(
        "its own tracemalloc was on for {watched:.1} s and is off again: rows are what was \
         allocated in that time and is still in use"
    );
    if was_on {
        "its own tracemalloc was on before, and is left on: rows are what was allocated since it was"
            .clone_into(&mut why);
    } else if let Err(e) = stopped {
        why +=
            &format!(", but it could not be switched off now ({e}): within {GRACE_S} s it will be");
    }
    Ok(Snapshot {
        pid: Some(pid),
        core: None,
        name: clean(&live.process.name),
        runtime: "cpython",
        version: live.python.version.to_string(),
        sample_rate: None,
        samples: (1..)
            .zip(told.lines().take(MOST_LINES))
            .filter_map(|(i, l)| sample(i, l))
            .collect(),
        code: Vec::new(),
        blocked: vec![Blocked { what: "what was allocated before".into(), why }],
        holders: Vec::new(),
        cannot: vec![
            (By::Type, "tracemalloc knows no types; leave --tracemalloc out"),
            (By::Tenant, "tracemalloc knows no tenants; see `claw-ebpf watch`"),
        ],
        build: crate::target::go::buildinfo::BuildInfo::default(),
    })
}

/// A line of what [`TELL`] says, which is whatever the process likes. `place`
/// stands for its address.
fn sample(place: u64, line: &str) -> Option<Sample> {
    let mut parts = line.splitn(4, ' ');
    let bytes: i64 = parts.next()?.parse().ok().filter(|b| *b >= 0)?;
    let blocks: i64 = parts.next()?.parse().ok().filter(|b| *b >= 0)?;
    let number: u32 = parts.next()?.parse().ok()?;
    let file = clean(parts.next()?);
    let name = file.rsplit('/').next().unwrap_or_default();
    let frame = Frame {
        function: format!("{name}:{number}"),
        file: file.clone(),
        line: number,
        start_line: 0,
        inlined: false,
        origin: of_python_file(&file),
    };
    Some(Sample {
        stack: vec![Location { return_address: place, frames: vec![frame] }],
        object_size: None,
        type_name: None,
        values: Values {
            alloc_objects: None,
            alloc_space: None,
            inuse_objects: blocks,
            inuse_space: bytes,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_answer() {
        let s = sample(1, "4096 3 17 /srv/a b.py").unwrap();
        assert_eq!((s.values.inuse_space, s.values.inuse_objects), (4096, 3));
        let f = &s.stack[0].frames[0];
        assert_eq!(
            (f.file.as_str(), f.line, f.function.as_str()),
            ("/srv/a b.py", 17, "a b.py:17")
        );
        for bad in ["", "x 1 2 f", "-1 1 2 f", "1 -1 2 f", "1 2 f", "99999999999999999999 1 2 f"] {
            assert!(sample(1, bad).is_none(), "{bad}");
        }
    }
}
