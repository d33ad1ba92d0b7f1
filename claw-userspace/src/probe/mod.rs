//! Attaches the BPF programs to processes and hands out what they send: the
//! only user of aya. It knows addresses and bytes, not what they mean.

mod batch;
pub mod calibrate;
mod cfunction;
pub mod every;
pub mod exact;
mod link;
pub mod native;
pub mod object;
pub mod plan;
pub mod pyplan;
pub mod pystore;
pub mod pywindow;
pub mod site;

pub use calibrate::{HitCost, hit_cost};
pub use every::{EveryPlan, EveryPoint};
pub use exact::Exact;
pub use native::{Native, NativePlan};
pub use object::{Attachment, BpfCounters, ProbeError, Probes};
pub use plan::{Plan, Point, Program};
pub use pyplan::{Passes, PyPlan};
pub use pywindow::PyWindows;
