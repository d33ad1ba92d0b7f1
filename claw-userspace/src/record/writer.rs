//! Writing a recording.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use super::{HEADER, MAGIC, VERSION};
use crate::stream::Item;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot record to {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("cannot record to {path}: {source}")]
    Encode { path: PathBuf, source: postcard::Error },
}

#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
    payload: Vec<u8>,
}

impl Writer {
    /// Create or replace the file.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(path: &Path) -> Result<Self, WriteError> {
        let file = File::create(path).map_err(|source| error(path, source))?;
        let mut w = Self { path: path.to_owned(), out: BufWriter::new(file), payload: Vec::new() };
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        w.out.write_all(&header).map_err(|source| error(path, source))?;
        Ok(w)
    }

    /// # Errors
    /// When the disk is full or gone. What was written before stays readable.
    pub fn write(&mut self, item: &Item) -> Result<(), WriteError> {
        self.payload.clear();
        let payload = postcard::to_extend(item, std::mem::take(&mut self.payload))
            .map_err(|source| WriteError::Encode { path: self.path.clone(), source })?;
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let frame = [length.to_le_bytes(), crc32fast::hash(&payload).to_le_bytes()].concat();
        let written = self.out.write_all(&frame).and_then(|()| self.out.write_all(&payload));
        self.payload = payload;
        written.map_err(|source| error(&self.path, source))?;
        // An interval is the most that a crash may cost.
        if matches!(item, Item::Tick { .. } | Item::End { .. }) {
            self.out.flush().map_err(|source| error(&self.path, source))?;
        }
        Ok(())
    }
}

fn error(path: &Path, source: io::Error) -> WriteError {
    WriteError::Io { path: path.to_owned(), source }
}
