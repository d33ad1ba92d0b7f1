//! The wire between the BPF programs and the agent: ring-buffer events, the
//! per-target configuration, and the reasons for which an event can be lost.
//!
//! Both sides compile this crate, so every type is `#[repr(C)]`, has no
//! padding that either side would leave unset, and has its size asserted
//! below. It owns layouts only: reading them is `decode.rs` on the user side.
#![no_std]

pub mod config;
pub mod event;
pub mod exact;
pub mod labels;
pub mod loss;
pub mod native;
pub mod python;
#[cfg(feature = "user")]
mod user;

pub use config::{GoTarget, LabelLayout, TenantKey};
pub use event::{EventHeader, EventKind, RecordedLabel};
pub use exact::{ExactKey, ExactSite, ExactTarget, ExactValue, WindowStat};
pub use loss::{Counter, LossReason, ProbeStat, WindowCost};
pub use native::{NativeEntry, NativeFlight, NativeSite, NativeStack, NativeStat, NativeTarget};
pub use python::{
    PyEntry, PyFrame, PyKey, PyLocal, PySite, PyStack, PyStackKey, PyStat, PyStore, PyTarget,
};
