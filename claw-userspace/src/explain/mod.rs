//! Why memory stays, and what to change.

mod remedy;
mod waits;

pub use remedy::remedy;
pub use waits::{blocked_on, holds_thread, waiting_remedy, waits_on};
