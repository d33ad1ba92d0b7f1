//! `--out PATH`: the extension decides the format.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::ValueEnum;

use super::{folded, json, pprof, text};
use crate::engine::Engine;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON document
    Json,
    /// One JSON object per row
    Jsonl,
    /// Collapsed stacks for flame graphs
    Folded,
    /// For `go tool pprof`
    Pprof,
}

const EXTENSIONS: [(&str, Format); 5] = [
    (".json", Format::Json),
    (".jsonl", Format::Jsonl),
    (".txt", Format::Text),
    (".pb.gz", Format::Pprof),
    (".folded", Format::Folded),
];

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error(
        "--out {0}: unknown extension; known are .json, .jsonl, .txt, .pb.gz (pprof) and .folded"
    )]
    Extension(PathBuf),
    #[error("--out {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A file to write at the end.
#[derive(Clone, Debug)]
pub struct Output {
    path: PathBuf,
    pub format: Format,
}

impl Output {
    /// Checked before the watch begins, so that nothing is lost at its end.
    ///
    /// # Errors
    /// When the extension is not known or the folder does not exist.
    pub fn new(path: &Path) -> Result<Self, OutputError> {
        let name = path.to_string_lossy();
        let format = EXTENSIONS
            .iter()
            .find(|(e, _)| name.ends_with(e))
            .map(|(_, f)| *f)
            .ok_or_else(|| OutputError::Extension(path.to_owned()))?;
        let folder = match path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        match fs::metadata(folder) {
            Ok(_) => Ok(Self { path: path.to_owned(), format }),
            Err(source) => Err(OutputError::Io { path: folder.to_owned(), source }),
        }
    }

    /// Write the report of a watch.
    ///
    /// # Errors
    /// When the disk is full or the folder not writable.
    pub fn write(&self, engine: &Engine) -> Result<(), OutputError> {
        let report = engine.report();
        let document = |r: serde_json::Result<String>| {
            r.map(String::into_bytes).map_err(|e| self.error(io::Error::other(e)))
        };
        let content = match self.format {
            Format::Json => document(json::document(&report))?,
            Format::Jsonl => {
                document(json::line(&super::model::JsonLine::Report(Box::new(report))))?
            }
            Format::Text => text::render(&report, text::Style::Plain).into_bytes(),
            Format::Pprof => {
                let s = engine.session();
                let start = i64::try_from(s.wall_ns).unwrap_or(0);
                pprof::encode(&pprof::samples(engine), start, (report.duration_s * 1e9) as i64)
            }
            Format::Folded => folded::render(&pprof::samples(engine)).into_bytes(),
        };
        self.save(&content)
    }

    /// Write `content` as the whole file or leave the old one as it was.
    ///
    /// # Errors
    /// As [`Output::write`].
    pub fn save(&self, content: &[u8]) -> Result<(), OutputError> {
        let mut partial = self.path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        fs::write(&partial, content).and_then(|()| fs::rename(&partial, &self.path)).map_err(|e| {
            let _ = fs::remove_file(&partial);
            self.error(e)
        })
    }

    fn error(&self, source: io::Error) -> OutputError {
        OutputError::Io { path: self.path.clone(), source }
    }
}
