//! The agent's side of the shared types.

use crate::{
    ExactKey, ExactTarget, ExactValue, GoTarget, NativeEntry, NativeStack, NativeStat,
    NativeTarget, ProbeStat, PyEntry, PyFrame, PyKey, PyLocal, PyStack, PyStackKey, PyStat,
    PyStore, PyTarget, TenantKey, WindowStat,
};

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
// SAFETY: as above.
unsafe impl aya::Pod for PyTarget {}
// SAFETY: as above.
unsafe impl aya::Pod for PyKey {}
// SAFETY: as above.
unsafe impl aya::Pod for PyLocal {}
// SAFETY: as above.
unsafe impl aya::Pod for PyStackKey {}
// SAFETY: as above.
unsafe impl aya::Pod for PyStack {}
// SAFETY: as above.
unsafe impl aya::Pod for PyFrame {}
// SAFETY: as above.
unsafe impl aya::Pod for PyEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for PyStore {}
// SAFETY: as above.
unsafe impl aya::Pod for PyStat {}
// SAFETY: as above.
unsafe impl aya::Pod for NativeTarget {}
// SAFETY: as above.
unsafe impl aya::Pod for NativeEntry {}
// SAFETY: as above.
unsafe impl aya::Pod for NativeStack {}
// SAFETY: as above.
unsafe impl aya::Pod for NativeStat {}
