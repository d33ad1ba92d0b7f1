//! Our frames for an address are those of Go's own profile, in every version
//! and build.

use std::{collections::BTreeMap, process::Command};

use claw_ebpf::target::go::binary::GoBinary;

use crate::{
    common::*,
    profiles::{Frame, Profile},
};

/// Address in the file → frames, innermost first.
type Frames = BTreeMap<u64, Vec<Frame>>;

/// The program writes its own heap and goroutine profile, symbolized by the
/// runtime.
fn profile(program: &std::path::Path) -> Frames {
    let out = Command::new(program).output().unwrap();
    assert!(out.status.success());
    let p = Profile::unpack(&out.stdout);
    let mapping = p.raw.mapping.first().unwrap();
    let of_program = p.raw.location.iter().filter(|l| l.mapping_id == mapping.id);
    of_program
        .map(|l| {
            let (address, frames) = p.places[&l.id].clone();
            (address - mapping.memory_start + mapping.file_offset, frames)
        })
        .collect()
}

#[test]
fn frames_are_those_of_gos_own_profile() {
    for version in VERSIONS {
        for flags in [
            &[][..],
            &["-ldflags=-s -w"],
            &["-buildmode=pie"],
            &["-buildmode=pie", "-ldflags=-s -w"],
        ] {
            let Some(program) = build(version, "symbols", flags) else { continue };
            let binary = GoBinary::open(&program).unwrap();
            let expected = profile(&program);
            assert!(expected.len() > 10, "Go {version} {flags:?}: {}", expected.len());
            let mut inlined = 0;
            for (offset, frames) in expected {
                let segment = binary
                    .elf()
                    .segments
                    .iter()
                    .find(|s| (s.offset..s.offset + s.file_size).contains(&offset))
                    .unwrap();
                let vaddr = offset - segment.offset + segment.vaddr;
                // pprof stores the address of the call, which it made by
                // subtracting one from the return address.
                let ours: Vec<(String, String, i64)> = binary
                    .calls(vaddr)
                    .into_iter()
                    .map(|c| (c.function, c.file, i64::from(c.line)))
                    .collect();
                inlined += usize::from(frames.len() > 1);
                assert_eq!(ours, frames, "Go {version} {flags:?} at {vaddr:#x}");
            }
            assert!(inlined > 0, "Go {version} {flags:?}: nothing was inlined");
        }
    }
}

/// Where the file has symbols and DWARF, blazesym gives the same functions and
/// lines: reading the runtime's own table loses nothing.
#[test]
fn blazesym_agrees() {
    use blazesym::symbolize::{Input, Symbolized, Symbolizer, source};
    let Some(program) = build("1.26.6", "symbols", &[]) else { return };
    let binary = GoBinary::open(&program).unwrap();
    let symbolizer = Symbolizer::new();
    let elf = source::Source::Elf(source::Elf::new(&program));
    let ranges = binary.find(&["main.main", "main.work", "encoding/json.Marshal"]).unwrap();
    let (mut compared, mut unknown) = (0, 0);
    for range in ranges.into_iter().flatten() {
        for pc in (range.entry..range.end).step_by(7) {
            let ours = binary.calls(pc);
            let Ok(Symbolized::Sym(sym)) = symbolizer.symbolize_single(&elf, Input::VirtOffset(pc))
            else {
                // Padding behind a function belongs to it only in pclntab.
                unknown += 1;
                continue;
            };
            assert_eq!(sym.name, ours.last().unwrap().function, "{pc:#x}");
            let mut names: Vec<&str> = sym.inlined.iter().map(|i| &*i.name).collect();
            names.reverse();
            names.push(&sym.name);
            let our_names: Vec<&str> = ours.iter().map(|c| c.function.as_str()).collect();
            if names == our_names {
                compared += 1;
                let line = sym.code_info.as_ref().and_then(|c| c.line);
                let outer = ours.last().map(|c| c.line);
                assert_eq!(line, outer, "{pc:#x} {our_names:?}");
            }
        }
    }
    assert!(compared > 100 && unknown * 20 < compared, "{compared} compared, {unknown} not");
}
