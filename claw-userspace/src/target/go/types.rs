//! Names of allocated types, from the type descriptors in the binary's file:
//! of a descriptor's address as the allocator gets it, or of the constant that
//! a call site loads.
//!
//! Everything is checked against the range in which the linker puts
//! descriptors: the address comes from a register of a running process.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, Register};

use super::binary::GoBinary;

/// `abi.Type`: TFlag@20, Str@40 (Go 1.17–1.27).
const TFLAG: u64 = 20;
const STR: u64 = 40;
/// Bytes of a descriptor's common part.
const SIZE: u64 = 48;
/// The stored name has a `*` in front that is not part of it.
const EXTRA_STAR: u8 = 1 << 1;
/// Longest name that is kept; generated types have longer ones.
const MAX_NAME: usize = 256;
/// Instructions before a call among which its type argument is loaded.
const NEAR: usize = 16;

/// Name of the type whose descriptor is at `address` in the file; `None` when
/// no descriptor can be there (types made at run time lie on the heap).
pub fn name(binary: &GoBinary, address: u64) -> Option<String> {
    let [start, end] = binary.types()?;
    if address < start || address.checked_add(SIZE)? > end || !address.is_multiple_of(8) {
        return None;
    }
    let mut head = [0; SIZE as usize];
    binary.elf().read(address, &mut head).ok()?;
    let offset = u32::from_le_bytes(head.get(STR as usize..)?.get(..4)?.try_into().ok()?);
    let at = start.checked_add(u64::from(offset)).filter(|a| *a < end)?;
    let mut bytes = vec![0; usize::try_from(end - at).ok()?.min(MAX_NAME + 8)];
    binary.elf().read(at, &mut bytes).ok()?;
    parse_name(&bytes, head[TFLAG as usize] & EXTRA_STAR != 0)
}

/// `abi.Name`: a byte of flags, the length as a varint, the text.
fn parse_name(bytes: &[u8], star: bool) -> Option<String> {
    let (mut len, mut used) = (0usize, 1);
    for shift in [0, 7, 14] {
        let b = *bytes.get(used)?;
        used += 1;
        len |= usize::from(b & 0x7f) << shift;
        if b & 0x80 == 0 {
            let text = bytes.get(used..)?;
            let kept = text.get(..len.min(MAX_NAME))?;
            let kept = if star { kept.strip_prefix(b"*")? } else { kept };
            let cut = if len > MAX_NAME { "…" } else { "" };
            let name = String::from_utf8_lossy(kept).into_owned() + cut;
            return (!kept.is_empty()).then_some(name);
        }
    }
    None
}

/// The type that the call which returns to `return_address` is given: the last
/// constant address of a descriptor that is loaded before it.
pub fn of_call(binary: &GoBinary, return_address: u64) -> Option<u64> {
    let [start, end] = binary.types()?;
    let (_, range) = binary.function_at(return_address.checked_sub(1)?)?;
    let code = binary.code(range).ok()?;
    last_address(&code, range.entry, return_address, start..end)
}

fn last_address(
    code: &[u8],
    entry: u64,
    return_address: u64,
    types: std::ops::Range<u64>,
) -> Option<u64> {
    let mut found = None;
    for (n, i) in Decoder::with_ip(64, code, entry, DecoderOptions::NONE).iter().enumerate() {
        if i.next_ip() >= return_address {
            break;
        }
        if i.mnemonic() == Mnemonic::Lea
            && i.memory_base() == Register::RIP
            && types.contains(&i.ip_rel_memory_address())
        {
            found = Some((n, i.ip_rel_memory_address()));
        } else if i.mnemonic() == Mnemonic::Call {
            // What an earlier call was given is not this one's.
            found = None;
        }
        found = found.filter(|(at, _)| n - at < NEAR);
    }
    found.map(|(_, address)| address)
}

