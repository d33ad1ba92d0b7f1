//! The runtime's own symbol table, which no amount of stripping removes.
//! Format: `runtime/symtab.go`, `cmd/link/internal/ld/pcln.go`, Go 1.18–1.27.
//!
//! It answers for addresses of Go code in any binary, with the names, files
//! and lines that the runtime itself would print. Inlined calls are `inline`.

use memchr::memmem;

/// Go 1.18 and 1.19.
const MAGIC_118: u32 = 0xffff_fff0;
/// Go 1.20 and later.
const MAGIC_120: u32 = 0xffff_fff1;
pub const HEADER: u64 = 72;

const MAX_FUNCTIONS: u64 = 16 << 20;
/// Longest function or file name; generics nest, but not this deep.
const MAX_NAME: usize = 16 << 10;
/// Steps through the pc-value tables for one address, whose inlined calls walk
/// them several times each.
const MAX_STEPS: usize = 1 << 20;

/// Steps that may still be made: a bound for many walks together.
#[derive(Clone, Copy, Debug)]
pub struct Steps(usize);

impl Default for Steps {
    fn default() -> Self {
        Self(MAX_STEPS)
    }
}
/// Largest table that by-name lookup loads.
const MAX_TABLE: u64 = 512 << 20;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PclntabError {
    #[error("no Go symbol table (pclntab) in the binary")]
    Missing,
    #[error("Go symbol table (pclntab) of an unknown format, magic {0:#x}")]
    Magic(u32),
    #[error("the Go symbol table (pclntab) is damaged: {0}")]
    Damaged(&'static str),
}

/// Bytes by position: a part of a file, or a buffer in a test.
pub trait Bytes {
    fn read(&self, at: u64, buf: &mut [u8]) -> Option<()>;
}

impl Bytes for Vec<u8> {
    fn read(&self, at: u64, buf: &mut [u8]) -> Option<()> {
        let at = usize::try_from(at).ok()?;
        buf.copy_from_slice(self.get(at..at.checked_add(buf.len())?)?);
        Some(())
    }
}

/// Address range of a function's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuncRange {
    pub entry: u64,
    pub end: u64,
}

/// One `_func` record.
#[derive(Clone, Copy, Debug)]
pub struct Func {
    /// Where the record lies in the table.
    at: u64,
    pub range: FuncRange,
    name: u32,
    pcsp: u32,
    pcfile: u32,
    pcln: u32,
    npcdata: u32,
    cu: u32,
    /// 0 before Go 1.20.
    pub start_line: u32,
    /// `abi.FuncID`.
    pub id: u8,
    flags: u8,
    nfuncdata: u8,
}

#[derive(Debug)]
pub struct Pclntab<B> {
    bytes: B,
    size: u64,
    text: u64,
    quantum: u64,
    go120: bool,
    nfunc: u64,
    names: u64,
    cutab: u64,
    filetab: u64,
    pctab: u64,
    functab: u64,
}

/// `abi.FuncFlag`: the outermost frame of its stack; writes the stack pointer.
const TOP_FRAME: u8 = 1;
const SP_WRITE: u8 = 2;

impl Func {
    pub fn is_top_frame(&self) -> bool {
        self.flags & TOP_FRAME != 0
    }

    pub fn writes_sp(&self) -> bool {
        self.flags & SP_WRITE != 0
    }
}

