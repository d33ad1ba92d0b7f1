//! Why memory stays, and what to change.

mod flow;
mod holder;
mod python;
mod remedy;
mod waits;

pub use flow::flow_remedy;
pub use holder::holder_remedy;
pub use python::{python_remedy, queue_remedy};
pub use remedy::remedy;
pub use waits::{blocked_on, holds_thread, waiting_remedy, waits_on};
