//! Collapsed stacks: root first, the tenant as the outermost frame, in-use
//! bytes as the weight.

use super::pprof::Sample;

pub fn render(samples: &[Sample]) -> String {
    let mut lines: Vec<String> = samples
        .iter()
        .filter(|s| s.inuse_bytes >= 1.0)
        .map(|s| {
            let frames = s.frames.iter().rev().map(|f| f.function.replace(';', ":"));
            let stack: Vec<String> =
                std::iter::once(s.tenant.replace(';', ":")).chain(frames).collect();
            format!("{} {:.0}\n", stack.join(";"), s.inuse_bytes)
        })
        .collect();
    lines.sort_unstable();
    lines.concat()
}
