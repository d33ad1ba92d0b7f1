//! What stayed of each type at the end of a window, by who allocated it.

use rustc_hash::FxHashMap;

use super::pystacks::Stacks;
use crate::{
    stream::{PyGain, PyWriter},
    symbol::Frame,
};

/// Writers of one type that a window carries: a leak has few.
const MOST_WRITERS: usize = 64;
/// Interpreter's own types of which freed objects are kept for reuse
/// (`Include/internal/pycore_freelist.h` and before it each type's file).
const REUSED: [&str; 8] =
    ["list", "dict", "tuple", "float", "slice", "frame", "Context", "_contextvars.Context"];

/// By tenant and stack: stayed, and of those the early ones.
pub struct Gain {
    /// Only those in containers that grow count.
    pub held: bool,
    stayed: u64,
    by: FxHashMap<(Option<String>, u32), (u64, u64)>,
}

impl Gain {
    pub fn new(held: bool) -> Self {
        Self { held, stayed: 0, by: FxHashMap::default() }
    }

    /// One more that stayed; its tenant and stack where they are known, and
    /// whether it was allocated in the first half of the window.
    pub fn add(&mut self, writer: Option<(Option<String>, u32, bool)>) {
        self.stayed += 1;
        if let Some((tenant, stack, early)) = writer {
            let (stayed, early_ones) = self.by.entry((tenant, stack)).or_default();
            *stayed += 1;
            *early_ones += u64::from(early);
        }
    }

    /// The largest writers come first; the least of very many are left out.
    pub fn finish(self, name: &str, stacks: &Stacks<'_>) -> PyGain {
        let mut by: Vec<PyWriter> = self
            .by
            .into_iter()
            .map(|((tenant, stack), (stayed, early))| PyWriter {
                allocated: stacks.allocated(stack),
                tenant,
                stack,
                stayed,
                early,
            })
            .collect();
        by.sort_by(|a, b| {
            b.stayed.cmp(&a.stayed).then_with(|| (&a.tenant, a.stack).cmp(&(&b.tenant, b.stack)))
        });
        let entered = by.iter().map(|w| w.stayed).sum();
        by.truncate(MOST_WRITERS);
        PyGain {
            type_name: name.to_owned(),
            stayed: self.stayed,
            entered,
            reused: REUSED.contains(&name),
            held: self.held,
            by,
        }
    }
}

/// The stacks that writers refer to, who are made to count from there.
pub fn carried(gains: &mut [PyGain], all: Vec<Vec<Frame>>) -> Vec<Vec<Frame>> {
    let mut places: FxHashMap<u32, u32> = FxHashMap::default();
    let mut stacks = Vec::new();
    for writer in gains.iter_mut().flat_map(|g| &mut g.by) {
        let place = *places.entry(writer.stack).or_insert_with(|| {
            stacks.push(all.get(writer.stack as usize).cloned().unwrap_or_default());
            u32::try_from(stacks.len() - 1).unwrap_or(u32::MAX)
        });
        writer.stack = place;
    }
    stacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stacks_of_writers_are_carried() {
        let writer = |stack| PyWriter { stack, ..PyWriter::default() };
        let mut gains = [
            PyGain { by: vec![writer(3), writer(1)], ..PyGain::default() },
            PyGain { by: vec![writer(3), writer(9)], ..PyGain::default() },
        ];
        let frame = |i: u32| Frame {
            function: i.to_string(),
            file: String::new(),
            line: i,
            start_line: 0,
            inlined: false,
            origin: crate::symbol::Origin::Main,
        };
        let stacks = carried(&mut gains, (0..5).map(|i| vec![frame(i)]).collect());
        assert_eq!(stacks, [vec![frame(3)], vec![frame(1)], vec![]]);
        let by: Vec<u32> = gains.iter().flat_map(|g| &g.by).map(|w| w.stack).collect();
        assert_eq!(by, [0, 1, 0, 2]);
    }
}
