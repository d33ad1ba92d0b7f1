//! A site as reports show it.

use super::{clean::clean, model};
use crate::{ledger::Site, symbol::Frame};

fn name(s: &str) -> Option<String> {
    (!s.is_empty()).then(|| clean(s))
}

fn line(l: u32) -> Option<u32> {
    (l > 0).then_some(l)
}

fn frame(f: &Frame) -> model::StackFrame {
    model::StackFrame {
        function: clean(&f.function),
        file: name(&f.file),
        line: line(f.line),
        inlined: f.inlined,
    }
}

pub fn describe(site: &Site) -> model::Site {
    let culprit = site.culprit_frame();
    model::Site {
        id: site.id.clone(),
        function: culprit.map_or_else(|| "(unknown)".to_owned(), |f| clean(&f.function)),
        file: culprit.and_then(|f| name(&f.file)),
        line: culprit.and_then(|f| line(f.line)),
        stack: site.frames.iter().map(frame).collect(),
    }
}
