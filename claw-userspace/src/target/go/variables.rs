//! Addresses of runtime variables: from the ELF symbol table, else from the
//! instructions of functions that use them, which survive stripping.

use iced_x86::{Decoder, DecoderOptions, OpKind, Register};

use super::binary::GoBinary;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VariableError {
    #[error("{variable}: the binary is stripped and has no function {function}")]
    NoFunction { variable: &'static str, function: &'static str },
    #[error(
        "{variable}: the binary is stripped and {function} does not refer to it as known \
         ({pattern})"
    )]
    NoPattern { variable: &'static str, function: &'static str, pattern: &'static str },
    #[error("{variable}: address {address:#x} is not aligned or not in writable memory")]
    NotWritable { variable: &'static str, address: u64 },
}

/// A variable, the function whose code refers to it, and which of the distinct
/// addresses in that code is its own.
#[derive(Clone, Copy, Debug)]
pub struct Variable {
    pub name: &'static str,
    function: &'static str,
    which: Which,
    pattern: &'static str,
    /// Bytes that its address is a multiple of.
    align: u64,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Nth(usize),
    /// The first of three addresses that follow each other: a slice header.
    Slice,
}

/// Mean bytes between two heap samples; `int`, 8 bytes.
pub const MEM_PROFILE_RATE: Variable = Variable {
    name: "runtime.MemProfileRate",
    function: "runtime.profilealloc",
    which: Which::Nth(1),
    pattern: "second distinct RIP-relative address, after mcache0",
    align: 8,
};

/// Head of the list of heap-profile buckets.
pub const MBUCKETS: Variable = Variable {
    name: "runtime.mbuckets",
    function: "runtime.mProf_FlushLocked",
    which: Which::Nth(0),
    pattern: "first RIP-relative load",
    align: 8,
};

/// Number of the heap profile's cycle above a flag, 4 bytes.
pub const MPROF_CYCLE: Variable = Variable {
    name: "runtime.mProfCycle",
    function: "runtime.mProf_Flush",
    which: Which::Nth(0),
    pattern: "first RIP-relative load",
    align: 4,
};

/// All goroutine slots that ever were, `[]*g`.
pub const ALLGS: Variable = Variable {
    name: "runtime.allgs",
    function: "runtime.allgadd",
    which: Which::Slice,
    pattern: "RIP-relative addresses of a pointer, a length and a capacity in a row",
    align: 8,
};

impl Variable {
    /// Address in the file; add the load bias for the process.
    ///
    /// # Errors
    /// Names the function and pattern that did not match.
    pub fn find(&self, binary: &GoBinary) -> Result<u64, VariableError> {
        let symbol = binary.elf().symbols(&[self.name]).into_iter().next().flatten();
        self.check(
            binary,
            match symbol {
                Some(address) => address,
                None => self.by_pattern(binary)?,
            },
        )
    }

    fn check(&self, binary: &GoBinary, address: u64) -> Result<u64, VariableError> {
        let segment = binary.elf().segment(address);
        if segment.is_some_and(|s| s.writable) && address.is_multiple_of(self.align) {
            Ok(address)
        } else {
            Err(VariableError::NotWritable { variable: self.name, address })
        }
    }

    /// As [`Self::find`], from the code alone.
    ///
    /// # Errors
    /// Names the function and pattern that did not match.
    pub fn by_pattern(&self, binary: &GoBinary) -> Result<u64, VariableError> {
        let (variable, function) = (self.name, self.function);
        let missing = VariableError::NoFunction { variable, function };
        let Some(range) = binary.function(function) else { return Err(missing) };
        let Ok(code) = binary.code(range) else { return Err(missing) };
        let mut seen: Vec<u64> = Vec::new();
        for i in &mut Decoder::with_ip(64, &code, range.entry, DecoderOptions::NONE) {
            let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
            if memory && i.memory_base() == Register::RIP {
                let address = i.ip_rel_memory_address();
                if !seen.contains(&address) {
                    seen.push(address);
                }
            }
        }
        let found = match self.which {
            Which::Nth(n) => seen.get(n),
            Which::Slice => {
                seen.iter().find(|a| [8, 16].iter().all(|o| seen.contains(&a.wrapping_add(*o))))
            }
        };
        let address = found.copied().ok_or(VariableError::NoPattern {
            variable,
            function,
            pattern: self.pattern,
        })?;
        self.check(binary, address)
    }
}
