//! Facts about Go versions, checked against binaries of each version. No root.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test may panic

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/dumps.rs"]
mod dumps;

mod cores;
mod goroutines;
mod heap;
mod layouts;
mod profiles;
mod symbols;
mod tables;
