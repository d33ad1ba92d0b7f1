//! Edits to real Go binaries, named by `CLAW_FUZZ_SEEDS` (separated by `:`).
#![no_main]

use std::{path::Path, sync::LazyLock};

use claw_ebpf_fuzz::exercise::Seed;
use libfuzzer_sys::fuzz_target;

static SEEDS: LazyLock<Vec<Seed>> = LazyLock::new(|| {
    let paths = std::env::var("CLAW_FUZZ_SEEDS").expect("CLAW_FUZZ_SEEDS names Go binaries");
    paths.split(':').map(|p| Seed::new(Path::new(p))).collect()
});

fuzz_target!(|bytes: &[u8]| {
    if let [which, edits @ ..] = bytes {
        SEEDS[usize::from(*which) % SEEDS.len()].damaged(edits);
    }
});
