//! Series from elsewhere: JSON lines or CSV, read row by row, wrong rows
//! named by their line.
//!
//! What is an error: a missing column, something that is not a number, NaN,
//! infinite or negative values, times of one series that go back or are not
//! seconds, sizes of one series that change by a factor of 100 000 from one
//! row to the next (mixed units). What is not: repeated times (the lowest
//! value counts), gaps, any order between series, empty lines, rows without
//! `live_bytes` (counted as missing).

mod csv;
mod json;

use std::{
    io::{self, BufRead},
    path::{Path, PathBuf},
};

use crate::detect::{
    fleet::Fleet,
    series::{Point, Subject},
};

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}, line {line}: {what}")]
    Row { path: PathBuf, line: u64, what: String },
    #[error("{0} holds no series: the first row with values is missing")]
    Empty(PathBuf),
}

/// One row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    pub process: String,
    pub tenant: String,
    pub site: String,
    pub t: Option<f64>,
    pub live_bytes: Option<f64>,
    pub load: Option<f64>,
    pub uptime_s: Option<f64>,
    pub old_bytes: Option<f64>,
    pub allocs: Option<f64>,
    pub frees: Option<f64>,
    pub gc: bool,
}

/// What was read besides the series.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    pub rows: u64,
    /// Rows without a value.
    pub missing: u64,
}

/// Longest line that is read.
const LONGEST: u64 = 1 << 20;
/// Largest size that is taken for one.
const MOST_BYTES: f64 = 1e18;
/// A time beyond this is not in seconds: it would be in the year 5000.
const MOST_S: f64 = 1e11;
/// A change of size that no process makes between two rows.
const MIXED: f64 = 1e5;

/// Read `path` (`-`: standard input), a row at a time, in the file's order.
///
/// # Errors
/// At the first row that is wrong.
pub fn read(
    path: &Path,
    each: &mut dyn FnMut(&Subject, &Point) -> Result<(), String>,
) -> Result<Read, InputError> {
    let fail = |source| InputError::Io { path: path.to_owned(), source };
    let file: Box<dyn io::Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(fail)?)
    };
    let mut lines = Lines { from: io::BufReader::with_capacity(1 << 18, file), number: 0 };
    let mut line = String::new();
    let mut read = Read::default();
    let mut header: Option<csv::Header> = None;
    let mut is_json = None;
    let mut subject =
        Subject { process: String::new(), tenant: String::new(), site: String::new() };
    let mut row = Row::default();
    while lines.next(&mut line).map_err(fail)? {
        let number = lines.number;
        let wrong = |what| InputError::Row { path: path.to_owned(), line: number, what };
        let text = line.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            continue;
        }
        if *is_json.get_or_insert(text.starts_with('{')) {
            json::row(text, &mut row).map_err(wrong)?;
        } else if let Some(header) = &header {
            header.row(text, &mut row).map_err(wrong)?;
        } else {
            header = Some(csv::Header::new(text).map_err(wrong)?);
            continue;
        }
        read.rows += 1;
        let Some(point) = point(&row).map_err(wrong)? else {
            read.missing += 1;
            continue;
        };
        set(&mut subject.process, &row.process);
        set(&mut subject.tenant, if row.tenant.is_empty() { "-" } else { &row.tenant });
        set(&mut subject.site, &row.site);
        each(&subject, &point).map_err(wrong)?;
    }
    if read.rows == read.missing { Err(InputError::Empty(path.to_owned())) } else { Ok(read) }
}

/// Read into a fleet, one series' times only forward.
///
/// # Errors
/// At the first row that is wrong.
pub fn read_fleet(path: &Path, fleet: &mut Fleet) -> Result<Read, InputError> {
    let mut recent: Option<(Subject, u32)> = None;
    read(path, &mut |subject, point| {
        let id = match &recent {
            Some((s, id)) if s == subject => *id,
            _ => {
                let id = fleet.id(subject);
                recent = Some((subject.clone(), id));
                id
            }
        };
        follows(subject, fleet.last(id), point)?;
        fleet.put(id, point);
        Ok(())
    })
}

/// Whether a row may follow the one before it in its series.
pub fn follows(subject: &Subject, last: Option<(f64, f64)>, p: &Point) -> Result<(), String> {
    let Some((t, live)) = last else { return Ok(()) };
    if p.t < t {
        return Err(format!(
            "time goes back from {t} to {} in the series of process {}: sort its rows by t",
            p.t, subject.process
        ));
    }
    let ratio = if live > 0.0 && p.live > 0.0 { (p.live / live).max(live / p.live) } else { 1.0 };
    if subject.site.is_empty() && ratio >= MIXED {
        return Err(format!(
            "live_bytes of process {} changes from {live} to {} at once, which looks like mixed \
             units: give bytes throughout",
            subject.process, p.live
        ));
    }
    Ok(())
}

