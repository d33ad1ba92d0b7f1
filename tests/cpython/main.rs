//! The CPython readers against every installed Python: version, layouts,
//! census and holders compared with what the interpreter itself says.

#![allow(clippy::unwrap_used)]

mod census;
mod code;
mod collections;
mod cores;
#[path = "../common/dumps.rs"]
mod dumps;
mod flows;
mod holders;
#[path = "../common/pythons.rs"]
mod interpreters;
mod layouts;
mod lists;
mod pythons;
mod remote;
mod unusual;
