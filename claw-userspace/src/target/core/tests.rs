use std::io::Write;

use proptest::prelude::*;

use super::{notes::*, *};

const BASE: u64 = 0x7000_0000;

/// A dump of two pages at [`BASE`], of which the second was not written, a gap
/// and one more page; with the notes of a process of two threads.
fn dump() -> Vec<u8> {
    let mut notes = Vec::new();
    let mut note = |kind: u32, desc: &[u8]| {
        for word in [5, desc.len() as u32, kind] {
            notes.extend(word.to_le_bytes());
        }
        notes.extend(b"CORE\0\0\0\0");
        notes.extend(desc);
        notes.resize(notes.len().next_multiple_of(4), 0);
    };
    let mut psinfo = vec![0; 136];
    psinfo[24..28].copy_from_slice(&812u32.to_le_bytes());
    psinfo[40..43].copy_from_slice(b"svc");
    note(NT_PRPSINFO, &psinfo);
    for tid in [812u32, 813] {
        let mut status = vec![0; 336];
        status[32..36].copy_from_slice(&tid.to_le_bytes());
        status[112 + 16 * 8..112 + 17 * 8].copy_from_slice(&0x40_1000u64.to_le_bytes());
        note(NT_PRSTATUS, &status);
    }
    let auxv: Vec<u8> = [9u64, 0x40_1000, 0, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
    note(NT_AUXV, &auxv);
    let segments: [[u64; 4]; 4] = [
        // type, address, bytes in the file, bytes in memory
        [4, 0, notes.len() as u64, 0],
        [1, BASE + 0x3000, 4096, 4096],
        [1, BASE, 4096, 8192],
        [1, BASE + 0x5000, 0, 4096],
    ];
    let mut bytes = vec![0; 64 + segments.len() * 56];
    let mut put = |at: usize, b: &[u8]| bytes[at..at + b.len()].copy_from_slice(b);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &4u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &(segments.len() as u16).to_le_bytes());
    let mut offset = 64 + segments.len() as u64 * 56;
    for (i, [kind, address, size, memory]) in segments.into_iter().enumerate() {
        let at = 64 + i * 56;
        put(at, &(kind as u32).to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 16, &address.to_le_bytes());
        put(at + 32, &size.to_le_bytes());
        put(at + 40, &memory.to_le_bytes());
        offset += size;
    }
    bytes.extend(&notes);
    bytes.extend([3; 4096]);
    bytes.extend([1; 4096]);
    bytes
}

fn open(bytes: &[u8]) -> Result<Core, CoreError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Core::open(file.path())
}

#[test]
fn notes_and_pages() {
    let core = open(&dump()).unwrap();
    assert_eq!((core.notes.pid, &*core.notes.name), (Some(812), "svc"));
    let threads: Vec<_> = core.notes.threads.iter().map(|t| (t.tid, t.pc)).collect();
    assert_eq!(threads, [(812, 0x40_1000), (813, 0x40_1000)]);
    assert_eq!(core.notes.at_entry, Some(0x40_1000));
    assert_eq!(core.u64_at(BASE + 0xff8).unwrap(), 0x0101_0101_0101_0101);
    assert_eq!(core.u64_at(BASE + 0x3000).unwrap(), 0x0303_0303_0303_0303);
    assert_eq!(core.missing_bytes, 0);
}

#[test]
fn what_was_not_dumped_is_an_error_and_not_zero() {
    let core = open(&dump()).unwrap();
    for address in [BASE - 1, BASE + 0xffc, BASE + 0x1000, BASE + 0x5000, 0, u64::MAX - 3] {
        let e = core.u64_at(address).unwrap_err();
        assert!(e.to_string().contains("does not hold"), "{address:#x}: {e}");
    }
}

#[test]
fn a_cut_dump_is_read_as_far_as_it_goes() {
    let whole = dump();
    let core = open(&whole[..whole.len() - 1000]).unwrap();
    assert_eq!(core.missing_bytes, 1000);
    assert!(core.u64_at(BASE + 0x3000).is_ok() && core.u64_at(BASE).is_ok());
    let e = core.u64_at(BASE + 4096 - 1000).unwrap_err();
    assert!(e.to_string().contains("cut before"), "{e}");
    let e = open(&whole[..100]).unwrap_err().to_string();
    assert!(e.contains("cut within its headers"), "{e}");
}

#[test]
fn what_is_no_core_is_refused() {
    let e = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
    assert!(e(b"hello").contains("no ELF header"));
    let mut program = dump();
    program[16] = 2;
    assert!(e(&program).contains("another kind"));
    program[4] = 1;
    assert!(e(&program).contains("64-bit"));
    let fifo = Core::open(Path::new("/dev/null")).unwrap_err().to_string();
    assert!(fifo.contains("regular file"), "{fifo}");
}

/// More segments than `e_phnum` can say.
#[test]
fn extended_number_of_segments() {
    let mut bytes = dump();
    let sections = bytes.len() as u64;
    bytes[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
    bytes[40..48].copy_from_slice(&sections.to_le_bytes());
    assert!(matches!(open(&bytes), Err(CoreError::Cut { .. })));
    let mut section = [0; 64];
    section[44] = 4;
    bytes.extend(section);
    assert!(open(&bytes).unwrap().u64_at(BASE).is_ok());
    bytes[sections as usize + 47] = 0xff;
    assert!(matches!(open(&bytes), Err(CoreError::Cut { .. })), "absurdly many");
}

proptest! {
    /// Damage anywhere gives an error or bytes, never a panic or a hang.
    #[test]
    fn damaged_dumps(
        damage in prop::collection::vec((0usize..1400, any::<u8>()), 0..24),
        words in prop::collection::vec((0usize..1400, prop::sample::select(vec![0, 1, u64::MAX, 1 << 63, BASE])), 0..4),
        keep in 0usize..10_000,
        reads in prop::collection::vec((any::<u64>(), 0usize..9000), 4),
    ) {
        let mut bytes = dump();
        for (at, b) in damage {
            bytes[at] = b;
        }
        for (at, w) in words {
            bytes[at..at + 8].copy_from_slice(&w.to_le_bytes());
        }
        bytes.truncate(keep);
        if let Ok(core) = open(&bytes) {
            for (address, len) in reads {
                for address in [address, BASE.wrapping_add(address % 0x6000)] {
                    let _ = core.read(address, &mut vec![0; len]);
                }
            }
        }
    }
}
