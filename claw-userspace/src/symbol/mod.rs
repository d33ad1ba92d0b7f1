//! Addresses → functions, files and lines.
//!
//! Go code is named by the runtime's own table (`target::go::pclntab`), which
//! every binary has, stripped or not, which is ready at once and which agrees
//! with what the runtime and `go tool pprof` print. Everything else (C code
//! under cgo, libraries) is named by blazesym from symbols and DWARF.

mod native;
pub mod origin;
mod process;
mod stack;

use serde::{Deserialize, Serialize};

pub use native::native_frames;
pub use origin::origin;
pub use process::{BinaryCache, Symbolizer};
pub use stack::{Location, Stacks};

/// One logical frame. An address with inlined calls has several, innermost
/// first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Frame {
    /// As the runtime names it, e.g. `main.(*Auth).Wrap.func1`.
    pub function: String,
    /// Path as recorded at build time; empty when unknown.
    pub file: String,
    /// 0 when unknown.
    pub line: u32,
    /// Line on which the function starts; 0 when unknown (Go ≤ 1.19).
    pub start_line: u32,
    pub inlined: bool,
    pub origin: Origin,
}

/// Whose code a frame is: what decides where a site begins and which line is
/// the culprit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Origin {
    /// `runtime` and `runtime/internal`, `internal/runtime`.
    Runtime,
    /// The rest of the standard library.
    Std,
    /// A dependency module.
    Dependency,
    /// The main module of the binary, and `main.*` where there is none.
    Main,
    /// Not Go: C code, the kernel's vdso.
    Native,
    Unknown,
}
