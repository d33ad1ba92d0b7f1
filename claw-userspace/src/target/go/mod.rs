//! Facts about the Go runtime: what the linker left in a binary, where the
//! runtime's structs keep their fields, and what its memory says.

pub mod binary;
pub mod buildinfo;
pub mod goroutines;
pub mod inline;
pub mod labels;
pub mod layout;
pub mod memprofile;
pub mod moduledata;
pub mod pclntab;
pub mod program;
pub mod rate;
pub mod snapshot;
pub mod types;
pub mod unwind;
pub mod variables;
pub mod version;
pub mod waits;
