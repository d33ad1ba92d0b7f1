//! The BPF programs. Each file holds the entry points of one subject:
//! `go` for the Go runtime's probes, `exact` for counting every allocation,
//! `python` for windows on CPython (`pystore`: who puts something into a
//! container; `pytenant`: whose it is), `native` for those on its C allocator,
//! `process` for exec and exit; `labels` reads pprof labels, `emit` writes
//! records and counts what is lost.
#![no_std]
#![no_main]
#![allow(internal_features)]
#![feature(core_intrinsics)]

mod emit;
mod exact;
mod go;
mod labels;
mod native;
mod process;
mod pyset;
mod pystore;
mod pytenant;
mod python;
mod regs;
mod user;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier rejects any program from which this can be reached.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
