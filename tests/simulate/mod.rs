//! A simulated Go sampler: the stream that real probes would give for known
//! workloads, the same every time.
#![allow(dead_code)] // each test program uses its part

use claw_ebpf::{
    decode::{Event, Label, What},
    stream::{Item, Session, TargetInfo},
    symbol::{Frame, Origin},
};

pub const SECOND: u64 = 1_000_000_000;
pub const RATE: u64 = 512 << 10;
pub const MIB: f64 = 1_048_576.0;
pub const PID: u32 = 7;
pub const ALWAYS: (f64, f64) = (0.0, f64::MAX);

struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Time to the next event of a Poisson process.
    fn wait(&mut self, per_second: f64) -> f64 {
        -self.unit().max(1e-12).ln() / per_second
    }
}

/// How long what is allocated at a site lives, in seconds.
#[derive(Clone, Copy)]
pub enum Life {
    /// Mean of an exponential distribution.
    Short(f64),
    Fixed(f64),
    OneIn100Stays,
    Stays,
}

#[derive(Clone, Copy)]
pub struct Workload {
    pub tenant: &'static str,
    pub pc: u64,
    pub bytes_per_s: f64,
    pub size: u64,
    pub life: Life,
    /// From, to, s.
    pub active: (f64, f64),
}

pub fn garbage() -> Workload {
    Workload {
        tenant: "busy",
        pc: 10,
        bytes_per_s: 100.0 * MIB,
        size: 1024,
        life: Life::Short(0.02),
        active: ALWAYS,
    }
}

pub fn frame(pc: u64) -> Frame {
    Frame {
        function: format!("main.f{pc}"),
        file: "/src/main.go".into(),
        line: 100 + pc as u32,
        start_line: 90,
        inlined: false,
        origin: Origin::Main,
    }
}

pub fn session() -> Session {
    Session {
        execution_id: "claw-20260101-0000-0000".into(),
        host: "h".into(),
        environment: None,
        wall_ns: 1_767_225_600 * SECOND,
        t_ns: 0,
        interval_ns: 10 * SECOND,
        threshold: 5.2,
    }
}

pub fn target() -> Item {
    Item::Target(TargetInfo {
        pid: PID,
        start_ticks: 1,
        uptime_ns: 3600 * SECOND,
        t_ns: 0,
        name: "sim".into(),
        exe: "/sim".into(),
        runtime: "go".into(),
        version: "go1.26.6".into(),
        stripped: false,
        container: None,
        mode: "sampled".into(),
        sample_rate: Some(RATE),
        heap_bytes: Some(200 << 20),
        default_tenant: None,
        labels_before_default: 0,
        blocked: Vec::new(),
    })
}

pub fn event(t: f64, what: What) -> Item {
    Item::Event(Event { t_ns: (t * 1e9) as u64, pid: PID, tid: PID, goid: 1, what })
}

/// The stream of `seconds` of these workloads with a GC every `gc` seconds.
/// Objects die at the end of their life and are freed after the next GC; what
/// lived before the start is freed too, as of unknown birth.
pub fn stream(workloads: &[Workload], seconds: f64, gc: f64, seed: u64) -> Vec<Item> {
    let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut timed: Vec<(f64, Item)> = Vec::new();
    let mut addr = 0x1000;
    for w in workloads {
        let p = 1.0 - (-(w.size as f64) / RATE as f64).exp();
        let samples_per_s = w.bytes_per_s / w.size as f64 * p;
        let history = match w.life {
            // What had died by the start lies there until the next GC.
            Life::Short(l) | Life::Fixed(l) if w.active.0 <= 0.0 => l.min(400.0) + gc,
            _ => 0.0,
        };
        let mut t = w.active.0 - history;
        loop {
            t += r.wait(samples_per_s);
            if t > seconds.min(w.active.1) {
                break;
            }
            addr += 64;
            let life = match w.life {
                Life::Short(mean) => r.wait(1.0 / mean),
                Life::Fixed(l) => l,
                Life::OneIn100Stays if r.unit() < 0.99 => 0.05,
                Life::OneIn100Stays | Life::Stays => f64::MAX,
            };
            if t >= 0.0 {
                let label = Some(Label { key: 0, value: w.tenant.into(), cut: false });
                let what = What::Alloc { addr, size: w.size, label, stack: vec![w.pc] };
                timed.push((t, event(t, what)));
            }
            let freed = ((t + life) / gc).ceil() * gc + 0.001;
            if freed >= 0.0 && freed <= seconds {
                let what = What::Free { addr, size: w.size, bucket: w.pc };
                timed.push((freed, event(freed, what)));
            }
        }
    }
    let every =
        |period: f64| (1..).map(move |i| f64::from(i) * period).take_while(move |t| *t <= seconds);
    timed.extend(every(gc).map(|t| (t, event(t, What::Gc))));
    timed.extend(every(10.0).map(|t| (t + 0.01, Item::Tick { t_ns: (t * 1e9) as u64 })));
    timed.extend(every(2.0).map(|t| (t + 0.01, Item::Judge { t_ns: (t * 1e9) as u64 })));
    timed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut items = vec![target()];
    for w in workloads {
        items.push(Item::Frames { pid: PID, pc: w.pc, frames: vec![frame(w.pc)] });
        items.push(Item::Bucket { pid: PID, bucket: w.pc, stack: vec![w.pc] });
    }
    items.extend(timed.into_iter().map(|(_, item)| item));
    items
}
