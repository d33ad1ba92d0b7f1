//! What a probe hit costs on this machine, measured on the agent itself.

use std::{fs, time::Instant};

use super::{
    object::{ProbeError, Probes},
    plan::{Point, Program},
};

/// Cost of one hit including an empty program, ns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HitCost {
    /// At an instruction that the kernel emulates.
    pub emulated: f64,
    /// At one that it single-steps.
    pub stepped: f64,
}

/// Where nothing could be measured: virtual machines are this slow, bare metal
/// is ten times faster.
const ASSUMED: HitCost = HitCost { emulated: 1500.0, stepped: 13_000.0 };
/// The fastest of many short batches: a busy machine interrupts the others.
const BATCHES: u32 = 40;
const ROUNDS: u32 = 50;

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".global claw_calibrate_push",
    "claw_calibrate_push:",
    "push rbp",
    "pop rbp",
    "ret",
    ".global claw_calibrate_lea",
    "claw_calibrate_lea:",
    "lea rax, [rsp + 8]",
    "ret",
);

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn claw_calibrate_push();
    fn claw_calibrate_lea();
}

/// Measure; takes a few milliseconds and twice the time to detach.
pub fn hit_cost(probes: &mut Probes) -> HitCost {
    #[cfg(target_arch = "x86_64")]
    {
        let mut measure = |f: unsafe extern "C" fn()| one(probes, f).ok().flatten();
        if let (Some(emulated), Some(stepped)) =
            (measure(claw_calibrate_push), measure(claw_calibrate_lea))
        {
            return HitCost { emulated, stepped };
        }
    }
    ASSUMED
}

#[cfg(target_arch = "x86_64")]
fn one(probes: &mut Probes, f: unsafe extern "C" fn()) -> Result<Option<f64>, ProbeError> {
    let Some(file_offset) = file_offset(f as usize as u64) else { return Ok(None) };
    let time = || {
        let batch = |_| {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                // SAFETY: the function keeps to the C ABI and touches nothing.
                unsafe { f() };
            }
            start.elapsed().as_nanos() as f64 / f64::from(ROUNDS)
        };
        (0..BATCHES).map(batch).fold(f64::MAX, f64::min)
    };
    let without = time();
    let point =
        Point { program: Program::Gc, function: "calibration", file_offset, emulated: true };
    let attachment = probes.attach_foreign(std::process::id(), &[point])?;
    let with = time();
    probes.detach(attachment);
    Ok(Some((with - without).max(1.0)))
}

/// Offset in the executable's file of an address in this process.
fn file_offset(address: u64) -> Option<u64> {
    fs::read_to_string("/proc/self/maps").ok()?.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |s: &str| u64::from_str_radix(s, 16).ok();
        let (start, end, offset) = (hex(start)?, hex(end)?, hex(fields.nth(1)?)?);
        (start..end).contains(&address).then(|| address - start + offset)
    })
}
