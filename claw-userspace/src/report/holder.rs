//! A way along which CPython objects are held, as reports have it.

use super::model;
use crate::target::cpython::graph::paths::{Path, RootKind, Step};

/// Root and steps.
pub fn holder(path: &Path) -> model::Holder {
    let last = path.steps.len().saturating_sub(1);
    let step = |(i, s): (usize, &Step)| model::HolderStep {
        type_name: s.type_name.clone(),
        field: s.field.clone(),
        bytes: (i == last).then_some(path.bytes),
        count: Some(s.count),
    };
    model::Holder {
        root: root(path),
        path: path.steps.iter().enumerate().map(step).collect(),
        objects: path.objects,
    }
}

/// Where a way begins, in words.
pub fn root(path: &Path) -> String {
    let root = &path.root;
    match path.kind {
        RootKind::Global => format!("global {root}"),
        RootKind::ClassAttribute => format!("class attribute {root}"),
        RootKind::Closure => format!("closure variable {root}"),
        RootKind::DefaultArgument => format!("default argument of {root}"),
        RootKind::LruCache => format!("functools cache of {root}"),
        RootKind::Local => format!("local variable {root}"),
        RootKind::Native => "memory of the interpreter or a C extension".to_owned(),
        RootKind::Unreachable => "nothing: unreachable, not collected yet".to_owned(),
    }
}
