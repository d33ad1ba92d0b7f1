//! Registers of Go's internal ABI at a probe (`cmd/compile/abi-internal.md`),
//! and, in `c`, of the platform's C ABI.
//! Reads are volatile, so that the compiler does not merge two of them into one
//! from a computed address, which the verifier refuses.

use aya_ebpf::programs::ProbeContext;

#[cfg(bpf_target_arch = "x86_64")]
mod arch {
    use super::ProbeContext;

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
    use super::ProbeContext;

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
