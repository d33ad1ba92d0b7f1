//! Go: the runtime's own heap profile since the process started.

use super::{By, CodeMapping, HeapError, Sample, Snapshot, Values};
use crate::{
    report::clean::clean,
    stream::Blocked,
    symbol::Stacks,
    target::{
        core::go::GoCore,
        discover,
        go::{
            binary::GoBinary,
            memprofile::Bucket,
            program::{GoProgram, OpenError},
            types,
        },
        memory::{Memory, ProcessMemory},
        process::Process,
    },
};

const NO_TENANT: &str = "Go's heap profile carries no labels; `claw-ebpf watch` keeps the tenant \
    of every object that is sampled while it is attached";

/// Within a page.
const PAGE: u64 = 0xfff;

pub fn of_process(
    process: &Process,
    program: &GoProgram<ProcessMemory>,
    by: By,
) -> Result<Snapshot, HeapError> {
    let mut snapshot = snapshot(program, by)?;
    snapshot.pid = Some(process.pid);
    snapshot.name = clean(&process.name);
    snapshot.code = process
        .mappings()
        .map_err(OpenError::from)?
        .into_iter()
        .filter(|m| m.executable)
        .map(|m| CodeMapping { start: m.start, end: m.end, offset: m.offset, path: m.path })
        .collect();
    // The executable comes first, as in the runtime's own profiles.
    snapshot.code.sort_by_key(|m| m.path != process.exe);
    Ok(snapshot)
}

pub fn of_core(program: &GoProgram<GoCore>, by: By) -> Result<Snapshot, HeapError> {
    let mut snapshot = snapshot(program, by)?;
    let core = &program.memory;
    snapshot.pid = core.core.notes.pid;
    snapshot.core = Some(core.core.path.clone());
    let exe = core.exe.to_string_lossy();
    snapshot.name = clean(exe.rsplit('/').next().unwrap_or_default());
    snapshot.code = core
        .binary
        .elf()
        .segments
        .iter()
        .filter(|s| s.executable)
        .map(|s| CodeMapping {
            // Whole pages, as the kernel maps them.
            start: s.vaddr.wrapping_add(core.bias) & !PAGE,
            end: s.vaddr.wrapping_add(core.bias).saturating_add(s.mem_size).saturating_add(PAGE)
                & !PAGE,
            offset: s.offset & !PAGE,
            path: clean(&exe),
        })
        .collect();
    if let Some(why) = core.unchecked {
        let what = "whether the executable is the one that made the core".to_owned();
        snapshot.blocked.push(Blocked { what, why: why.to_owned() });
    }
    if core.core.missing_bytes > 0 {
        snapshot.blocked.push(Blocked {
            what: "a part of the core".to_owned(),
            why: format!("the file is cut: {} bytes are missing", core.core.missing_bytes),
        });
    }
    Ok(snapshot)
}

fn snapshot(program: &GoProgram<impl Memory>, by: By) -> Result<Snapshot, HeapError> {
    let profile = program
        .heap_profile()
        .map_err(|source| HeapError::Profile { name: program.name.clone(), source })?;
    let (binary, bias) = (&*program.binary, program.bias);
    let mut blocked = Vec::new();
    let mut block = |what: &str, why: String| blocked.push(Blocked { what: what.into(), why });
    if profile.rate == 0 {
        blocked.push(discover::no_samples());
    } else if profile.before_gc && !profile.buckets.is_empty() {
        block("what is garbage", "no GC cycle is complete yet: all that was sampled counts".into());
    }
    if profile.torn > 0 {
        blocked.push(Blocked {
            what: "exact counts".into(),
            why: format!(
                "{} of {} buckets changed whenever they were read; ask again",
                profile.torn,
                profile.buckets.len()
            ),
        });
    }
    let mut stacks = Stacks::new(binary, bias);
    let samples = profile
        .buckets
        .iter()
        .map(|b| {
            let shown = stacks.shown(&b.stack);
            let mut stack = stacks.locations(shown);
            if stack.is_empty() {
                stack = stacks.locations(&b.stack);
            }
            let object_size = i64::try_from(b.size).ok().filter(|_| b.allocs > 0);
            let values = values(b, profile.rate);
            let type_name = match by {
                By::Type => type_name(&mut stacks, binary, bias, &b.stack),
                By::Site | By::Tenant => None,
            };
            Sample { stack, object_size, type_name, values }
        })
        .collect();
    Ok(Snapshot {
        pid: None,
        core: None,
        name: String::new(),
        runtime: "go",
        version: clean(&binary.version.raw),
        sample_rate: Some(profile.rate),
        samples,
        code: Vec::new(),
        blocked,
        holders: Vec::new(),
        cannot: vec![(By::Tenant, NO_TENANT)],
        build: binary.build.clone(),
    })
}

/// From the code that made the call into the allocator: the profile itself
/// does not know types.
fn type_name(
    stacks: &mut Stacks<'_>,
    binary: &GoBinary,
    bias: u64,
    stack: &[u64],
) -> Option<String> {
    let shown = stacks.shown(stack);
    let below = stack.get(..stack.len().checked_sub(shown.len())?)?;
    let functions = stacks.functions(below);
    let names: Vec<&str> = functions.iter().map(String::as_str).collect();
    types::of_allocation(binary, shown.first()?.wrapping_sub(bias), &names)
}

fn values(b: &Bucket, rate: u64) -> Values {
    let (alloc_objects, alloc_space) = scale(b.allocs, b.size, rate);
    let (inuse_objects, inuse_space) = scale(b.in_use(), b.size, rate);
    Values {
        alloc_objects: Some(alloc_objects),
        alloc_space: Some(alloc_space),
        inuse_objects,
        inuse_space,
    }
}

/// `scaleHeapSample` of `runtime/pprof/protomem.go`, with its rounding.
fn scale(count: u64, size: u64, rate: u64) -> (i64, i64) {
    if count == 0 || size == 0 {
        return (0, 0);
    }
    let (objects, bytes) = (count as f64, count as f64 * size as f64);
    if rate <= 1 {
        return (objects as i64, bytes as i64);
    }
    let scale = 1.0 / (1.0 - (-(size as f64) / rate as f64).exp());
    ((objects * scale) as i64, (bytes * scale) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_as_gos_own_writer_does() {
        assert_eq!(scale(3, 64, 1), (3, 192));
        assert_eq!(scale(0, 64, 512 << 10), (0, 0));
        // 1/(1-e^(-1/8192)) = 8192.5
        assert_eq!(scale(2, 64, 512 << 10), (16_385, 1_048_640));
        assert_eq!(scale(6, 1 << 20, 512 << 10), (6, 7_276_179));
        assert_eq!(scale(u64::MAX, u64::MAX, 1), (i64::MAX, i64::MAX), "a torn count");
    }
}
