//! The probes of exact mode: from a Go binary to the places that every
//! allocation and every new goroutine passes once. Pure, as `plan`.

use claw_common::{ExactSite, ExactTarget};

use super::plan::{Finder, Program};
use crate::target::go::binary::GoBinary;

const MALLOC: &str = "runtime.mallocgc";
/// Size classes that specialised functions can exist for, and sizes of the
/// tiny allocator's (`GOEXPERIMENT=sizespecializedmalloc`: on in Go 1.27, to
/// be had in 1.26).
const CLASSES: u32 = 67;
const TINY_SIZES: u32 = 15;

/// A place to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EveryPoint {
    pub site: ExactSite,
    pub file_offset: u64,
    pub emulated: bool,
}

/// All of them in one binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EveryPlan {
    pub points: Vec<EveryPoint>,
    /// Specialised functions that are covered.
    pub specialised: usize,
    /// Ranges of code by address in the file.
    target: ExactTarget,
}

impl EveryPlan {
    /// By the names in the function table, not by version: 1.26 can be built
    /// with the specialised functions and 1.27 without.
    ///
    /// # Errors
    /// Names the function that is missing.
    pub fn of(binary: &GoBinary) -> Result<Self, String> {
        let finder = Finder { binary };
        let names: Vec<String> = specialised_names().collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let ranges = binary.find(&names).map_err(|e| e.to_string())?;
        let malloc = finder.entry(MALLOC, Program::ProfileAlloc)?;
        let point = |site, file_offset, emulated| EveryPoint { site, file_offset, emulated };
        let mut points = vec![point(ExactSite::Malloc, malloc.file_offset, malloc.emulated)];
        let mut span: Option<[u64; 2]> = None;
        let found: Vec<_> = ranges.into_iter().flatten().collect();
        for range in &found {
            let p = finder.after_check(*range, MALLOC, Program::ProfileAlloc)?;
            points.push(point(ExactSite::Specialised, p.file_offset, p.emulated));
            let [low, high] = span.unwrap_or([range.entry, range.end]);
            span = Some([low.min(range.entry), high.max(range.end)]);
        }
        for p in finder.creations()? {
            let site = match p.program {
                Program::NewprocRunqput => ExactSite::NewprocRunqput,
                _ => ExactSite::NewprocResult,
            };
            points.push(point(site, p.file_offset, p.emulated));
        }
        let malloc = binary.function(MALLOC).map_or([0; 2], |r| [r.entry, r.end]);
        let target =
            ExactTarget { malloc, specialised: span.unwrap_or_default(), ..ExactTarget::default() };
        Ok(Self { points, specialised: found.len(), target })
    }

    /// As the BPF program needs it, for a process loaded `bias` above the
    /// addresses in its file.
    pub fn target(&self, bias: u64, active: bool, stream: bool) -> ExactTarget {
        let shift = |r: [u64; 2]| r.map(|a| if a == 0 { 0 } else { a.wrapping_add(bias) });
        ExactTarget {
            malloc: shift(self.target.malloc),
            specialised: shift(self.target.specialised),
            active: u32::from(active),
            stream: u32::from(stream),
        }
    }
}

fn specialised_names() -> impl Iterator<Item = String> {
    let classes = (1..=CLASSES).flat_map(|c| {
        ["SmallNoScanSC", "SmallScanNoHeaderSC", "TinySC"].map(|kind| format!("{MALLOC}{kind}{c}"))
    });
    classes.chain((1..=TINY_SIZES).map(|s| format!("{MALLOC}TinySize{s}")))
}
