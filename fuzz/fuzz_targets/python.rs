#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    claw_ebpf_fuzz::python::python(bytes);
});
