//! Real Go and CPython processes under the real BPF programs. Needs root and a kernel with
//! BPF: `cargo xtask test` runs these, a plain `cargo test` does not.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/pythons.rs"]
mod interpreters;

mod blocked;
mod container;
mod errors;
mod exact;
mod leaks;
mod native;
mod pyservices;
mod pystores;
mod python;
mod services;
mod targets;
mod versions;
