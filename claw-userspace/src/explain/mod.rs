//! Why memory stays, and what to change.

mod holder;
mod python;
mod remedy;
mod waits;

pub use holder::holder_remedy;
pub use python::python_remedy;
pub use remedy::remedy;
pub use waits::{blocked_on, holds_thread, waiting_remedy, waits_on};
