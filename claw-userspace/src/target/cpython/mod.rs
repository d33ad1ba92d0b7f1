//! The CPython runtime as seen from outside: which version a process runs,
//! where its types are, what its memory holds, and who holds it.

pub mod binary;
pub mod census;
pub mod code;
pub mod copy;
pub mod flows;
pub mod graph;
pub mod holder;
pub mod layout;
pub mod live;
pub mod members;
pub mod object;
pub mod pool;
pub mod regions;
pub mod remote;
pub mod running;
pub mod threads;
pub mod types;
pub mod used_pools;
