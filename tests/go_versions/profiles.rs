//! Profiles in pprof's format: a program's own, and ours.

use std::{collections::BTreeMap, io::Read};

use claw_ebpf::report::pprof::{self, ValueType};
use prost::Message;

/// Function, file, line.
pub type Frame = (String, String, i64);

pub struct Profile {
    pub raw: pprof::Profile,
    /// Location id → address and frames, innermost first.
    pub places: BTreeMap<u64, (u64, Vec<Frame>)>,
}

impl Profile {
    pub fn unpack(gz: &[u8]) -> Self {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(gz).read_to_end(&mut bytes).unwrap();
        let raw = pprof::Profile::decode(&*bytes).unwrap();
        let mut profile = Self { raw, places: BTreeMap::new() };
        let text = |i: i64| profile.text(i).to_owned();
        let functions: BTreeMap<u64, (String, String)> =
            profile.raw.function.iter().map(|f| (f.id, (text(f.name), text(f.filename)))).collect();
        let frame = |line: &pprof::Line| {
            let (name, file) = functions[&line.function_id].clone();
            (name, file, line.line)
        };
        let places = profile
            .raw
            .location
            .iter()
            .map(|l| (l.id, (l.address, l.line.iter().map(frame).collect())))
            .collect();
        profile.places = places;
        profile
    }

    pub fn text(&self, index: i64) -> &str {
        &self.raw.string_table[usize::try_from(index).unwrap()]
    }

    pub fn value_type(&self, t: &ValueType) -> (&str, &str) {
        (self.text(t.r#type), self.text(t.unit))
    }
}
