//! Processes and their binaries: finding them, knowing what they are, reading
//! their memory.

pub mod allocator;
pub mod bulk;
pub mod capability;
pub mod container;
pub mod core;
pub mod cpython;
pub mod discover;
pub mod elf;
pub mod go;
pub mod limit;
pub mod memory;
pub mod pause;
pub mod process;
mod source;

pub use source::Source;
