//! A row of CSV (RFC 4180, one line to a row): the first row names the
//! columns, in any order; those that are not known are ignored.

use std::borrow::Cow;

use super::{Row, set};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    T,
    Process,
    Tenant,
    Site,
    Live,
    Load,
    Uptime,
    Old,
    Allocs,
    Frees,
    Gc,
    Other,
}

const NAMES: [(&str, Column); 11] = [
    ("t", Column::T),
    ("process", Column::Process),
    ("live_bytes", Column::Live),
    ("tenant", Column::Tenant),
    ("site", Column::Site),
    ("load", Column::Load),
    ("uptime_s", Column::Uptime),
    ("old_bytes", Column::Old),
    ("allocs", Column::Allocs),
    ("frees", Column::Frees),
    ("gc", Column::Gc),
];
/// Of these, the first ones have to be there.
const NEEDED: usize = 3;

#[derive(Debug)]
pub struct Header(Vec<Column>);

impl Header {
    pub fn new(text: &str) -> Result<Self, String> {
        let mut columns = Vec::new();
        each(text, |_, name| {
            let found = NAMES.iter().find(|(n, _)| *n == name.trim());
            columns.push(found.map_or(Column::Other, |(_, c)| *c));
            Ok(())
        })?;
        for (name, column) in NAMES {
            let times = columns.iter().filter(|c| **c == column).count();
            if times > 1 {
                return Err(format!("column {name} is there {times} times"));
            }
        }
        match NAMES[..NEEDED].iter().find(|(_, c)| !columns.contains(c)) {
            Some((name, _)) => Err(format!(
                "column {name} is missing: t, process and live_bytes are needed (as JSON lines, \
                 each line begins with a brace)"
            )),
            None => Ok(Self(columns)),
        }
    }

    pub fn row(&self, text: &str, row: &mut Row) -> Result<(), String> {
        row.tenant.clear();
        row.site.clear();
        let mut count = 0;
        each(text, |i, value| {
            count = i + 1;
            let Some(column) = self.0.get(i) else { return Ok(()) };
            match column {
                Column::Process => set(&mut row.process, value),
                Column::Tenant => set(&mut row.tenant, value),
                Column::Site => set(&mut row.site, value),
                Column::T => row.t = number("t", value)?,
                Column::Live => row.live_bytes = number("live_bytes", value)?,
                Column::Load => row.load = number("load", value)?,
                Column::Uptime => row.uptime_s = number("uptime_s", value)?,
                Column::Old => row.old_bytes = number("old_bytes", value)?,
                Column::Allocs => row.allocs = number("allocs", value)?,
                Column::Frees => row.frees = number("frees", value)?,
                Column::Gc => row.gc = flag(value)?,
                Column::Other => {}
            }
            Ok(())
        })?;
        if count == self.0.len() {
            Ok(())
        } else {
            Err(format!("{count} values for {} columns", self.0.len()))
        }
    }
}

fn number(name: &str, text: &str) -> Result<Option<f64>, String> {
    match text.trim() {
        "" => Ok(None),
        t => t.parse().map(Some).map_err(|_| format!("{name} is `{t}`: a plain number is needed")),
    }
}

fn flag(text: &str) -> Result<bool, String> {
    match text.trim() {
        "" | "0" | "false" | "False" => Ok(false),
        "1" | "true" | "True" => Ok(true),
        t => Err(format!("gc is `{t}`: true or false is needed")),
    }
}

/// The values of a row.
fn each(text: &str, mut with: impl FnMut(usize, &str) -> Result<(), String>) -> Result<(), String> {
    let mut rest = text;
    for i in 0.. {
        let (value, next) = value(rest)?;
        with(i, &value)?;
        match next {
            Some(next) => rest = next,
            None => break,
        }
    }
    Ok(())
}

/// The first value, and what follows its comma.
fn value(text: &str) -> Result<(Cow<'_, str>, Option<&str>), String> {
    let Some(quoted) = text.strip_prefix('"') else {
        return Ok(match text.split_once(',') {
            Some((value, next)) => (Cow::Borrowed(value), Some(next)),
            None => (Cow::Borrowed(text), None),
        });
    };
    let mut value = String::new();
    let mut rest = quoted;
    loop {
        let (part, next) = rest.split_once('"').ok_or("a quoted value does not end")?;
        value.push_str(part);
        match next.strip_prefix('"') {
            Some(next) => {
                value.push('"');
                rest = next;
            }
            None => {
                return match next.strip_prefix(',') {
                    Some(next) => Ok((Cow::Owned(value), Some(next))),
                    None if next.is_empty() => Ok((Cow::Owned(value), None)),
                    None => Err("text follows a quoted value".to_owned()),
                };
            }
        }
    }
}
