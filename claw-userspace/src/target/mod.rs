//! Processes and their binaries: finding them, knowing what they are, reading
//! their memory.

pub mod elf;
pub mod go;
pub mod memory;
pub mod process;
