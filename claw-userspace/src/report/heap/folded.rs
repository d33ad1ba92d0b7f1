//! Collapsed stacks: root first, in-use bytes as the weight. Of a difference,
//! only what grew: a weight cannot be negative.

use std::collections::BTreeMap;

use crate::{heap::Sample, report::clean::clean};

pub fn render(samples: &[Sample]) -> String {
    let mut weights: BTreeMap<String, i64> = BTreeMap::new();
    for s in samples {
        let frames = s.stack.iter().rev().flat_map(|l| l.frames.iter().rev());
        let mut names: Vec<String> = frames.map(|f| clean(&f.function).replace(';', ":")).collect();
        names.extend(s.type_name.as_deref().map(|t| clean(t).replace(';', ":")));
        let weight = weights.entry(names.join(";")).or_default();
        *weight = weight.saturating_add(s.values.inuse_space);
    }
    let grew = weights.into_iter().filter(|(stack, weight)| *weight > 0 && !stack.is_empty());
    grew.map(|(stack, weight)| format!("{stack} {weight}\n")).collect()
}
