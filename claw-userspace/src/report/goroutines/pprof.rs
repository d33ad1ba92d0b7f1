//! The shape of Go's own goroutine profile (`printCountProfile` in
//! `runtime/pprof`): one sample per stack and set of labels, its value the
//! number of goroutines.

use std::collections::BTreeMap;

use super::{Dump, Frame};
use crate::report::pprof::{Builder, Label, Line, Location, Mapping, ProtoSample, ValueType};

/// Ids of locations, leaf first.
type Locations = Vec<u64>;
type Labels = Vec<(String, String)>;

pub fn encode(d: &Dump) -> Vec<u8> {
    let mut b = Builder::default();
    b.string("");
    let count = ValueType { r#type: b.string("goroutine"), unit: b.string("count") };
    b.profile.sample_type.push(count.clone());
    b.profile.period_type = Some(count);
    b.profile.period = 1;
    b.profile.time_nanos = d.time_nanos;
    let (memory_start, memory_limit, file_offset, file) = &d.mapping;
    let filename = b.string(file);
    b.profile.mapping.push(Mapping {
        id: 1,
        memory_start: *memory_start,
        memory_limit: *memory_limit,
        file_offset: *file_offset,
        filename,
        has_functions: true,
    });
    let mut locations: BTreeMap<u64, u64> = BTreeMap::new();
    let mut samples: BTreeMap<(Locations, Labels), i64> = BTreeMap::new();
    for g in d.groups.iter().filter(|g| !g.stack.is_empty()) {
        let stack = g
            .stack
            .chunk_by(|a, b| a.address == b.address && a.inlined)
            .map(|frames| location(&mut b, &mut locations, frames))
            .collect();
        let labels = g.labels.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        *samples.entry((stack, labels)).or_default() += i64::try_from(g.count).unwrap_or(i64::MAX);
    }
    let mut samples: Vec<_> = samples.into_iter().collect();
    samples.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for ((location_id, labels), count) in samples {
        let label = labels
            .iter()
            .map(|(k, v)| Label { key: b.string(k), str: b.string(v), num: 0 })
            .collect();
        b.profile.sample.push(ProtoSample { location_id, value: vec![count], label });
    }
    b.gzip()
}

/// One physical frame: inlined calls first, then what they are inlined in.
fn location(b: &mut Builder, known: &mut BTreeMap<u64, u64>, frames: &[Frame]) -> u64 {
    let address = frames.first().map_or(0, |f| f.address);
    if let Some(id) = known.get(&address) {
        return *id;
    }
    let line = frames
        .iter()
        .map(|f| Line {
            function_id: b.function_named(
                &f.function,
                f.file.as_deref().unwrap_or_default(),
                f.start_line,
            ),
            line: f.line.unwrap_or(0).into(),
        })
        .collect();
    let id = b.profile.location.len() as u64 + 1;
    b.profile.location.push(Location { id, mapping_id: 1, address, line });
    known.insert(address, id);
    id
}
