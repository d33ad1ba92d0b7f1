//! Reading a recording, however it was cut.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{HEADER, MAGIC, MAX_PAYLOAD, OLDEST, VERSION};
use crate::stream::{Item, Session};

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read recording {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{0} is not a recording of claw-ebpf")]
    Magic(PathBuf),
    #[error(
        "{path} is a recording of format version {version}; this claw-ebpf reads versions \
         {OLDEST} to {VERSION}: replay it with the version that made it"
    )]
    Version { path: PathBuf, version: u16 },
    #[error("recording {0} is cut before its first item: nothing can be replayed")]
    Empty(PathBuf),
}

/// How a recording ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Where the first frame that is not whole begins.
    pub offset: u64,
    pub why: &'static str,
}

/// Yields whole items; afterwards [`Reader::tail`] says whether anything was
/// left over.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    offset: u64,
    tail: Option<Tail>,
    ended: bool,
}

impl Reader<BufReader<File>> {
    /// Open a recording and read the session it begins with.
    ///
    /// # Errors
    /// When it cannot be read, is none, or is of another version.
    pub fn open(path: &Path) -> Result<(Session, Self), ReadError> {
        let file =
            File::open(path).map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
        Reader::new(BufReader::new(file), path)
    }
}

impl<R: Read> Reader<R> {
    /// `path` is only for error messages.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn new(mut input: R, path: &Path) -> Result<(Session, Self), ReadError> {
        let path = path.to_owned();
        let mut header = [0; HEADER];
        match fill(&mut input, &mut header) {
            Ok(n) if n >= MAGIC.len() && header[..8] == MAGIC => {
                if n < HEADER {
                    return Err(ReadError::Empty(path));
                }
            }
            Ok(_) => return Err(ReadError::Magic(path)),
            Err(source) => return Err(ReadError::Io { path, source }),
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(ReadError::Version { path, version });
        }
        let mut reader = Self { input, offset: HEADER as u64, tail: None, ended: false };
        match reader.next() {
            Some(Item::Session(session)) => Ok((session, reader)),
            _ => Err(ReadError::Empty(path)),
        }
    }

    /// `Some` when the recording did not end with a whole frame.
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    fn frame(&mut self) -> Result<Option<Item>, &'static str> {
        let mut head = [0; 8];
        match fill(&mut self.input, &mut head) {
            Ok(0) => return Ok(None),
            Ok(8) => {}
            Ok(_) => return Err("a frame is cut"),
            Err(_) => return Err("the file cannot be read on"),
        }
        let [a, b, c, d, e, f, g, h] = head;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length > MAX_PAYLOAD {
            return Err("a frame is longer than any item");
        }
        let mut payload = vec![0; length as usize];
        match fill(&mut self.input, &mut payload) {
            Ok(n) if n == payload.len() => {}
            Ok(_) => return Err("a frame is cut"),
            Err(_) => return Err("the file cannot be read on"),
        }
        if crc32fast::hash(&payload) != u32::from_le_bytes([e, f, g, h]) {
            return Err("a frame's checksum is wrong");
        }
        let item = postcard::from_bytes(&payload).map_err(|_| "a frame holds no known item")?;
        self.offset += 8 + u64::from(length);
        Ok(Some(item))
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        if self.ended {
            return None;
        }
        match self.frame() {
            Ok(Some(item)) => Some(item),
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(why) => {
                self.ended = true;
                self.tail = Some(Tail { offset: self.offset, why });
                None
            }
        }
    }
}

/// Read until `buf` is full or the input ends; gives the bytes read.
fn fill(input: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
