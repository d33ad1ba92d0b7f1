//! CPython: a census of the objects in its pools, by type.

use std::{path::Path, time::Duration};

use super::{By, HeapError, Sample, Snapshot, Values};
use crate::{
    report::clean::clean,
    stream::Blocked,
    target::{
        core::{CoreError, python::PythonCore},
        cpython::{
            census::{self, Census},
            copy::{CopyError, MemoryCopy},
            graph::paths::{TypeHolders, cleaned, held},
            live::{Holders, LiveError, LivePython, Taken},
            object::{Objects, is_own},
            regions::Region,
            running::Running,
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
        samples: samples(&taken.census),
        code: Vec::new(),
        blocked,
        holders,
        cannot: vec![(By::Site, NO_SITE), (By::Tenant, NO_TENANT)],
        build: crate::target::go::buildinfo::BuildInfo::default(),
    }))
}

/// A dump, looked at as the process would be that it is of.
pub fn of_core(
    path: &Path,
    exe: Option<&Path>,
    with_holders: bool,
) -> Result<Option<Snapshot>, HeapError> {
    let dump = match PythonCore::open(path, exe) {
        Err(CoreError::Python { source, .. }) if source.is_not_python() => return Ok(None),
        other => other?,
    };
    let (anonymous, writable) = dump.regions();
    let census = census::take(&dump.objects(), &anonymous);
    let mut blocked = blocked_in_core(&dump, &census, &anonymous);
    let mut holders = Vec::new();
    if with_holders {
        match core_holders(&dump, &census, &writable) {
            Ok((found, why)) => {
                holders = found;
                blocked.extend(why);
            }
            Err(e) => blocked.push(Blocked { what: "holders".into(), why: e.to_string() }),
        }
    }
    Ok(Some(Snapshot {
        pid: dump.core().notes.pid,
        core: Some(path.to_owned()),
        name: clean(&dump.exe.file_name().unwrap_or_default().to_string_lossy()),
        runtime: "cpython",
        version: dump.python.version.to_string(),
        sample_rate: None,
        samples: samples(&census),
        code: Vec::new(),
        blocked,
        holders,
        cannot: vec![(By::Site, NO_SITE), (By::Tenant, NO_TENANT)],
        build: crate::target::go::buildinfo::BuildInfo::default(),
    }))
}

fn blocked_in_core(dump: &PythonCore, census: &Census, anonymous: &[Region]) -> Vec<Blocked> {
    let mut blocked: Vec<Blocked> = no_pools(census).into_iter().collect();
    let mut say = |what: &str, why: String| blocked.push(Blocked { what: what.to_owned(), why });
    let outside = anonymous.iter().map(|r| r.end - r.start).sum::<u64>();
    say(
        "large blocks",
        format!(
            "{:.1} MiB at most lie outside the pools (a dump does not say what of them was \
             resident): blocks of more than 512 bytes, C extensions, stacks; they are not in the \
             rows",
            mib(outside.saturating_sub(census.pool_bytes))
        ),
    );
    let missing = dump.core().missing_bytes.saturating_add(census.unreadable);
    if missing > 0 {
        say("a part of the heap", format!("the core is cut: {:.1} MiB are missing", mib(missing)));
    }
    if let Some(why) = dump.unchecked {
        say("executable", format!("it could not be checked that it made the core: {why}"));
    }
    if let Some(first) = dump.absent.first() {
        say(
            "names of types in C extensions",
            format!(
                "{} of the files that were mapped are gone or have been replaced, e.g. {}; blocks \
                 with objects of such types count as no objects",
                dump.absent.len(),
                clean(first)
            ),
        );
    }
    blocked
}

/// Who holds the largest types in a dump, and how far that can be trusted.
fn core_holders(
    dump: &PythonCore,
    census: &Census,
    writable: &[Region],
) -> Result<(Vec<TypeHolders>, Option<Blocked>), CopyError> {
    if Running::of(dump.layout.minor).is_none() {
        return Err(CopyError::Version(dump.python.version));
    }
    let copy = MemoryCopy::of(dump.memory(), writable)?;
    let objects = Objects { memory: &copy, layout: dump.layout, types: dump.python.types };
    let largest = largest(census);
    let regions = copy.regions();
    let held = held(objects, dump.python.runtime, &regions, &|name| largest.contains(&name));
    let mut why = Vec::new();
    if held.collecting {
        why.push("a garbage collection was under way: some ways are not what they were made to be");
    }
    if !held.whole || dump.core().missing_bytes > 0 {
        why.push(NOT_WHOLE);
    }
    let blocked =
        (!why.is_empty()).then(|| Blocked { what: "holders in full".into(), why: why.join("; ") });
    Ok((held.types.into_iter().map(cleaned).collect(), blocked))
}

/// Types whose holders are looked for: those with the most bytes, the service's
/// own first.
const MOST_HELD: usize = 12;

const NOT_WHOLE: &str = "not everything could be followed, so that some objects seem unreachable";

fn largest(census: &Census) -> Vec<&str> {
    let names = census.rows.iter().map(|r| r.type_name.as_str());
    let (own, others): (Vec<&str>, Vec<&str>) = names.partition(|n| is_own(n));
    own.into_iter().chain(others).take(MOST_HELD).collect()
}

/// Who holds the largest types, and what finding that out did to the process.
fn holders(
    live: &LivePython,
    taken: &Taken,
    most: Duration,
) -> Result<(Vec<TypeHolders>, Blocked), CopyError> {
    let largest = largest(&taken.census);
    let Holders { found, pause, .. } = live.holders(most, &|name| largest.contains(&name))?;
    let mut why = format!(
        "the process stood {:.1} ms while {} MiB were copied; holders are those of that moment",
        pause.took.as_secs_f64() * 1e3,
        pause.bytes >> 20
    );
    if !found.whole {
        why += "; ";
        why += NOT_WHOLE;
    }
    let types = found.types.into_iter().map(cleaned).collect();
    Ok((types, Blocked { what: "holders at other times".into(), why }))
}

fn error(e: LiveError) -> HeapError {
    if e.is_not_permitted() { HeapError::NotPermitted(e.to_string()) } else { e.into() }
}

fn samples(c: &Census) -> Vec<Sample> {
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

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn no_pools(census: &Census) -> Option<Blocked> {
    (census.pools == 0).then(|| Blocked {
        what: "objects".into(),
        why: "no pymalloc pool was found: the process allocates by other means (PYTHONMALLOC)"
            .into(),
    })
}

fn blocked(taken: &Taken) -> Vec<Blocked> {
    let mut blocked: Vec<Blocked> = no_pools(&taken.census).into_iter().collect();
    let mut say = |what: &str, why: String| blocked.push(Blocked { what: what.to_owned(), why });
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
