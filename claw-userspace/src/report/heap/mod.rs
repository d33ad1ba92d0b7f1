//! What `claw-ebpf heap` writes: one model, several formats. The JSON's shape
//! is published as `schema/heap-1.json`.

mod folded;
mod pprof;
mod text;

use serde::{Deserialize, Serialize};

use super::{clean::clean, holder::holder, model, site::describe};
use crate::{
    heap::{By, Snapshot, Values, rows},
    stream::Blocked,
    target::cpython::graph::paths::TypeHolders,
};

pub use folded::render as folded;
pub use pprof::encode as pprof;
pub use text::render as text;

pub const SCHEMA: &str = "claw-ebpf/heap/1";
/// The JSON Schema of the document.
pub const JSON_SCHEMA: &str = include_str!("../../../schema/heap-1.json");

/// One look at a heap, or the difference of two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapReport {
    pub schema: String,
    /// RFC 3339, UTC: when it was read.
    pub timestamp: String,
    pub host: String,
    /// Of a core dump: the pid that it had; null when the dump does not say.
    pub pid: Option<u32>,
    /// Path of the core dump, or null.
    pub core: Option<String>,
    pub process: String,
    pub runtime: String,
    pub version: String,
    /// `site` or `type`.
    pub by: String,
    /// Mean bytes between two samples; null when every object is counted.
    pub sample_rate: Option<u64>,
    /// The profile that was taken away, or null: then values are not
    /// differences.
    pub since: Option<String>,
    pub total: Values,
    /// Largest in use first.
    pub rows: Vec<HeapRow>,
    pub blocked: Vec<Blocked>,
    /// Who holds the objects of the largest types; empty when not asked for.
    pub holders: Vec<HeldType>,
}

/// The ways along which the objects of one type are held, most objects first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldType {
    #[serde(rename = "type")]
    pub type_name: String,
    pub objects: u64,
    pub holders: Vec<model::Holder>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeapRow {
    /// Null when rows are types.
    pub site: Option<model::Site>,
    /// Null when it is not known.
    #[serde(rename = "type")]
    pub type_name: Option<String>,
    #[serde(flatten)]
    pub values: Values,
    /// Stacks and object sizes, or types, that it is made of.
    pub parts: usize,
}

/// When and where it was read.
#[derive(Clone, Debug)]
pub struct Context {
    pub wall_ns: u64,
    pub host: String,
    pub by: By,
    pub since: Option<String>,
}

fn held(t: &TypeHolders) -> HeldType {
    HeldType {
        type_name: t.type_name.clone(),
        objects: t.objects,
        holders: t.paths.iter().map(holder).collect(),
    }
}

impl HeapReport {
    pub fn new(snapshot: &Snapshot, context: &Context) -> Self {
        let rows: Vec<HeapRow> = rows(&snapshot.samples, context.by)
            .into_iter()
            .map(|r| HeapRow {
                site: r.site.as_ref().map(describe),
                type_name: r.type_name.as_deref().map(clean),
                values: r.values,
                parts: r.parts,
            })
            .collect();
        Self {
            schema: SCHEMA.to_owned(),
            timestamp: model::timestamp(i128::from(context.wall_ns)),
            host: clean(&context.host),
            pid: snapshot.pid,
            core: snapshot.core.as_ref().map(|p| clean(&p.to_string_lossy())),
            process: snapshot.name.clone(),
            runtime: snapshot.runtime.to_owned(),
            version: snapshot.version.clone(),
            by: match context.by {
                By::Site => "site",
                By::Type => "type",
                By::Tenant => "tenant",
            }
            .to_owned(),
            sample_rate: snapshot.sample_rate,
            since: context.since.as_deref().map(clean),
            total: Values::total(rows.iter().map(|r| &r.values)),
            rows,
            blocked: snapshot.blocked.clone(),
            holders: snapshot.holders.iter().map(held).collect(),
        }
    }

    /// One document, indented.
    ///
    /// # Errors
    /// Never for a report; the signature is serde's.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|s| s + "\n")
    }

    /// One object per line: the heap without its rows, then each row.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn json_lines(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        #[serde(tag = "event", rename_all = "lowercase")]
        enum Line<'a> {
            Heap(&'a HeapReport),
            Row(&'a HeapRow),
        }
        let head = Self { rows: Vec::new(), ..self.clone() };
        let mut text = serde_json::to_string(&Line::Heap(&head))? + "\n";
        for row in &self.rows {
            text += &serde_json::to_string(&Line::Row(row))?;
            text.push('\n');
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