fn set(to: &mut String, from: &str) {
    if to != from {
        to.clear();
        to.push_str(from);
    }
}

/// `None`: there is no value in this row.
fn point(row: &Row) -> Result<Option<Point>, String> {
    if row.process.is_empty() {
        return Err("process is missing".to_owned());
    }
    let t = row.t.ok_or("t is missing")?;
    if !t.is_finite() {
        return Err(format!("t is {t}: a number of seconds is needed"));
    }
    if t.abs() > MOST_S {
        return Err(format!("t is {t}, which looks like milliseconds or less: give seconds"));
    }
    let value = |name: &str, v: Option<f64>, most: f64| match v {
        None => Ok(f64::NAN),
        Some(v) if (0.0..=most).contains(&v) => Ok(v),
        Some(v) => Err(format!("{name} is {v}: a number from 0 to {most:e} is needed")),
    };
    let live = value("live_bytes", row.live_bytes, MOST_BYTES)?;
    let p = Point {
        t,
        live,
        load: value("load", row.load, MOST_BYTES)?,
        uptime: value("uptime_s", row.uptime_s, MOST_S)?,
        old: value("old_bytes", row.old_bytes, MOST_BYTES)?,
        allocs: value("allocs", row.allocs, MOST_BYTES)?,
        frees: value("frees", row.frees, MOST_BYTES)?,
        gc: row.gc,
    };
    if p.frees > p.allocs {
        return Err(format!(
            "frees is {} and allocs is {}: counts since the process began are needed",
            p.frees, p.allocs
        ));
    }
    Ok(row.live_bytes.is_some().then_some(p))
}

/// Lines of bounded length, of bytes that need not be UTF-8.
struct Lines<R> {
    from: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self, line: &mut String) -> io::Result<bool> {
        use io::Read;
        let mut bytes = std::mem::take(line).into_bytes();
        bytes.clear();
        let n = self.from.by_ref().take(LONGEST).read_until(b'\n', &mut bytes)?;
        self.number += 1;
        if n as u64 == LONGEST {
            let what = format!("line {} is longer than {LONGEST} bytes", self.number);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        *line = String::from_utf8(bytes)
            .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        Ok(n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, text).unwrap();
        match read_fleet(&path, &mut Fleet::default()) {
            Ok(r) => format!("{r:?}"),
            Err(e) => e.to_string().replace(&*path.to_string_lossy(), "FILE"),
        }
    }

    #[test]
    fn wrong_rows_are_named_by_line() {
        let head = "t,process,live_bytes\n";
        for (text, expected) in [
            ("t,process\n1,a\n", "line 1: column live_bytes is missing"),
            ("{\"t\":1,\"process\":\"a\",\"live_bytes\":\"12MiB\"}\n", "line 1:"),
            ("{\"process\":\"a\",\"live_bytes\":1}\n", "line 1: t is missing"),
            ("{\"t\":1,\"live_bytes\":1}\n", "line 1: process is missing"),
            (&format!("{head}1,a,5\n\n0,a,5\n"), "line 4: time goes back from 1 to 0"),
            (&format!("{head}1,a,-5\n"), "line 2: live_bytes is -5"),
            (&format!("{head}1,a,NaN\n"), "line 2: live_bytes is NaN"),
            (&format!("{head}1,a,12MB\n"), "line 2: live_bytes is `12MB`"),
            (&format!("{head}1,a\n"), "line 2: 2 values for 3 columns"),
            (&format!("{head}1764021600000,a,5\n"), "looks like milliseconds"),
            (&format!("{head}1,a,200000000\n2,a,200\n"), "line 3: live_bytes of process a"),
            (&format!("{head}1,\"a,5\n"), "line 2: a quoted value does not end"),
            (
                "{\"t\":1,\"process\":\"a\",\"live_bytes\":1,\"allocs\":1,\"frees\":2}\n",
                "line 1: frees is 2 and allocs is 1",
            ),
            ("", "holds no series"),
            (head, "holds no series"),
        ] {
            let got = error(text);
            assert!(got.contains(expected), "{text:?} gave {got}");
        }
    }

    #[test]
    fn what_is_no_error() {
        let text = "\u{feff}live_bytes,t,process,comment\n5,1,\"a, \"\"b\"\"\",x\n4,1,z,\n,2,z,\n";
        assert_eq!(error(text), "Read { rows: 3, missing: 1 }");
        let json = "{\"t\":1,\"process\":\"a\",\"live_bytes\":null}\n\n{\"t\":2.5,\"process\":\"a\",\"live_bytes\":1e9,\"gc\":true,\"load\":null,\"more\":[1]}\n";
        assert_eq!(error(json), "Read { rows: 2, missing: 1 }");
    }
}
