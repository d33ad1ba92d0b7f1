//! The notes of a core dump: who it was, its threads, what was mapped.
//! Layouts: `linux/elfcore.h`, `fs/binfmt_elf.c`; x86-64's for what differs.

/// `n_type` of the notes that are read.
pub const NT_PRSTATUS: u32 = 1;
pub const NT_PRPSINFO: u32 = 3;
pub const NT_AUXV: u32 = 6;
pub const NT_FILE: u32 = 0x4649_4c45;

/// Mappings that are kept; the kernel's own default limit is 65530.
const MAX_MAPPINGS: usize = 1 << 20;
/// Entries of the auxiliary vector; Linux has some twenty.
const MAX_AUXV: usize = 256;
/// `AT_PHDR`, `AT_ENTRY` (`elf.h`).
const AT_PHDR: u64 = 3;
const AT_ENTRY: u64 = 9;

/// A thread as it stood when the dump was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thread {
    pub tid: u32,
    pub pc: u64,
    pub sp: u64,
    pub bp: u64,
}

/// A mapped file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub start: u64,
    pub end: u64,
    /// Offset in the file, bytes.
    pub offset: u64,
    pub path: String,
}

/// What all notes say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    pub pid: Option<u32>,
    /// Name of the executable, cut to 15 bytes by the kernel.
    pub name: String,
    pub threads: Vec<Thread>,
    pub mapped: Vec<Mapped>,
    /// Address of the program headers and of the entry point, in memory.
    pub at_phdr: Option<u64>,
    pub at_entry: Option<u64>,
}

fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(b.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(b: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(b.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

impl Notes {
    /// Whether a note of this type is read at all.
    pub fn wants(kind: u32) -> bool {
        matches!(kind, NT_PRSTATUS | NT_PRPSINFO | NT_AUXV | NT_FILE)
    }

    /// Take one note; what is not as it should be is left out.
    pub fn take(&mut self, kind: u32, desc: &[u8]) {
        match kind {
            NT_PRSTATUS => self.threads.extend(thread(desc)),
            NT_PRPSINFO => {
                // state, flag@8, uid@16, gid, pid@24, …, fname@40.
                self.pid = u32_at(desc, 24);
                let name = desc.get(40..56).unwrap_or_default();
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                self.name = String::from_utf8_lossy(name).into_owned();
            }
            NT_AUXV => {
                for entry in desc.chunks_exact(16).take(MAX_AUXV) {
                    match u64_at(entry, 0) {
                        Some(AT_PHDR) => self.at_phdr = u64_at(entry, 8),
                        Some(AT_ENTRY) => self.at_entry = u64_at(entry, 8),
                        _ => {}
                    }
                }
            }
            NT_FILE => self.mapped = mapped(desc).unwrap_or_default(),
            _ => {}
        }
    }

    /// The mapped file at an address.
    pub fn mapped_at(&self, address: u64) -> Option<&Mapped> {
        self.mapped.iter().find(|m| (m.start..m.end).contains(&address))
    }
}

/// `elf_prstatus`: pid@32, registers@112 in the order of `user_regs_struct`.
fn thread(desc: &[u8]) -> Option<Thread> {
    let register = |i: usize| u64_at(desc, 112 + i * 8);
    Some(Thread { tid: u32_at(desc, 32)?, bp: register(4)?, pc: register(16)?, sp: register(19)? })
}

/// count, page size, then start, end and offset in pages of each, then the
/// names.
fn mapped(desc: &[u8]) -> Option<Vec<Mapped>> {
    let count = usize::try_from(u64_at(desc, 0)?).ok().filter(|c| *c <= MAX_MAPPINGS)?;
    let page = u64_at(desc, 8)?;
    let names_at = count.checked_mul(24)?.checked_add(16)?;
    let mut names = desc.get(names_at..)?.split(|b| *b == 0);
    let mut found = Vec::new();
    for i in 0..count {
        let word = |n: usize| u64_at(desc, 16 + i * 24 + n * 8);
        let path = String::from_utf8_lossy(names.next()?).into_owned();
        let path = path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned);
        let offset = word(2)?.checked_mul(page)?;
        found.push(Mapped { start: word(0)?, end: word(1)?, offset, path });
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_with_names() {
        let mut d = Vec::new();
        for w in [2u64, 4096, 0x40_0000, 0x50_0000, 0, 0x50_0000, 0x60_0000, 256] {
            d.extend(w.to_le_bytes());
        }
        d.extend(b"/srv/app (deleted)\0/srv/app\0");
        let mut n = Notes::default();
        n.take(NT_FILE, &d);
        assert_eq!(n.mapped.len(), 2);
        assert_eq!(
            n.mapped_at(0x50_0001).map(|m| (m.offset, &*m.path)),
            Some((1 << 20, "/srv/app"))
        );
        assert_eq!(n.mapped[0].path, "/srv/app");
        d[0] = 200;
        n.take(NT_FILE, &d);
        assert!(n.mapped.is_empty(), "more mappings than the note has room for");
    }
}
