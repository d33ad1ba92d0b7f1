//! The profile that the service itself would write (`runtime/pprof`,
//! `protomem.go`): the same sample types, period, stacks, addresses and size
//! labels.

use crate::{
    heap::{CodeMapping, Snapshot},
    report::{
        clean::clean,
        pprof::{Builder, Label, Mapping, ProtoSample},
    },
    symbol::Location,
};

/// Encode and gzip. `time_nanos` is the wall clock when it was read.
pub fn encode(snapshot: &Snapshot, time_nanos: i64) -> Vec<u8> {
    let mut b = Builder::heap();
    b.profile.time_nanos = time_nanos;
    b.profile.period_type = Some(b.value_type("space", "bytes"));
    b.profile.period = snapshot.sample_rate.and_then(|r| i64::try_from(r).ok()).unwrap_or(1);
    for (id, m) in (1..).zip(&snapshot.code) {
        let filename = b.string(&clean(&m.path));
        b.profile.mapping.push(Mapping {
            id,
            memory_start: m.start,
            memory_limit: m.end,
            file_offset: m.offset,
            filename,
            has_functions: true,
        });
    }
    let (bytes, kind) = (b.string("bytes"), b.string("type"));
    for s in &snapshot.samples {
        let location_id = s.stack.iter().map(|l| location(&mut b, l, &snapshot.code)).collect();
        let v = &s.values;
        let (objects, space) = (v.alloc_objects.unwrap_or(0), v.alloc_space.unwrap_or(0));
        let value = vec![objects, space, v.inuse_objects, v.inuse_space];
        let mut label = Vec::new();
        label.extend(s.object_size.map(|num| Label { key: bytes, str: 0, num }));
        if let Some(name) = &s.type_name {
            label.push(Label { key: kind, str: b.string(&clean(name)), num: 0 });
        }
        b.profile.sample.push(ProtoSample { location_id, value, label });
    }
    b.gzip()
}

fn location(b: &mut Builder, l: &Location, code: &[CodeMapping]) -> u64 {
    // Profiles hold the address of the call, not the one it returns to.
    let address = l.return_address.wrapping_sub(1);
    let mapping = code.iter().position(|m| (m.start..m.end).contains(&address));
    b.location(address, mapping.map_or(0, |i| i as u64 + 1), &l.frames)
}
