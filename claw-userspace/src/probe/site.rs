//! Which instruction of a Go function to probe (x86-64).
//!
//! A function's entry is a bad place: its stack check may jump to `morestack`,
//! which comes back to the entry, so an entry probe can fire twice for one
//! call. After the check the arguments are still in registers and the place is
//! passed once. It also is the cheaper place: the kernel emulates `push`,
//! `call` and jumps, and single-steps most other instructions.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register, UsedRegister,
};

/// `g.stackguard0`: what a Go prologue compares the stack pointer with.
const STACKGUARD0: u64 = 16;
/// Instructions before the stack check's jump, for the largest frames.
const PROLOGUE: usize = 8;

fn decode(code: &[u8], entry: u64) -> impl Iterator<Item = Instruction> {
    Decoder::with_ip(64, code, entry, DecoderOptions::NONE).into_iter()
}

/// Address of the first instruction after the stack check of the function that
/// starts at `entry`; `entry` itself when the function has none.
pub fn after_stack_check(code: &[u8], entry: u64) -> u64 {
    let mut compared = false;
    for i in decode(code, entry).take(PROLOGUE) {
        if compared && i.flow_control() == FlowControl::ConditionalBranch {
            return i.next_ip();
        }
        let against_guard = i.memory_base() == Register::R14
            && i.memory_displacement64() == STACKGUARD0
            && i.mnemonic() == Mnemonic::Cmp;
        compared |= against_guard;
        if i.is_invalid() || i.flow_control() == FlowControl::Return {
            break;
        }
    }
    entry
}

/// Addresses of all `ret` instructions of a function. Go functions end in no
/// other way (no tail jumps), so probing all of them misses no return.
pub fn returns(code: &[u8], entry: u64) -> Vec<u64> {
    decode(code, entry)
        .filter(|i| i.flow_control() == FlowControl::Return)
        .map(|i| i.ip())
        .collect()
}

/// Whether the kernel emulates an instruction that begins with `opcode`
/// (`arch/x86/kernel/uprobes.c`, `branch_setup_xol_ops`, `push_setup_xol_ops`):
/// nop, push, near call and jumps.
pub fn is_emulated(opcode: u8) -> bool {
    matches!(opcode, 0x90 | 0x50..=0x57 | 0xe8 | 0xe9 | 0xeb | 0x70..=0x7f)
}

/// Registers of the first two arguments of the C ABI.
pub const C_ARGUMENTS: [Register; 2] = [Register::RDI, Register::RSI];

