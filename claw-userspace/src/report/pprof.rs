//! pprof's `profile.proto`, gzipped: its messages, what builds them, and the
//! profile of a watch: the four values of Go's own heap profile, the tenant as
//! a label.

use std::{collections::HashMap, io::Write};

use flate2::{Compression, write::GzEncoder};
use prost::Message;

use crate::{engine::Engine, report::clean::clean, symbol::Frame};

/// What one (tenant, site) holds, unsampled.
#[derive(Clone, Debug)]
pub struct Sample {
    pub tenant: String,
    /// Leaf first.
    pub frames: Vec<Frame>,
    pub alloc_objects: f64,
    pub alloc_bytes: f64,
    pub inuse_objects: f64,
    pub inuse_bytes: f64,
}

/// The samples of everything that was watched.
pub fn samples(engine: &Engine) -> Vec<Sample> {
    let mut all = Vec::new();
    for p in engine.all_processes() {
        for g in p.heap.groups() {
            let Some(site) = p.sites.get(g.site) else { continue };
            all.push(Sample {
                tenant: engine.ledger().tenants.name(g.tenant).to_owned(),
                frames: site.frames.clone(),
                alloc_objects: g.born.objects,
                alloc_bytes: g.born.bytes,
                inuse_objects: g.live.objects,
                inuse_bytes: g.live.bytes,
            });
        }
    }
    all
}

/// Field numbers: github.com/google/pprof/proto/profile.proto.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<ProtoSample>,
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub period: i64,
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueType {
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ProtoSample {
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Label {
    #[prost(int64, tag = "1")]
    pub key: i64,
    #[prost(int64, tag = "2")]
    pub str: i64,
    #[prost(int64, tag = "3")]
    pub num: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mapping {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    #[prost(int64, tag = "5")]
    pub filename: i64,
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Location {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    #[prost(uint64, tag = "3")]
    pub address: u64,
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Line {
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    #[prost(int64, tag = "2")]
    pub line: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Function {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(int64, tag = "2")]
    pub name: i64,
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    #[prost(int64, tag = "4")]
    pub filename: i64,
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}

#[derive(Default)]
pub(super) struct Builder {
    pub profile: Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(String, String), u64>,
    locations: HashMap<(u64, Vec<(u64, u32)>), u64>,
}

impl Builder {
    /// With the four values of a Go heap profile.
    pub fn heap() -> Self {
        let mut b = Self::default();
        b.string("");
        for (name, unit) in [
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ] {
            let value_type = b.value_type(name, unit);
            b.profile.sample_type.push(value_type);
        }
        b
    }

    pub fn value_type(&mut self, name: &str, unit: &str) -> ValueType {
        ValueType { r#type: self.string(name), unit: self.string(unit) }
    }

    pub fn string(&mut self, s: &str) -> i64 {
        if let Some(i) = self.strings.get(s) {
            return *i;
        }
        let i = i64::try_from(self.profile.string_table.len()).unwrap_or(0);
        self.profile.string_table.push(s.to_owned());
        self.strings.insert(s.to_owned(), i);
        i
    }

    fn function(&mut self, f: &Frame) -> u64 {
        self.function_named(&f.function, &f.file, f.start_line)
    }

    pub(super) fn function_named(&mut self, name: &str, file: &str, start_line: u32) -> u64 {
        let key = (clean(name), clean(file));
        if let Some(id) = self.functions.get(&key) {
            return *id;
        }
        let id = self.profile.function.len() as u64 + 1;
        let (name, filename) = (self.string(&key.0), self.string(&key.1));
        let start_line = i64::from(start_line);
        self.profile.function.push(Function { id, name, system_name: name, filename, start_line });
        self.functions.insert(key, id);
        id
    }

    /// One physical frame: inlined calls first, then what they are inlined in.
    /// Address and mapping are 0 where they are not known.
    pub fn location(&mut self, address: u64, mapping_id: u64, group: &[Frame]) -> u64 {
        let lines: Vec<(u64, u32)> = group.iter().map(|f| (self.function(f), f.line)).collect();
        let key = (address, lines);
        if let Some(id) = self.locations.get(&key) {
            return *id;
        }
        let id = self.profile.location.len() as u64 + 1;
        let line = key
            .1
            .iter()
            .map(|(function_id, line)| Line { function_id: *function_id, line: i64::from(*line) })
            .collect();
        self.profile.location.push(Location { id, mapping_id, address, line });
        self.locations.insert(key, id);
        id
    }

    pub fn gzip(&self) -> Vec<u8> {
        let mut gz = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to memory does not fail.
        let _ = gz.write_all(&self.profile.encode_to_vec());
        gz.finish().unwrap_or_default()
    }
}

/// Encode and gzip. `time_nanos` is the wall clock at the start.
pub fn encode(samples: &[Sample], time_nanos: i64, duration_nanos: i64) -> Vec<u8> {
    let mut b = Builder::heap();
    b.profile.default_sample_type = b.string("inuse_space");
    b.profile.time_nanos = time_nanos;
    b.profile.duration_nanos = duration_nanos;
    let key = b.string("tenant");
    for s in samples {
        let mut location_id = Vec::new();
        for group in s.frames.split_inclusive(|f| !f.inlined) {
            location_id.push(b.location(0, 0, group));
        }
        let value = [s.alloc_objects, s.alloc_bytes, s.inuse_objects, s.inuse_bytes]
            .map(|v| v.round() as i64)
            .to_vec();
        let label = vec![Label { key, str: b.string(&s.tenant), num: 0 }];
        b.profile.sample.push(ProtoSample { location_id, value, label });
    }
    b.gzip()
}
