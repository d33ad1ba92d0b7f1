//! A file of lines, for `--stream`.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use super::WatchError;

pub struct LineWriter {
    path: PathBuf,
    out: BufWriter<File>,
    failed: Option<std::io::Error>,
}

impl LineWriter {
    /// # Errors
    /// When the file cannot be written.
    pub fn create(path: &Path) -> Result<Self, WatchError> {
        let file = File::create(path)
            .map_err(|source| WatchError::Stream { path: path.to_owned(), source })?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), out, failed: None })
    }

    /// A full disk ends the stream, not the watch: [`Self::finish`] tells.
    pub fn line(&mut self, line: &str) {
        if self.failed.is_none() {
            self.failed = writeln!(self.out, "{line}").err();
        }
    }

    /// # Errors
    /// In one line, when not all could be written.
    pub fn finish(mut self) -> Result<(), String> {
        let flushed = self.out.flush();
        match self.failed.take().map_or(flushed, Err) {
            Ok(()) => Ok(()),
            Err(e) => Err(format!("the stream {} is cut: {e}", self.path.display())),
        }
    }
}
