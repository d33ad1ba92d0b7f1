//! The symbolizer of one process, and the binaries that processes share.

use std::{path::Path, sync::Arc};

use rustc_hash::FxHashMap;

use super::{Frame, native::native_frames, stack};
use crate::target::go::binary::{GoBinary, GoBinaryError};

/// Addresses of one process whose names are kept.
const MAX_CACHED: usize = 1 << 16;
/// Binaries kept open.
const MAX_BINARIES: usize = 64;

/// Go binaries by build id, so that a restarted or replicated service is read
/// once.
#[derive(Debug, Default)]
pub struct BinaryCache {
    binaries: Vec<Arc<GoBinary>>,
}

impl BinaryCache {
    /// # Errors
    /// When the file is unreadable, not Go, or damaged.
    pub fn open(&mut self, path: &Path) -> Result<Arc<GoBinary>, GoBinaryError> {
        let build_id = crate::target::elf::Elf::open(path)?.build_id;
        let known = self
            .binaries
            .iter()
            .find(|b| build_id.is_some() && b.elf().build_id == build_id)
            .map(Arc::clone);
        if let Some(binary) = known {
            return Ok(binary);
        }
        let binary = Arc::new(GoBinary::open(path)?);
        if self.binaries.len() >= MAX_BINARIES {
            self.binaries.remove(0);
        }
        self.binaries.push(Arc::clone(&binary));
        Ok(binary)
    }
}

#[derive(Debug)]
pub struct Symbolizer {
    pid: u32,
    binary: Arc<GoBinary>,
    bias: u64,
    native: Option<blazesym::symbolize::Symbolizer>,
    cache: FxHashMap<u64, Vec<Frame>>,
}

impl Symbolizer {
    pub fn binary(&self) -> &GoBinary {
        &self.binary
    }

    pub fn shared(&self) -> Arc<GoBinary> {
        Arc::clone(&self.binary)
    }

    /// `bias` is what was added to the file's addresses when it was loaded.
    pub fn new(pid: u32, binary: Arc<GoBinary>, bias: u64) -> Self {
        Self { pid, binary, bias, native: None, cache: FxHashMap::default() }
    }

    /// Logical frames of a return address, innermost first; empty when nothing
    /// is known of it.
    pub fn frames(&mut self, return_address: u64) -> Vec<Frame> {
        if let Some(frames) = self.cache.get(&return_address) {
            return frames.clone();
        }
        // The call is before the place it returns to.
        let pc = return_address.wrapping_sub(1);
        let vaddr = pc.wrapping_sub(self.bias);
        let frames = if self.binary.is_go_code(vaddr) {
            stack::go_frames(&self.binary, vaddr)
        } else {
            self.native(pc)
        };
        if self.cache.len() < MAX_CACHED {
            self.cache.insert(return_address, frames.clone());
        }
        frames
    }

    fn native(&mut self, pc: u64) -> Vec<Frame> {
        let symbolizer = self.native.get_or_insert_with(blazesym::symbolize::Symbolizer::new);
        native_frames(symbolizer, self.pid, pc)
    }
}
