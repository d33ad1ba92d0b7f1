//! Facts about Go versions, checked against binaries of each version. No root.

#[path = "../common/mod.rs"]
mod common;

mod layouts;
mod symbols;
mod tables;
