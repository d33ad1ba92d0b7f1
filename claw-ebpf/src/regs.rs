//! Registers of Go's internal ABI at a probe (`cmd/compile/abi-internal.md`),
//! and, in `c`, of the platform's C ABI.
//! Reads are volatile, so that the compiler does not merge two of them into one
//! from a computed address, which the verifier refuses.

use aya_ebpf::programs::{PerfEventContext, ProbeContext};

#[cfg(bpf_target_arch = "x86_64")]
mod arch {
    use super::{PerfEventContext, ProbeContext, on_stack};

    /// Give each general register at a watchpoint, which is hit after the write, and
    /// what is on top of the stack, to `f`.
    #[inline(always)]
    pub fn words(ctx: &PerfEventContext, mut f: impl FnMut(u64)) {
        // SAFETY: the kernel lets a program read its context.
        let regs = unsafe { &raw const (*ctx.ctx).regs };
        macro_rules! each {
            ($($reg:ident)*) => {
                // SAFETY: as above.
                $(f(unsafe { (&raw const (*regs).$reg).read_volatile() });)*
            };
        }
        each!(rax rbx rcx rdx rsi rdi rbp r8 r9 r10 r11 r12 r13 r14 r15);
        // SAFETY: as above.
        on_stack(unsafe { (&raw const (*regs).rsp).read_volatile() }, f);
    }

    /// First integer argument or result.
    #[inline(always)]
    pub fn arg0(ctx: &ProbeContext) -> u64 {
        // SAFETY: the kernel passes valid pt_regs.
        unsafe { (&raw const (*ctx.regs).rax).read_volatile() }
    }

    #[inline(always)]
    pub fn arg1(ctx: &ProbeContext) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const (*ctx.regs).rbx).read_volatile() }
    }

    #[inline(always)]
    pub fn arg2(ctx: &ProbeContext) -> u64 {
        // SAFETY: as above.
        unsafe { (*ctx.regs).rcx }
    }

    /// The current `g`.
    #[inline(always)]
    pub fn g(ctx: &ProbeContext) -> u64 {
        // SAFETY: as above.
        unsafe { (*ctx.regs).r14 }
    }

    /// The stack pointer: at a function's start the return address is there.
    #[inline(always)]
    pub fn sp(ctx: &ProbeContext) -> u64 {
        // SAFETY: as above.
        unsafe { (*ctx.regs).rsp }
    }

    pub mod c {
        use super::ProbeContext;

        /// First argument of a C function.
        #[inline(always)]
        pub fn arg0(ctx: &ProbeContext) -> u64 {
            // SAFETY: as above.
            unsafe { (&raw const (*ctx.regs).rdi).read_volatile() }
        }

        #[inline(always)]
        pub fn arg1(ctx: &ProbeContext) -> u64 {
            // SAFETY: as above.
            unsafe { (&raw const (*ctx.regs).rsi).read_volatile() }
        }

        #[inline(always)]
        pub fn arg2(ctx: &ProbeContext) -> u64 {
            // SAFETY: as above.
            unsafe { (&raw const (*ctx.regs).rdx).read_volatile() }
        }

        #[inline(always)]
        pub fn arg3(ctx: &ProbeContext) -> u64 {
            // SAFETY: as above.
            unsafe { (&raw const (*ctx.regs).rcx).read_volatile() }
        }

        /// What it returns, once it has.
        #[inline(always)]
        pub fn result(ctx: &ProbeContext) -> u64 {
            // SAFETY: as above.
            unsafe { (&raw const (*ctx.regs).rax).read_volatile() }
        }
    }

    /// What a return takes from the stack, bytes.
    pub const POPPED: u64 = 8;

    /// Where the thread is.
    #[inline(always)]
    pub fn ip(ctx: &ProbeContext) -> u64 {
        // SAFETY: as above.
        unsafe { (&raw const (*ctx.regs).rip).read_volatile() }
    }
}

#[cfg(bpf_target_arch = "aarch64")]
mod arch {
    use super::{PerfEventContext, ProbeContext, on_stack};

    /// Give each general register at a watchpoint, which is hit after the write, and
    /// what is on top of the stack, to `f`.
    #[inline(always)]
    pub fn words(ctx: &PerfEventContext, mut f: impl FnMut(u64)) {
        // SAFETY: the kernel lets a program read its context.
        let regs = unsafe { &raw const (*ctx.ctx).regs };
        macro_rules! each {
            ($($i:literal)*) => {
                // SAFETY: as above.
                $(f(unsafe { (&raw const (*regs).regs[$i]).read_volatile() });)*
            };
        }
        each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28);
        // SAFETY: as above.
        on_stack(unsafe { (&raw const (*regs).sp).read_volatile() }, f);
    }

    #[inline(always)]
    fn reg(ctx: &ProbeContext, n: usize) -> u64 {
        // SAFETY: the kernel passes valid user_pt_regs; n is a constant < 31.
        unsafe { (&raw const (*ctx.regs).regs[n]).read_volatile() }
    }

    /// First integer argument or result.
    #[inline(always)]
    pub fn arg0(ctx: &ProbeContext) -> u64 {
        reg(ctx, 0)
    }

    #[inline(always)]
    pub fn arg1(ctx: &ProbeContext) -> u64 {
        reg(ctx, 1)
    }

    #[inline(always)]
    pub fn arg2(ctx: &ProbeContext) -> u64 {
        reg(ctx, 2)
    }

    /// The current `g`.
    #[inline(always)]
    pub fn g(ctx: &ProbeContext) -> u64 {
        reg(ctx, 28)
    }

    /// The stack pointer.
    #[inline(always)]
    pub fn sp(ctx: &ProbeContext) -> u64 {
        // SAFETY: the kernel passes valid user_pt_regs.
        unsafe { (*ctx.regs).sp }
    }

    /// What a return takes from the stack, bytes.
    pub const POPPED: u64 = 0;

    /// Where the thread is.
    #[inline(always)]
    pub fn ip(ctx: &ProbeContext) -> u64 {
        // SAFETY: the kernel passes valid user_pt_regs.
        unsafe { (&raw const (*ctx.regs).pc).read_volatile() }
    }

    /// Both ABIs pass arguments and results in the same registers.
    pub mod c {
        pub use super::{arg0, arg0 as result, arg1, arg2};

        #[inline(always)]
        pub fn arg3(ctx: &super::ProbeContext) -> u64 {
            super::reg(ctx, 3)
        }
    }
}

pub use arch::*;

/// Words on top of the stack that are looked at.
const ON_STACK: u32 = 8;

#[inline(always)]
fn on_stack(sp: u64, mut f: impl FnMut(u64)) {
    for i in 0..ON_STACK {
        f(crate::user::read(sp, i * 8).unwrap_or(0));
    }
}