/// What a runtime function on the way to the allocator says of an object for
/// which it gave no type: it holds no pointers.
pub fn of_runtime(function: &str) -> Option<Untyped> {
    Some(match function.strip_prefix("runtime.")? {
        "rawstring" | "rawstringtmp" | "concatstrings" | "concatstring2" | "concatstring3"
        | "concatstring4" | "concatstring5" | "slicebytetostring" | "slicerunetostring"
        | "intstring" | "gostring" | "convTstring" => Untyped::Named("string"),
        "stringtoslicebyte" | "rawbyteslice" => Untyped::Named("[]uint8"),
        "stringtoslicerune" | "rawruneslice" => Untyped::Named("[]int32"),
        "growslice" | "makeslice" | "makeslicecopy" => Untyped::SliceOf,
        "makechan" => Untyped::Same,
        _ => return None,
    })
}

/// The function that the call which returns to `return_address` calls; `None`
/// when its address is not in the instruction.
fn callee(binary: &GoBinary, return_address: u64) -> Option<String> {
    const CALL: u8 = 0xe8;
    let mut code = [0; 5];
    binary.elf().read(return_address.checked_sub(5)?, &mut code).ok()?;
    let [CALL, a, b, c, d] = code else { return None };
    let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
    Some(binary.function_at(return_address.wrapping_add_signed(distance))?.0)
}

/// The type of what the call that returns to `return_address` in the file
/// allocates; `functions` are the runtime's own below it, leaf first. `None`
/// when the code does not say.
pub fn of_allocation(binary: &GoBinary, return_address: u64, functions: &[&str]) -> Option<String> {
    let called = || name(binary, of_call(binary, return_address)?);
    // Up to 1.25 the profile leaves the allocator's functions out.
    let callee = callee(binary, return_address);
    match functions.iter().copied().chain(callee.as_deref()).find_map(of_runtime) {
        Some(Untyped::Named(name)) => Some(name.to_owned()),
        Some(Untyped::SliceOf) => Some(format!("[]{}", called()?)),
        Some(Untyped::Same) | None => called(),
    }
}

/// How to name an object whose type the allocator was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untyped {
    Named(&'static str),
    /// A slice of the type at the call site.
    SliceOf,
    /// The type at the call site.
    Same,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_bytes() {
        assert_eq!(parse_name(b"\x01\x04*int", true).as_deref(), Some("int"));
        assert_eq!(parse_name(b"\x01\x03int", false).as_deref(), Some("int"));
        let long = [&[0, 0x80 | 44, 2][..], &[b'x'; 400]].concat();
        assert_eq!(parse_name(&long, false).map(|n| n.chars().count()), Some(MAX_NAME + 1));
        // Cut short, a length that never ends, empty, no star where one is due.
        for bad in [&b""[..], b"\x01", b"\x01\x04*in", b"\x01\xff\xff\xff\x01", b"\x00\x00"] {
            assert_eq!(parse_name(bad, false), None, "{bad:?}");
        }
        assert_eq!(parse_name(b"\x01\x03int", true), None);
    }

    #[test]
    fn call_sites_from_bytes() {
        // lea rax,[rip+0x10]; lea rbx,[rip+0x1000]; call; lea rcx,[rip]; call
        let code = [
            0x48, 0x8d, 0x05, 0x10, 0, 0, 0, 0x48, 0x8d, 0x1d, 0, 0x10, 0, 0, 0xe8, 0, 0, 0, 0,
            0x48, 0x8d, 0x0d, 0, 0, 0, 0, 0xe8, 0, 0, 0, 0,
        ];
        let all = 0..u64::MAX;
        assert_eq!(last_address(&code, 0x1000, 0x1013, all.clone()), Some(0x200e));
        assert_eq!(last_address(&code, 0x1000, 0x1013, 0x1000..0x1100), Some(0x1017));
        assert_eq!(last_address(&code, 0x1000, 0x101f, all.clone()), Some(0x101a));
        assert_eq!(last_address(&code, 0x1000, 0x101f, 0..0x1000), None);
        assert_eq!(last_address(&[0x0f, 0xff, 0xe8], 0x1000, 0x2000, all), None);
    }

    #[test]
    fn runtime_functions_tell_strings_and_slices() {
        assert_eq!(of_runtime("runtime.growslice"), Some(Untyped::SliceOf));
        assert_eq!(of_runtime("runtime.rawstring"), Some(Untyped::Named("string")));
        assert_eq!(of_runtime("runtime.newobject"), None);
        assert_eq!(of_runtime("main.growslice"), None);
    }
}
