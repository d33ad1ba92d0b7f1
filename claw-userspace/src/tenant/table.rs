//! Tenant names, interned and bounded.

use rustc_hash::FxHashMap;

use crate::report::clean::clean;

/// No rule matched.
pub const NONE: &str = "-";
/// Tenants beyond the bound.
pub const OTHER: &str = "(other)";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(pub u32);

#[derive(Debug)]
pub struct TenantTable {
    names: Vec<String>,
    ids: FxHashMap<String, TenantId>,
    most: usize,
    /// Events attributed to `(other)`.
    pub overflowed: u64,
    /// Events whose label was longer than what is kept.
    pub cut: u64,
}

impl TenantTable {
    pub fn new(most: usize) -> Self {
        let names = vec![NONE.to_owned(), OTHER.to_owned()];
        let ids = names.iter().cloned().zip([TenantId(0), TenantId(1)]).collect();
        Self { names, ids, most, overflowed: 0, cut: 0 }
    }

    /// The id of a tenant as an event names it.
    pub fn id(&mut self, name: Option<&str>, cut: bool) -> TenantId {
        self.cut += u64::from(cut);
        let Some(raw) = name else { return TenantId(0) };
        if let Some(id) = self.ids.get(raw) {
            return *id;
        }
        let name = clean(raw);
        let name = if name.is_empty() { NONE.to_owned() } else { name };
        if let Some(id) = self.ids.get(&name) {
            return *id;
        }
        if self.names.len() >= self.most + 2 {
            self.overflowed += 1;
            return TenantId(1);
        }
        let id = TenantId(u32::try_from(self.names.len()).unwrap_or(1));
        self.ids.insert(name.clone(), id);
        self.names.push(name);
        id
    }

    pub fn name(&self, id: TenantId) -> &str {
        self.names.get(id.0 as usize).map_or(OTHER, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_cleaned() {
        let mut t = TenantTable::new(2);
        let a = t.id(Some("a\x1b[31m\n"), false);
        assert_eq!(t.name(a), "a[31m");
        assert_eq!(t.id(None, false), TenantId(0));
        t.id(Some("b"), true);
        let other = t.id(Some("c"), false);
        assert_eq!((t.name(other), t.overflowed, t.cut), (OTHER, 1, 1));
        let again = t.id(Some("b"), false);
        assert_eq!(t.name(again), "b");
    }
}
