//! The difference to an earlier profile, this program's or the service's own
//! (`/debug/pprof/heap`), as `go tool pprof -base` makes it.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use flate2::read::GzDecoder;
use prost::Message;

use super::{Sample, Snapshot, Values};
use crate::{
    report::{
        clean::clean,
        pprof::{Location as ProtoLocation, Profile},
    },
    symbol::{Frame, Location, origin},
};

/// Largest profile that is read, unpacked.
const MOST: u64 = 512 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SinceError {
    #[error("--since {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "--since {0}: not a heap profile in pprof's format, as `claw-ebpf heap --out FILE.pb.gz` \
         or the service's /debug/pprof/heap give it"
    )]
    Format(PathBuf),
    #[error("--since {path}: it was made with one sample per {then} bytes, this one per {now}")]
    Rate { path: PathBuf, then: i64, now: u64 },
}

/// Take the profile in `path` away from `now`.
///
/// # Errors
/// When it cannot be read or is no heap profile.
pub fn subtract(now: &mut Snapshot, path: &Path) -> Result<(), SinceError> {
    let profile = load(path)?;
    let then = samples(&profile, &now.build).ok_or_else(|| SinceError::Format(path.to_owned()))?;
    if let Some(rate) = now.sample_rate
        && u64::try_from(profile.period) != Ok(rate)
    {
        return Err(SinceError::Rate { path: path.to_owned(), then: profile.period, now: rate });
    }
    now.samples = difference(std::mem::take(&mut now.samples), then);
    Ok(())
}

fn load(path: &Path) -> Result<Profile, SinceError> {
    let io = |source| SinceError::Io { path: path.to_owned(), source };
    let format = || SinceError::Format(path.to_owned());
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(format());
    }
    let mut bytes = Vec::new();
    let unpacked = GzDecoder::new(File::open(path).map_err(io)?).take(MOST).read_to_end(&mut bytes);
    match unpacked {
        Ok(n) if (n as u64) < MOST => Profile::decode(&*bytes).map_err(|_| format()),
        _ => Err(format()),
    }
}

/// `None` when it is another kind of profile or contradicts itself.
fn samples(p: &Profile, build: &crate::target::go::buildinfo::BuildInfo) -> Option<Vec<Sample>> {
    let text = |i: i64| p.string_table.get(usize::try_from(i).ok()?).map(String::as_str);
    let column = |name: &str| p.sample_type.iter().position(|t| text(t.r#type) == Some(name));
    let allocated = (column("alloc_objects"), column("alloc_space"));
    let in_use = (column("inuse_objects")?, column("inuse_space")?);
    let functions: HashMap<u64, _> = p.function.iter().map(|f| (f.id, f)).collect();
    let frames = |l: &ProtoLocation| -> Option<Vec<Frame>> {
        let last = l.line.len().checked_sub(1)?;
        l.line
            .iter()
            .enumerate()
            .map(|(i, line)| {
                let f = functions.get(&line.function_id)?;
                let function = text(f.name)?.to_owned();
                Some(Frame {
                    origin: origin(&function, build),
                    function,
                    file: text(f.filename)?.to_owned(),
                    line: u32::try_from(line.line).unwrap_or(0),
                    start_line: u32::try_from(f.start_line).unwrap_or(0),
                    inlined: i < last,
                })
            })
            .collect()
    };
    let mut places = HashMap::new();
    for l in &p.location {
        let return_address = l.address.wrapping_add(1);
        places.insert(l.id, Location { return_address, frames: frames(l).unwrap_or_default() });
    }
    let mut found = Vec::new();
    for s in &p.sample {
        let stack: Option<Vec<Location>> =
            s.location_id.iter().map(|id| places.get(id).cloned()).collect();
        let value = |i: usize| s.value.get(i).copied();
        let label = |name: &str| s.label.iter().find(|l| text(l.key) == Some(name));
        found.push(Sample {
            stack: stack?,
            object_size: label("bytes").map(|l| l.num),
            type_name: label("type").and_then(|l| text(l.str)).map(str::to_owned),
            values: Values {
                alloc_objects: allocated.0.and_then(value),
                alloc_space: allocated.1.and_then(value),
                inuse_objects: value(in_use.0)?,
                inuse_space: value(in_use.1)?,
            },
        });
    }
    Some(found)
}

/// What tells samples apart, in any build: functions and lines, and the size.
type Key = (Vec<Vec<(String, String, u32)>>, Option<i64>, Option<String>);

fn key(s: &Sample) -> Key {
    // A written profile has its names cleaned.
    let frame = |f: &Frame| (clean(&f.function), clean(&f.file), f.line);
    let stack = s.stack.iter().map(|l| l.frames.iter().map(frame).collect());
    // A bucket that never allocated has no size in a profile.
    let size = s.object_size.filter(|_| !s.values.is_zero());
    // A stack says more than the type, which not every profile has.
    let type_name = s.type_name.as_deref().filter(|_| s.stack.is_empty());
    (stack.collect(), size, type_name.map(clean))
}

/// `now` less `then`; what did not change is left out.
fn difference(now: Vec<Sample>, then: Vec<Sample>) -> Vec<Sample> {
    let mut order: Vec<Sample> = Vec::new();
    let mut places: HashMap<Key, usize> = HashMap::new();
    let negated = then.into_iter().map(|s| Sample { values: s.values.negated(), ..s });
    for s in now.into_iter().chain(negated) {
        if s.values.is_zero() {
            continue;
        }
        match places.entry(key(&s)) {
            std::collections::hash_map::Entry::Occupied(e) => {
                if let Some(known) = order.get_mut(*e.get()) {
                    known.values = known.values.plus(&s.values);
                }
            }
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(order.len());
                order.push(s);
            }
        }
    }
    order.retain(|s| !s.values.is_zero());
    order
}
