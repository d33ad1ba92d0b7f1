//! Names of C code in a process, from the symbols and debug information of its
//! files.

use blazesym::{
    Pid,
    symbolize::{CodeInfo, Input, Symbolized, Symbolizer, source},
};

use super::{Frame, Origin};

/// Logical frames of an address in a process, innermost first; empty when
/// nothing is known of it.
pub fn native_frames(symbolizer: &Symbolizer, pid: u32, pc: u64) -> Vec<Frame> {
    let source = source::Source::Process(source::Process::new(Pid::from(pid)));
    let Ok(Symbolized::Sym(sym)) = symbolizer.symbolize_single(&source, Input::AbsAddr(pc)) else {
        return Vec::new();
    };
    let frame = |name: &str, code: Option<&CodeInfo>, inlined| Frame {
        function: name.to_owned(),
        file: code.map(|c| c.to_path().to_string_lossy().into_owned()).unwrap_or_default(),
        line: code.and_then(|c| c.line).unwrap_or(0),
        start_line: 0,
        inlined,
        origin: Origin::Native,
    };
    let mut frames: Vec<Frame> =
        sym.inlined.iter().rev().map(|i| frame(&i.name, i.code_info.as_ref(), true)).collect();
    frames.push(frame(&sym.name, sym.code_info.as_deref(), false));
    frames
}
