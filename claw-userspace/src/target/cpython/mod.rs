//! The CPython runtime as seen from outside: which version a process runs,
//! where its types are, what its memory holds, and who holds it.

pub mod binary;
pub mod census;
pub mod holder;
pub mod layout;
pub mod live;
pub mod object;
pub mod pool;
pub mod regions;
