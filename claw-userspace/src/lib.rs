//! claw-ebpf: a leak detector for running Go services.
//!
//! `target` finds processes, `probe` attaches BPF programs to them, `decode`
//! turns ring-buffer bytes into events, `symbol` names their addresses,
//! `tenant` and `ledger` count what is in use by whom, `detect` judges it and
//! `report` writes it down. `stream` is what flows from the live half to the
//! pure half, and what a recording holds; `engine` is the pure half;
//! `pipeline` wires both. `heap` looks at a heap once, without probes.

pub mod baseline;
pub mod decode;
pub mod detect;
pub mod engine;
pub mod explain;
pub mod heap;
pub mod input;
pub mod ledger;
pub mod pipeline;
pub mod probe;
pub mod record;
pub mod report;
pub mod stream;
pub mod symbol;
pub mod target;
pub mod tenant;
