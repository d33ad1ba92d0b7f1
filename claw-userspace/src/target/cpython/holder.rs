//! Under which name a container is reachable: a module's global, or an
//! attribute of a class in a module. Read from the running process, so a name
//! counts only when it still leads to the container.

use super::{
    binary::Types,
    layout::{MD_DICT, OB_TYPE, TP_DICT},
    object::Objects,
};
use crate::target::memory::Memory;

/// Where a container hangs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub module: String,
    /// Class between the module and the attribute, if it is a class's.
    pub class: Option<String>,
    pub name: String,
    /// `__file__` of the module.
    pub file: Option<String>,
}

/// The place of the container at `target`, among the modules at `modules`.
pub fn find<M: Memory>(objects: &Objects<'_, M>, modules: &[u64], target: u64) -> Option<Place> {
    modules.iter().find_map(|module| in_module(objects, *module, target))
}

fn in_module<M: Memory>(objects: &Objects<'_, M>, module: u64, target: u64) -> Option<Place> {
    let dict = objects.memory.u64_at(module.checked_add(MD_DICT)?).ok()?;
    let items = objects.items(dict)?;
    let string = |name: &str| objects.find_item(dict, name).and_then(|v| objects.string(v));
    let place = |class: Option<String>, key: u64| {
        Some(Place {
            module: string("__name__")?,
            class,
            name: objects.string(key)?,
            file: string("__file__"),
        })
    };
    if let Some((key, _)) = items.iter().find(|(_, value)| *value == target) {
        return place(None, *key);
    }
    items.iter().filter(|(_, value)| is_class(objects, *value)).find_map(|(class, value)| {
        let attributes = objects.memory.u64_at(value.checked_add(TP_DICT)?).ok()?;
        let (key, _) = objects.items(attributes)?.into_iter().find(|(_, v)| *v == target)?;
        place(Some(objects.string(*class)?), key)
    })
}

/// Whether an object is a class made by `type` itself; those of other
/// metaclasses are found by the full check.
fn is_class<M: Memory>(objects: &Objects<'_, M>, object: u64) -> bool {
    let Types { type_, .. } = objects.types;
    let of = |at: u64| objects.memory.u64_at(at.checked_add(OB_TYPE)?).ok();
    of(object).is_some_and(|t| t == type_ || of(t) == Some(type_))
        && objects.type_at(object).is_some()
}
