//! Every offset in the layout table against the DWARF of a binary built with
//! that version.

use std::{borrow::Cow, collections::HashMap, path::Path};

use claw_ebpf::target::go::layout::LAYOUTS;
use gimli::{AttributeValue, DwAt, EndianSlice, LittleEndian};
use object::{Object, ObjectSection};

use crate::common::*;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// `struct.field` → offset, and `const.name` → value, of the runtime.
fn facts(path: &Path) -> HashMap<String, u64> {
    let bytes = std::fs::read(path).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let sections = gimli::DwarfSections::load(|id| -> Result<Cow<[u8]>, gimli::Error> {
        Ok(file
            .section_by_name(id.name())
            .and_then(|s| s.uncompressed_data().ok())
            .unwrap_or(Cow::Borrowed(&[])))
    })
    .unwrap();
    let dwarf = sections.borrow(|s| EndianSlice::new(s, LittleEndian));
    let mut facts = HashMap::new();
    let mut units = dwarf.units();
    while let Some(header) = units.next().unwrap() {
        let unit = dwarf.unit(header).unwrap();
        let mut entries = unit.entries();
        let mut owner: Option<(isize, String)> = None;
        let mut depth = 0;
        while let Some(e) = entries.next_dfs().unwrap() {
            depth = e.depth();
            let name = |at: DwAt| -> Option<String> {
                let value = e.attr_value(at)?;
                let s: Slice = dwarf.attr_string(&unit, value).ok()?;
                Some(s.to_string_lossy().into_owned())
            };
            let number = |at: DwAt| match e.attr_value(at)? {
                AttributeValue::Udata(v) => Some(v),
                AttributeValue::Sdata(v) => u64::try_from(v).ok(),
                AttributeValue::Data1(v) => Some(v.into()),
                AttributeValue::Data2(v) => Some(v.into()),
                AttributeValue::Data4(v) => Some(v.into()),
                AttributeValue::Data8(v) => Some(v),
                _ => None,
            };
            match e.tag() {
                gimli::DW_TAG_structure_type => {
                    owner = name(gimli::DW_AT_name)
                        .filter(|n| n.starts_with("runtime."))
                        .map(|n| (depth, n));
                    if let (Some((_, n)), Some(size)) = (&owner, number(gimli::DW_AT_byte_size)) {
                        facts.insert(format!("sizeof {n}"), size);
                    }
                }
                gimli::DW_TAG_member => {
                    if let Some((at, owner)) = &owner
                        && depth == at + 1
                        && let Some(field) = name(gimli::DW_AT_name)
                    {
                        let offset = number(gimli::DW_AT_data_member_location).unwrap_or(0);
                        facts.insert(format!("{owner}.{field}"), offset);
                    }
                }
                gimli::DW_TAG_constant => {
                    if let (Some(n), Some(v)) =
                        (name(gimli::DW_AT_name), number(gimli::DW_AT_const_value))
                    {
                        facts.insert(n, v);
                    }
                }
                _ => {}
            }
        }
        let _ = depth;
    }
    facts
}

#[test]
fn every_offset_is_what_dwarf_says() {
    for (version, l) in VERSIONS.iter().zip(&LAYOUTS) {
        assert!(version.starts_with(&format!("1.{}", l.minor)));
        let Some(path) = build(version, "patterns", &[]) else { continue };
        let facts = facts(&path);
        let fact = |name: &str| {
            *facts.get(name).unwrap_or_else(|| panic!("Go {version}: DWARF does not say {name}"))
        };
        for (name, offset) in [
            ("runtime.g.m", l.g_m),
            ("runtime.g.goid", l.g_goid),
            ("runtime.g.atomicstatus", l.g_goid - 8),
            ("runtime.g.gopc", l.g_gopc),
            ("runtime.g.startpc", l.g_startpc),
            ("runtime.g.labels", l.g_labels),
            ("runtime.m.curg", l.m_curg),
            ("runtime.g.stack", 0),
            ("runtime.g.sched", 56),
            ("runtime.g.syscallsp", l.g_sched_bp + 8),
            ("runtime.g.syscallpc", l.g_sched_bp + 16),
            ("runtime.g.waitsince", l.g_goid + 16),
            ("runtime.g.waitreason", l.g_goid + 24),
            ("runtime.g.trackingSeq", l.g_tracking_seq),
            ("runtime.g.lockedm", l.g_lockedm),
            ("runtime.gobuf.sp", 0),
            ("runtime.gobuf.pc", 8),
            ("runtime.gobuf.bp", l.g_sched_bp - 56),
            ("runtime.special.kind", l.special_kind),
            ("runtime.specialprofile.b", l.special_bucket),
        ] {
            assert_eq!(u64::from(offset), fact(name), "Go {version}: {name}");
        }
        let parent = facts.get("runtime.g.parentGoid").copied().unwrap_or(0);
        assert_eq!(u64::from(l.g_parent), parent, "Go {version}: parentGoid");
        for (name, offset) in [("allnext", 8), ("typ", 16), ("size", 32), ("nstk", 40)] {
            assert_eq!(fact(&format!("runtime.bucket.{name}")), offset, "Go {version}: {name}");
        }
        assert_eq!(fact("sizeof runtime.bucket"), 48, "Go {version}");
        let words = fact("sizeof runtime.memRecordCycle") / 8;
        assert_eq!(words, u64::from(l.record_words), "Go {version}");
        assert_eq!(fact("sizeof runtime.memRecord"), words * 8 * 4, "Go {version}");
        if let Some(kind) = facts.get("runtime._KindSpecialProfile") {
            assert_eq!(*kind, u64::from(l.kind_profile), "Go {version}");
        }
        assert_eq!(kind_in_source(version), l.kind_profile, "Go {version}");
    }
}

/// `_KindSpecialProfile = 4` in the runtime's own source: DWARF keeps only the
/// constants that a program uses.
fn kind_in_source(version: &str) -> u32 {
    let goroot = go(version).args(["env", "GOROOT"]).output().unwrap();
    let goroot = String::from_utf8(goroot.stdout).unwrap();
    let path = Path::new(goroot.trim()).join("src/runtime/mheap.go");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .find_map(|l| l.trim().strip_prefix("_KindSpecialProfile")?.trim().strip_prefix("= "))
        .and_then(|v| v.trim().parse().ok())
        .unwrap()
}
