//! Why memory stays, and what to change.

mod remedy;

pub use remedy::remedy;
