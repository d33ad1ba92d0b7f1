//! The agent's side of the shared types.

use crate::{GoTarget, ProbeStat, TenantKey};

// SAFETY: `repr(C)`, made of integers only, without padding.
unsafe impl aya::Pod for GoTarget {}
// SAFETY: as above.
unsafe impl aya::Pod for TenantKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ProbeStat {}