/// Address of the first instruction of a function that the kernel emulates and
/// that no branch leads around, while the registers in `needed` still hold what
/// they did at `entry`; `entry` itself when there is none.
pub fn with_arguments(code: &[u8], entry: u64, needed: &[Register]) -> u64 {
    let mut info = InstructionInfoFactory::new();
    for i in decode(code, entry).take(PROLOGUE * 2) {
        let at = usize::try_from(i.ip().wrapping_sub(entry)).ok();
        if at.and_then(|at| code.get(at..)).is_some_and(is_cheap) {
            return i.ip();
        }
        let writes = |r: &UsedRegister| {
            needed.contains(&r.register().full_register())
                && !matches!(r.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
        };
        let changed = info.info(&i).used_registers().iter().any(writes);
        if i.is_invalid() || changed || i.flow_control() != FlowControl::Next {
            break;
        }
    }
    entry
}

/// Whether the kernel emulates the instruction at the start of `code`: those of
/// [`is_emulated`], conditional jumps in their long form, and `push` of the
/// upper registers.
pub fn is_cheap(code: &[u8]) -> bool {
    match code {
        [0x0f, second, ..] => matches!(second, 0x80..=0x8f),
        [0x41, second, ..] => matches!(second, 0x50..=0x57),
        [first, ..] => is_emulated(*first),
        [] => false,
    }
}

fn calls(i: &Instruction, target: u64) -> bool {
    i.mnemonic() == Mnemonic::Call
        && i.op0_kind() == OpKind::NearBranch64
        && i.near_branch_target() == target
}

/// Address of the first call of `then` that follows a call of `first`.
pub fn call_after(code: &[u8], entry: u64, first: u64, then: u64) -> Option<u64> {
    decode(code, entry).skip_while(|i| !calls(i, first)).find(|i| calls(i, then)).map(|i| i.ip())
}

/// Addresses to which the calls of `target` return.
pub fn returns_of_call(code: &[u8], entry: u64, target: u64) -> Vec<u64> {
    decode(code, entry).filter(|i| calls(i, target)).map(|i| i.next_ip()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x40_1000;

    #[test]
    fn small_frame_is_probed_at_push() {
        // cmp rsp,[r14+10h]; jbe +0x20; push rbp; mov rbp,rsp
        let code = [0x49, 0x3b, 0x66, 0x10, 0x76, 0x20, 0x55, 0x48, 0x89, 0xe5];
        assert_eq!(after_stack_check(&code, ENTRY), ENTRY + 6);
    }

    #[test]
    fn large_frame_is_probed_after_the_check() {
        // lea r12,[rsp-138h]; cmp r12,[r14+10h]; jbe rel32; push rbp
        let code = [
            0x4c, 0x8d, 0xa4, 0x24, 0xc8, 0xfe, 0xff, 0xff, 0x4d, 0x3b, 0x66, 0x10, 0x0f, 0x86,
            0x10, 0x00, 0x00, 0x00, 0x55,
        ];
        assert_eq!(after_stack_check(&code, ENTRY), ENTRY + 18);
    }

    #[test]
    fn function_without_a_check_is_probed_at_its_entry() {
        // push rbp; mov rbp,rsp; cmp rax,[rbx+10h]; jbe
        let code = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x3b, 0x43, 0x10, 0x76, 0x20];
        assert_eq!(after_stack_check(&code, ENTRY), ENTRY);
        assert_eq!(after_stack_check(&[], ENTRY), ENTRY);
        assert_eq!(after_stack_check(&[0x0f, 0xff], ENTRY), ENTRY);
    }

    #[test]
    fn arguments_are_still_there() {
        // mov rsi,rdi is written over: endbr64; mov rdi,rsi; push rbx
        let lost = [0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x89, 0xf7, 0x53];
        assert_eq!(with_arguments(&lost, ENTRY, &C_ARGUMENTS), ENTRY);
        assert_eq!(with_arguments(&lost, ENTRY, &C_ARGUMENTS[1..]), ENTRY + 7);
        // movabs rdx, imm64; push r13
        let late = [0x48, 0xba, 1, 2, 3, 4, 5, 6, 7, 8, 0x41, 0x55];
        assert_eq!(with_arguments(&late, ENTRY, &C_ARGUMENTS), ENTRY + 10);
        assert!(is_cheap(&late[10..]) && !is_cheap(&late));
        // test rdi,rdi; js +0x100
        let branch = [0x48, 0x85, 0xff, 0x0f, 0x88, 0, 1, 0, 0];
        assert_eq!(with_arguments(&branch, ENTRY, &C_ARGUMENTS), ENTRY + 3);
        // ret; push rbp
        assert_eq!(with_arguments(&[0xc3, 0x55], ENTRY, &C_ARGUMENTS), ENTRY);
        assert_eq!(with_arguments(&[], ENTRY, &C_ARGUMENTS), ENTRY);
    }

    #[test]
    fn every_return_is_found() {
        // ret; nop; push rbp; pop rbp; ret
        let code = [0xc3, 0x90, 0x55, 0x5d, 0xc3];
        assert_eq!(returns(&code, ENTRY), [ENTRY, ENTRY + 4]);
    }

    #[test]
    fn call_is_found_only_after_the_first() {
        // call +0x10 (target ENTRY+0x15); call +0x20 (target ENTRY+0x2a)
        let code = [0xe8, 0x10, 0, 0, 0, 0xe8, 0x20, 0, 0, 0];
        let (a, b) = (ENTRY + 0x15, ENTRY + 0x2a);
        assert_eq!(call_after(&code, ENTRY, a, b), Some(ENTRY + 5));
        assert_eq!(call_after(&code, ENTRY, b, a), None);
        assert_eq!(returns_of_call(&code, ENTRY, a), [ENTRY + 5]);
    }
}
