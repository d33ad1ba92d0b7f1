//! From series of a healthy run to a baseline.

use std::{io::Read, path::Path, sync::Arc};

use rustc_hash::FxHashMap;

use super::{Baseline, BaselineError};
use crate::{
    detect::{
        fleet::Profiles,
        series::{Point, Subject},
        trend::Learner,
    },
    engine::Engine,
    input,
    ledger::Bounds,
    record::{ReadError, Reader},
    stream::{Item, Session},
};

#[derive(Debug, Default)]
struct Learners(FxHashMap<Subject, (Learner, Option<(f64, f64)>)>);

impl Learners {
    fn first(&mut self, subject: &Subject, point: &Point) -> Result<(), String> {
        if !self.0.contains_key(subject) {
            self.0.insert(subject.clone(), Default::default());
        }
        let Some((learner, last)) = self.0.get_mut(subject) else { return Ok(()) };
        input::follows(subject, last.replace((point.t, point.live)), point)?;
        learner.put(point);
        Ok(())
    }

    fn second(&mut self, subject: &Subject, point: &Point) {
        if let Some((learner, _)) = self.0.get_mut(subject) {
            learner.again(point);
        }
    }

    fn finish(self) -> Profiles {
        self.0.into_iter().map(|(s, (l, _))| (s, Arc::new(l.finish()))).collect()
    }
}

/// Profiles from a file of series.
///
/// # Errors
/// When a row is wrong.
pub fn learn(path: &Path) -> Result<Profiles, BaselineError> {
    let mut learners = Learners::default();
    input::read(path, &mut |s, p| learners.first(s, p))?;
    input::read(path, &mut |s, p| {
        learners.second(s, p);
        Ok(())
    })?;
    Ok(learners.finish())
}

/// `--baseline`: a named one, a baseline's file, or series of a healthy run.
///
/// # Errors
/// When it is missing or neither.
pub fn load_or_learn(name: &str) -> Result<Profiles, BaselineError> {
    let path = Path::new(name);
    if is_series(path) { learn(path) } else { Ok(Baseline::load(name)?.profiles()) }
}

/// Whether a file is there that is no baseline: series, then.
pub fn is_series(path: &Path) -> bool {
    path.is_file() && !looks_like_baseline(path)
}

/// From series or from a recording.
///
/// # Errors
/// When it is neither, or wrong.
pub fn learn_any(path: &Path) -> Result<Profiles, BaselineError> {
    match Reader::open(path) {
        Ok((session, reader)) => Ok(recorded(session, reader)),
        Err(ReadError::Magic(_)) => learn(path),
        Err(e) => Err(BaselineError::Recording(e.to_string())),
    }
}

/// The in-use series of a recording, an interval each.
fn recorded(session: Session, reader: impl Iterator<Item = Item>) -> Profiles {
    let mut engine = Engine::new(session, Bounds::default());
    let mut rows: Vec<(Subject, Point)> = Vec::new();
    for item in reader {
        if engine.apply(item).tick {
            rows.extend(engine.series());
        }
    }
    let mut learners = Learners::default();
    // Rows of the engine follow each other in time and have sizes.
    for (s, p) in &rows {
        let _ = learners.first(s, p);
    }
    rows.iter().for_each(|(s, p)| learners.second(s, p));
    learners.finish()
}

/// A document of one object over several lines, or one with a schema.
fn looks_like_baseline(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = std::fs::File::open(path).and_then(|f| f.take(256).read_to_end(&mut start));
    let text = String::from_utf8_lossy(&start);
    read.is_ok()
        && text.trim_start().starts_with('{')
        && (text.contains("\"schema\"") || text.trim_start().starts_with("{\n"))
}
