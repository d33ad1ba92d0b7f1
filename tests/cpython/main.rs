//! The CPython readers against every installed Python: version, layouts,
//! census and holders compared with what the interpreter itself says.

mod census;
mod layouts;
mod pythons;
