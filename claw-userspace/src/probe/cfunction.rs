//! A probe in a C function: at its first instructions, while its arguments are
//! where the ABI puts them.

use iced_x86::Register;

use super::{link::Place, site};
use crate::target::elf::{Elf, ElfError};

/// Bytes of a function that are looked at.
const HEAD: usize = 96;

/// Where in a function a probe sits.
#[derive(Clone, Copy, Debug)]
pub enum Where<'a> {
    /// At its first instruction, as return probes have to.
    Entry,
    /// At the cheapest one at which these registers are as at the entry.
    With(&'a [Register]),
}

/// The place in the function at `entry`, and whether the kernel has to step its
/// instruction; `None` when it is not in the file.
///
/// # Errors
/// When the function's code cannot be read.
pub fn place(
    elf: &Elf,
    entry: u64,
    at: Where<'_>,
    cookie: u64,
) -> Result<Option<(Place, bool)>, ElfError> {
    let mut code = [0; HEAD];
    elf.read(entry, &mut code)?;
    let at = match at {
        Where::Entry => entry,
        Where::With(needed) => site::with_arguments(&code, entry, needed),
    };
    let Some(file_offset) = elf.file_offset(at) else { return Ok(None) };
    let offset = usize::try_from(at - entry).unwrap_or(0);
    let stepped = !code.get(offset..).is_some_and(site::is_cheap);
    Ok(Some((Place { file_offset, cookie }, stepped)))
}
