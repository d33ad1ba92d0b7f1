//! CPython: a census of the objects in its pools, by type.

use std::time::Duration;

use super::{By, HeapError, Sample, Snapshot, Values};
use crate::{
    report::clean::clean,
    stream::Blocked,
    target::{
        cpython::{
            copy::CopyError,
            graph::paths::{TypeHolders, cleaned},
            live::{LiveError, LivePython, Taken},
            object::is_own,
        },
        process::Process,
    },
};

const NO_SITE: &str = "a CPython heap does not remember where objects were made; use --by type";
const NO_TENANT: &str =
    "a CPython heap does not remember for whom objects were made; use --by type";
/// Blocks that are no objects.
const UNTYPED: &str = "(no object: tables of dicts and lists, buffers, kept for reuse)";
const TORN: &str = "(unknown: in pools that changed while they were read)";

/// `None` when the process does not run CPython.
pub fn of_process(
    process: &Process,
    max_pause: Option<Duration>,
) -> Result<Option<Snapshot>, HeapError> {
    let live = match LivePython::open(process.clone()) {
        Err(LiveError::Python { source, .. }) if source.is_not_python() => return Ok(None),
        other => other.map_err(error)?,
    };
    let taken = live.census().map_err(error)?;
    let mut blocked = blocked(&taken);
    let holders = match max_pause.map(|most| holders(&live, &taken, most)) {
        None => Vec::new(),
        Some(Ok((found, pause))) => {
            blocked.push(pause);
            found
        }
        Some(Err(e)) => {
            blocked.push(Blocked { what: "holders".into(), why: e.to_string() });
            Vec::new()
        }
    };
    Ok(Some(Snapshot {
        pid: Some(process.pid),
        core: None,
        name: clean(&process.name),
        runtime: "cpython",
        version: live.python.version.to_string(),
        sample_rate: None,
        samples: samples(&taken),
        code: Vec::new(),
        blocked,
        holders,
        cannot: vec![(By::Site, NO_SITE), (By::Tenant, NO_TENANT)],
        build: crate::target::go::buildinfo::BuildInfo::default(),
    }))
}

/// Types whose holders are looked for: those with the most bytes, the service's
/// own first.
const MOST_HELD: usize = 12;

/// Who holds the largest types, and what finding that out did to the process.
fn holders(
    live: &LivePython,
    taken: &Taken,
    most: Duration,
) -> Result<(Vec<TypeHolders>, Blocked), CopyError> {
    let names = taken.census.rows.iter().map(|r| r.type_name.as_str());
    let (own, others): (Vec<&str>, Vec<&str>) = names.partition(|n| is_own(n));
    let largest: Vec<&str> = own.into_iter().chain(others).take(MOST_HELD).collect();
    let held = live.holders(most, &|name| largest.contains(&name))?;
    let mut why = format!(
        "the process stood {:.1} ms while {} MiB were copied; holders are those of that moment",
        held.pause.took.as_secs_f64() * 1e3,
        held.pause.bytes >> 20
    );
    if !held.whole {
        why += "; not everything could be followed, so that some objects seem unreachable";
    }
    let types = held.types.into_iter().map(cleaned).collect();
    Ok((types, Blocked { what: "holders at other times".into(), why }))
}

fn error(e: LiveError) -> HeapError {
    if e.is_not_permitted() { HeapError::NotPermitted(e.to_string()) } else { e.into() }
}

fn samples(taken: &Taken) -> Vec<Sample> {
    let c = &taken.census;
    let typed = c.rows.iter().map(|r| (r.type_name.as_str(), (r.objects, r.bytes)));
    typed
        .chain([(UNTYPED, c.untyped), (TORN, c.torn)])
        .filter(|(_, (objects, _))| *objects > 0)
        .map(|(name, (objects, bytes))| Sample {
            stack: Vec::new(),
            object_size: None,
            type_name: Some(clean(name)),
            values: Values {
                alloc_objects: None,
                alloc_space: None,
                inuse_objects: i64::try_from(objects).unwrap_or(i64::MAX),
                inuse_space: i64::try_from(bytes).unwrap_or(i64::MAX),
            },
        })
        .collect()
}

fn blocked(taken: &Taken) -> Vec<Blocked> {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut blocked = Vec::new();
    let mut say = |what: &str, why: String| blocked.push(Blocked { what: what.to_owned(), why });
    if taken.census.pools == 0 {
        say(
            "objects",
            "no pymalloc pool was found: the process allocates by other means (PYTHONMALLOC)"
                .into(),
        );
    }
    say(
        "large blocks",
        format!(
            "{:.1} MiB (an estimate) are resident outside the pools: blocks of more than 512 \
             bytes, C extensions, stacks; they are not in the rows",
            mib(taken.outside)
        ),
    );
    let unseen = taken.swapped + taken.census.unreadable;
    if unseen > 0 {
        let why = format!("{:.1} MiB are swapped out or were unmapped meanwhile", mib(unseen));
        say("a part of the heap", why);
    }
    blocked
}
