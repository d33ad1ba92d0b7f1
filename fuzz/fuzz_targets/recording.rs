#![no_main]

use claw_ebpf_fuzz::exercise::recording;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| recording(bytes));
