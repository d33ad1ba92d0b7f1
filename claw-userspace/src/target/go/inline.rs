//! Inlined calls at an address (`runtime/symtabinl.go`).

use super::pclntab::{Bytes, Func, Pclntab, Steps};

/// PCDATA_InlTreeIndex, FUNCDATA_InlTree (`internal/abi/symtab.go`).
const INL_TREE_INDEX: u32 = 2;
const INL_TREE: u8 = 3;
/// Deepest inlining that is followed; the compiler stays far below.
const MAX_DEPTH: usize = 128;

/// One logical frame at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Address of the instruction that this frame is at: of inlined callers,
    /// the one that the compiler left for the call.
    pub pc: u64,
    pub function: String,
    pub file: String,
    pub line: u32,
    pub start_line: u32,
    pub inlined: bool,
    /// `abi.FuncID`.
    pub id: u8,
}

/// The frames at instruction `pc`, innermost first. `funcdata` reads bytes
/// relative to `go:func.*`; without it only the outermost frame is known.
pub fn calls<B: Bytes>(
    table: &Pclntab<B>,
    f: &Func,
    pc: u64,
    funcdata: impl Fn(u64, &mut [u8]) -> Option<()>,
) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut pc = pc;
    let mut steps = Steps::default();
    while calls.len() < MAX_DEPTH {
        let (file, line) = table.file_line(f, pc, &mut steps).unwrap_or_default();
        let inlined = table
            .pcdata(f, INL_TREE_INDEX, pc, &mut steps)
            .and_then(|i| u64::try_from(i).ok())
            .and_then(|i| inlined_call(table, f, i, &funcdata));
        let Some((id, name, parent_pc, start_line)) = inlined else {
            let function = table.name(f).unwrap_or_default();
            calls.push(Call {
                pc,
                function,
                file,
                line,
                start_line: f.start_line,
                inlined: false,
                id: f.id,
            });
            return calls;
        };
        let function = table.name_at(name).unwrap_or_default();
        calls.push(Call { pc, function, file, line, start_line, inlined: true, id });
        pc = f.range.entry.wrapping_add(u64::from(parent_pc));
    }
    calls
}

/// Function id, name offset, offset of the call site from the entry, start line.
fn inlined_call<B: Bytes>(
    table: &Pclntab<B>,
    f: &Func,
    index: u64,
    funcdata: impl Fn(u64, &mut [u8]) -> Option<()>,
) -> Option<(u8, u32, u32, u32)> {
    let tree = u64::from(table.funcdata(f, INL_TREE)?);
    let word = |b: &[u8], i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
    if table.has_start_lines() {
        let mut b = [0; 16];
        funcdata(tree.checked_add(index.checked_mul(16)?)?, &mut b)?;
        Some((b[0], word(&b, 4), word(&b, 8), word(&b, 12)))
    } else {
        let mut b = [0; 20];
        funcdata(tree.checked_add(index.checked_mul(20)?)?, &mut b)?;
        Some((b[2], word(&b, 12), word(&b, 16), 0))
    }
}
