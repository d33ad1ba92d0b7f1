//! What the Go linker says about a build: version, main module, dependencies,
//! settings. Format: `debug/buildinfo/buildinfo.go`.

use crate::target::elf::Elf;

const MAGIC: &[u8] = b"\xff Go buildinf:";
const HEADER: usize = 32;
/// Inline strings, Go ≥ 1.18.
const FLAG_INLINE: u8 = 2;
/// The magic is aligned to 16; without section headers it is looked for in the
/// first part of each segment that can be written to. A program that reads
/// build information has the magic among its constants.
const SCAN: u64 = 64 << 20;
const MAX_STRING: u64 = 4 << 20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildInfoError {
    #[error("not a Go program: it has no Go build information")]
    NotGo,
    #[error("built by a Go older than 1.18, whose build information is not read")]
    TooOld,
    #[error("its Go build information is damaged")]
    Damaged,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    pub version: String,
    /// Import path of the main package.
    pub path: String,
    /// Module of the main package; empty when built outside a module.
    pub main_module: String,
    pub dependencies: Vec<String>,
    /// `(key, value)`, e.g. `("CGO_ENABLED", "1")`.
    pub settings: Vec<(String, String)>,
}

impl BuildInfo {
    /// # Errors
    /// When there is none, or it contradicts itself.
    pub fn read(elf: &Elf) -> Result<Self, BuildInfoError> {
        let offset = match elf.section(".go.buildinfo") {
            Some(s) if s.size >= HEADER as u64 => s.offset,
            _ => scan(elf).ok_or(BuildInfoError::NotGo)?,
        };
        let mut header = [0; HEADER];
        elf.read_offset(offset, &mut header).map_err(|_| BuildInfoError::Damaged)?;
        if !header.starts_with(MAGIC) {
            return Err(BuildInfoError::NotGo);
        }
        if header[15] & FLAG_INLINE == 0 {
            return Err(BuildInfoError::TooOld);
        }
        let mut at = offset + HEADER as u64;
        let version = string(elf, &mut at).ok_or(BuildInfoError::Damaged)?;
        let module = string(elf, &mut at).ok_or(BuildInfoError::Damaged)?;
        let mut info = Self { version: lossy(&version), ..Self::default() };
        // The module text stands between two 16-byte sentinels.
        if let Some(text) = module.len().checked_sub(16).and_then(|end| module.get(16..end)) {
            info.parse_modules(&lossy(text));
        }
        Ok(info)
    }

    fn parse_modules(&mut self, text: &str) {
        for line in text.lines() {
            let mut fields = line.split('\t');
            let (kind, first) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
            match kind {
                "path" => self.path = first.to_owned(),
                "mod" => self.main_module = first.to_owned(),
                "dep" => self.dependencies.push(first.to_owned()),
                "build" => {
                    if let Some((k, v)) = first.split_once('=') {
                        let v = v.trim_matches('"').to_owned();
                        self.settings.push((k.trim_matches('"').to_owned(), v));
                    }
                }
                _ => {}
            }
        }
    }

    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A length as a varint, then the bytes.
fn string(elf: &Elf, at: &mut u64) -> Option<Vec<u8>> {
    let (mut len, mut shift) = (0u64, 0);
    loop {
        let mut byte = [0];
        elf.read_offset(*at, &mut byte).ok()?;
        *at += 1;
        len |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
        shift += 7;
        if shift > 28 {
            return None;
        }
    }
    if len > MAX_STRING {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    elf.read_offset(*at, &mut bytes).ok()?;
    *at += len;
    Some(bytes)
}

fn scan(elf: &Elf) -> Option<u64> {
    const CHUNK: u64 = 1 << 20;
    for s in elf.segments.iter().filter(|s| s.writable && !s.executable) {
        let end = s.file_size.min(SCAN);
        let mut done = 0;
        while done < end {
            let len = (end - done).min(CHUNK);
            let mut chunk = vec![0; usize::try_from(len).ok()?];
            elf.read_offset(s.offset.checked_add(done)?, &mut chunk).ok()?;
            // The address is aligned, and so is the segment.
            if let Some(i) = chunk.chunks(16).position(|c| c.starts_with(MAGIC)) {
                return Some(s.offset + done + i as u64 * 16);
            }
            done += len;
        }
    }
    None
}
