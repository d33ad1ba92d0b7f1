//! Where a window on a CPython process sits: the allocators that its build
//! passes through, by the exported names.

use std::{collections::BTreeSet, path::PathBuf};

use claw_common::PySite;
use iced_x86::Register;

use super::{
    cfunction::{self, Where},
    link::Place,
    site::C_ARGUMENTS,
};
use crate::target::{
    cpython::binary::Python,
    elf::{Elf, ElfError},
};

/// What a window has to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Passes {
    /// Objects whose type has `PyType_GenericAlloc` for `tp_alloc`: instances of
    /// classes.
    Instances,
    /// Objects of the interpreter's own types of fixed size.
    Collected,
    /// All others: by the size of their block.
    Blocks,
}

impl Passes {
    pub const ALL: [Self; 3] = [Self::Instances, Self::Collected, Self::Blocks];

    fn functions(self) -> &'static [(&'static str, PySite)] {
        match self {
            Self::Instances => &[("PyType_GenericAlloc", PySite::Type)],
            Self::Collected => {
                &[("_PyObject_GC_New", PySite::Type), ("_PyObject_New", PySite::Type)]
            }
            Self::Blocks => &[
                ("PyObject_Malloc", PySite::Size),
                ("PyObject_Calloc", PySite::Count),
                ("PyObject_Realloc", PySite::Resize),
            ],
        }
    }
}

/// The probes of a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PyPlan {
    pub file: PathBuf,
    pub places: Vec<Place>,
    pub functions: Vec<&'static str>,
    /// At an instruction that the kernel has to step.
    pub stepped: usize,
    /// `tp_dealloc` in memory, of those that are probed.
    ends: Vec<u64>,
}

impl PyPlan {
    /// Without anything to see it is empty. Of `deallocs`, the `tp_dealloc` of
    /// types as it is in memory, one that is not in this file is left out: see
    /// [`Self::sees_end`].
    ///
    /// # Errors
    /// In words, when the file cannot be read or has none of the functions.
    pub fn of(
        python: &Python,
        passes: &[Passes],
        deallocs: &BTreeSet<u64>,
    ) -> Result<Self, String> {
        let elf = Elf::open(&python.opened).map_err(|e| e.to_string())?;
        let wanted: Vec<_> = passes.iter().flat_map(|p| p.functions()).copied().collect();
        let symbols = elf.dynamic_symbols(|name| wanted.iter().any(|(n, _)| *n == name));
        let mut plan = Self {
            file: python.opened.clone(),
            places: Vec::new(),
            functions: Vec::new(),
            stepped: 0,
            ends: Vec::new(),
        };
        for (name, site) in wanted {
            let Some((_, entry)) = symbols.iter().find(|(n, _)| n == name) else { continue };
            if plan.add(&elf, *entry, site).map_err(|e| format!("code of {name}: {e}"))? {
                plan.functions.push(name);
            }
        }
        if plan.places.is_empty() && !passes.is_empty() {
            return Err(format!("{} exports no allocator that could be probed", python.file));
        }
        for dealloc in deallocs {
            let entry = dealloc.wrapping_sub(python.bias);
            let code = elf.segment(entry).is_some_and(|s| s.executable);
            // A function of another file, or no function at all.
            if code && plan.add(&elf, entry, PySite::Dealloc).unwrap_or(false) {
                plan.ends.push(*dealloc);
            }
        }
        if !plan.ends.is_empty() {
            plan.functions.push("tp_dealloc");
        }
        Ok(plan)
    }

    /// Whether the end of objects whose type has this `tp_dealloc` is seen.
    pub fn sees_end(&self, dealloc: u64) -> bool {
        self.ends.contains(&dealloc)
    }

    /// A probe in the function at `entry`; false when it is not in the file.
    fn add(&mut self, elf: &Elf, entry: u64, site: PySite) -> Result<bool, ElfError> {
        let place = cfunction::place(elf, entry, Where::With(needed(site)), site as u64)?;
        let Some((place, stepped)) = place else { return Ok(false) };
        self.stepped += usize::from(stepped);
        self.places.push(place);
        Ok(true)
    }
}

fn needed(site: PySite) -> &'static [Register] {
    match site {
        PySite::Type | PySite::Size | PySite::Dealloc => &[C_ARGUMENTS[0]],
        PySite::Count => &C_ARGUMENTS,
        PySite::Resize => &[C_ARGUMENTS[1]],
    }
}