impl<B: Bytes> Pclntab<B> {
    /// `text` is the address that entries are relative to.
    ///
    /// # Errors
    /// When the header is not that of a table this code reads.
    pub fn parse(bytes: B, size: u64, text: u64) -> Result<Self, PclntabError> {
        use PclntabError::Damaged;
        let mut h = [0; HEADER as usize];
        bytes.read(0, &mut h).ok_or(Damaged("no header"))?;
        let word =
            |i: usize| h[8 * i..8 * i + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let magic = word(0) as u32;
        if magic != MAGIC_118 && magic != MAGIC_120 {
            return Err(PclntabError::Magic(magic));
        }
        if h[4] != 0 || h[5] != 0 || !matches!(h[6], 1 | 4) || h[7] != 8 {
            return Err(Damaged("header"));
        }
        let nfunc = word(1);
        if nfunc > MAX_FUNCTIONS {
            return Err(Damaged("too many functions"));
        }
        let offsets = [word(4), word(5), word(6), word(7), word(8)];
        if offsets.iter().any(|o| *o > size) {
            return Err(Damaged("a table lies outside"));
        }
        let [names, cutab, filetab, pctab, functab] = offsets;
        if functab.checked_add(nfunc * 8 + 4).is_none_or(|end| end > size) {
            return Err(Damaged("function table is cut"));
        }
        Ok(Self {
            bytes,
            size,
            text,
            quantum: u64::from(h[6]),
            go120: magic == MAGIC_120,
            nfunc,
            names,
            cutab,
            filetab,
            pctab,
            functab,
        })
    }

    pub fn has_start_lines(&self) -> bool {
        self.go120
    }

    fn u32_at(&self, at: u64) -> Option<u32> {
        let mut b = [0; 4];
        self.bytes.read(at, &mut b)?;
        Some(u32::from_le_bytes(b))
    }

    fn c_string(&self, at: u64) -> Option<String> {
        let mut text = Vec::new();
        let mut at = at;
        while text.len() < MAX_NAME {
            let mut chunk = [0; 128];
            let len = self.size.checked_sub(at)?.min(128) as usize;
            let chunk = chunk.get_mut(..len)?;
            self.bytes.read(at, chunk)?;
            if let Some(end) = memchr::memchr(0, chunk) {
                text.extend_from_slice(chunk.get(..end)?);
                return Some(String::from_utf8_lossy(&text).into_owned());
            }
            if len == 0 {
                return None;
            }
            text.extend_from_slice(chunk);
            at = at.checked_add(len as u64)?;
        }
        None
    }

    /// Entry offset of function `i`; of the end of the text for `i == nfunc`.
    fn entry_off(&self, i: u64) -> Option<u64> {
        self.u32_at(self.functab + i * 8).map(u64::from)
    }

    /// Addresses that Go functions cover.
    pub fn text_range(&self) -> Option<FuncRange> {
        Some(FuncRange {
            entry: self.text.checked_add(self.entry_off(0)?)?,
            end: self.text.checked_add(self.entry_off(self.nfunc)?)?,
        })
    }

    /// The function whose code contains `pc`.
    pub fn func(&self, pc: u64) -> Option<Func> {
        let off = pc.checked_sub(self.text)?;
        // The last entry offset that is ≤ off.
        let (mut low, mut high) = (0, self.nfunc);
        while low < high {
            let mid = low + (high - low) / 2;
            if self.entry_off(mid)? <= off { low = mid + 1 } else { high = mid }
        }
        self.func_number(low.checked_sub(1)?).filter(|f| pc < f.range.end)
    }

    fn func_number(&self, i: u64) -> Option<Func> {
        let entry = self.text.checked_add(self.entry_off(i)?)?;
        let end = self.text.checked_add(self.entry_off(i + 1)?)?;
        let at = self.functab.checked_add(u64::from(self.u32_at(self.functab + i * 8 + 4)?))?;
        let mut f = [0; 44];
        let len = if self.go120 { 44 } else { 40 };
        self.bytes.read(at, f.get_mut(..len)?)?;
        let field = |o: usize| u32::from_le_bytes([f[o], f[o + 1], f[o + 2], f[o + 3]]);
        Some(Func {
            at,
            range: FuncRange { entry, end },
            name: field(4),
            pcsp: field(16),
            pcfile: field(20),
            pcln: field(24),
            npcdata: field(28),
            cu: field(32),
            start_line: if self.go120 { field(36) } else { 0 },
            // `funcID, flag, [1]byte, nfuncdata` end the record.
            id: f[len - 4],
            flags: f[len - 3],
            nfuncdata: f[len - 1],
        })
    }

    pub fn name(&self, f: &Func) -> Option<String> {
        self.name_at(f.name)
    }

    pub fn name_at(&self, offset: u32) -> Option<String> {
        self.c_string(self.names.checked_add(u64::from(offset))?)
    }

    /// File and line of an instruction of `f` (not of a return address).
    pub fn file_line(&self, f: &Func, pc: u64, steps: &mut Steps) -> Option<(String, u32)> {
        let line = u32::try_from(self.pc_value(f, f.pcln, pc, steps)?).ok()?;
        let file = u32::try_from(self.pc_value(f, f.pcfile, pc, steps)?).ok()?;
        let index = u64::from(f.cu.checked_add(file)?);
        let offset = self.u32_at(self.cutab.checked_add(index * 4)?)?;
        if offset == u32::MAX {
            return None;
        }
        Some((self.c_string(self.filetab.checked_add(u64::from(offset))?)?, line))
    }

    /// Bytes between the stack pointer at `pc` and the return address.
    pub fn sp_delta(&self, f: &Func, pc: u64) -> Option<u32> {
        self.pc_value(f, f.pcsp, pc, &mut Steps::default()).and_then(|d| u32::try_from(d).ok())
    }

    /// Value of pcdata table `table` at `pc`; `None` when there is none.
    pub fn pcdata(&self, f: &Func, table: u32, pc: u64, steps: &mut Steps) -> Option<i32> {
        if table >= f.npcdata {
            return None;
        }
        let offset = self.u32_at(self.after_func(f) + u64::from(table) * 4)?;
        self.pc_value(f, offset, pc, steps)
    }

    /// Offset of funcdata `index` from `go:func.*`.
    pub fn funcdata(&self, f: &Func, index: u8) -> Option<u32> {
        if index >= f.nfuncdata {
            return None;
        }
        let at = self.after_func(f) + u64::from(f.npcdata) * 4 + u64::from(index) * 4;
        self.u32_at(at).filter(|o| *o != u32::MAX)
    }

    fn after_func(&self, f: &Func) -> u64 {
        f.at + if self.go120 { 44 } else { 40 }
    }

    /// `runtime.pcvalue`: walk the delta-encoded table at `offset` up to `pc`.
    fn pc_value(&self, f: &Func, offset: u32, pc: u64, steps: &mut Steps) -> Option<i32> {
        if offset == 0 {
            return None;
        }
        let mut table = Varints::new(self, self.pctab.checked_add(u64::from(offset))?);
        let (mut at, mut value) = (f.range.entry, -1i32);
        let mut first = true;
        loop {
            steps.0 = steps.0.checked_sub(1)?;
            let delta = table.next()?;
            if delta == 0 && !first {
                return None;
            }
            first = false;
            value = value.wrapping_add((delta >> 1) as i32 ^ -((delta & 1) as i32));
            at = at.checked_add(u64::from(table.next()?).checked_mul(self.quantum)?)?;
            if pc < at {
                return Some(value);
            }
        }
    }

    /// Address ranges of the functions named, in the order asked, in one pass.
    ///
    /// # Errors
    /// When the table cannot be read as a whole.
    pub fn find(&self, wanted: &[&str]) -> Result<Vec<Option<FuncRange>>, PclntabError> {
        use PclntabError::Damaged;
        let load = |from: u64, to: u64| {
            let len = to.checked_sub(from).filter(|l| *l <= MAX_TABLE)?;
            let mut bytes = vec![0; usize::try_from(len).ok()?];
            self.bytes.read(from, &mut bytes)?;
            Some(bytes)
        };
        let names = load(self.names, self.cutab).ok_or(Damaged("names"))?;
        let offsets: Vec<Option<u32>> = wanted
            .iter()
            .map(|name| {
                let needle = [b"\0", name.as_bytes(), b"\0"].concat();
                memmem::find(&names, &needle).and_then(|i| u32::try_from(i + 1).ok())
            })
            .collect();
        let mut found = vec![None; wanted.len()];
        let mut left = offsets.iter().flatten().count();
        let table = load(self.functab, self.size).ok_or(Damaged("functions"))?;
        let field = |at: usize| {
            let b = table.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        };
        for i in 0..self.nfunc {
            if left == 0 {
                break;
            }
            let name = field(i as usize * 8 + 4).and_then(|f| field(f as usize + 4));
            let slot = offsets.iter().position(|o| o.is_some() && *o == name);
            if let Some(slot) = slot.filter(|s| found[*s].is_none()) {
                found[slot] = self.func_number(i).map(|f| f.range);
                left -= 1;
            }
        }
        Ok(found)
    }
}

/// Unsigned varints from a position on, read in small chunks.
struct Varints<'a, B> {
    table: &'a Pclntab<B>,
    next_chunk: u64,
    chunk: [u8; 64],
    len: usize,
    pos: usize,
}

impl<'a, B: Bytes> Varints<'a, B> {
    fn new(table: &'a Pclntab<B>, at: u64) -> Self {
        Self { table, next_chunk: at, chunk: [0; 64], len: 0, pos: 0 }
    }

    fn byte(&mut self) -> Option<u8> {
        if self.pos == self.len {
            let left = self.table.size.checked_sub(self.next_chunk)?;
            self.len = left.min(64) as usize;
            self.pos = 0;
            self.table.bytes.read(self.next_chunk, self.chunk.get_mut(..self.len)?)?;
            self.next_chunk += self.len as u64;
        }
        let b = *self.chunk.get(self.pos).filter(|_| self.pos < self.len)?;
        self.pos += 1;
        Some(b)
    }

    fn next(&mut self) -> Option<u32> {
        let (mut value, mut shift) = (0u32, 0);
        loop {
            let b = self.byte()?;
            value |= u32::from(b & 0x7f).checked_shl(shift)?;
            if b & 0x80 == 0 {
                return Some(value);
            }
            shift += 7;
        }
    }
}
