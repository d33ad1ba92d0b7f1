//! Goroutines and stacks of a program, the first that `CLAW_FUZZ_SEEDS` names.
#![no_main]

use std::{path::Path, sync::LazyLock};

use claw_ebpf::target::go::binary::GoBinary;
use claw_ebpf_fuzz::exercise::stacks;
use libfuzzer_sys::fuzz_target;

static BINARY: LazyLock<GoBinary> = LazyLock::new(|| {
    let paths = std::env::var("CLAW_FUZZ_SEEDS").expect("CLAW_FUZZ_SEEDS names Go binaries");
    let first = paths.split(':').next().expect("one path");
    GoBinary::open(Path::new(first)).expect("a sound Go binary")
});

fuzz_target!(|bytes: &[u8]| {
    stacks(&BINARY, bytes);
});
