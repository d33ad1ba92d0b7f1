//! The agent's side of the shared types.

use crate::{ExactKey, ExactTarget, ExactValue, GoTarget, ProbeStat, TenantKey, WindowStat};

// SAFETY: `repr(C)`, made of integers only, without padding.
unsafe impl aya::Pod for GoTarget {}
// SAFETY: as above.
unsafe impl aya::Pod for TenantKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ProbeStat {}
// SAFETY: as above; the label's padding is a field.
unsafe impl aya::Pod for ExactKey {}
// SAFETY: as above.
unsafe impl aya::Pod for ExactValue {}
// SAFETY: as above.
unsafe impl aya::Pod for ExactTarget {}
// SAFETY: as above.
unsafe impl aya::Pod for WindowStat {}
