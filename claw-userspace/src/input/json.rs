//! A row of JSON lines.

use std::borrow::Cow;

use serde::Deserialize;

use super::Row;

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    process: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    tenant: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    site: Option<Cow<'a, str>>,
    t: Option<f64>,
    live_bytes: Option<f64>,
    load: Option<f64>,
    uptime_s: Option<f64>,
    old_bytes: Option<f64>,
    allocs: Option<f64>,
    frees: Option<f64>,
    gc: Option<bool>,
}

pub fn row(text: &str, row: &mut Row) -> Result<(), String> {
    let f: Fields = serde_json::from_str(text).map_err(|e| {
        let text = e.to_string();
        // The position within the line, its number being said already.
        let text = text.split(" at line ").next().unwrap_or_default();
        format!("{text} (column {})", e.column())
    })?;
    let put = |to: &mut String, from: Option<Cow<'_, str>>| {
        super::set(to, from.as_deref().unwrap_or_default());
    };
    put(&mut row.process, f.process);
    put(&mut row.tenant, f.tenant);
    put(&mut row.site, f.site);
    row.t = f.t;
    row.live_bytes = f.live_bytes;
    row.load = f.load;
    row.uptime_s = f.uptime_s;
    row.old_bytes = f.old_bytes;
    row.allocs = f.allocs;
    row.frees = f.frees;
    row.gc = f.gc.unwrap_or(false);
    Ok(())
}
