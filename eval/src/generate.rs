//! Realistic series with known truth: what a Go or CPython service has in use
//! over a day or two, and what a detector would be shown of it.

use claw_ebpf::detect::series::Point;

use crate::random::Random;

pub const MIB: f64 = 1_048_576.0;

/// What a service does besides its work; one word for the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    Quiet,
    Diurnal,
    Bursts,
    Cache,
    Lru,
    Steps,
    Restarts,
    Walk,
    Mixed,
}

pub const SCENARIOS: [Scenario; 9] = [
    Scenario::Quiet,
    Scenario::Diurnal,
    Scenario::Bursts,
    Scenario::Cache,
    Scenario::Lru,
    Scenario::Steps,
    Scenario::Restarts,
    Scenario::Walk,
    Scenario::Mixed,
];

/// Ranges that parameters are drawn from: those of tuning, and wider ones that
/// tuning never saw.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    pub gogc: (f64, f64),
    /// Time between two collections, s.
    pub gc_s: (f64, f64),
    pub noise: (f64, f64),
    pub diurnal: (f64, f64),
    pub load_share: (f64, f64),
    pub cache: (f64, f64),
    pub cache_s: (f64, f64),
    pub burst: (f64, f64),
    pub burst_s: (f64, f64),
    pub step: (f64, f64),
    pub walk: (f64, f64),
    pub interval_s: &'static [f64],
    /// Shares of services whose load and uptime are known, whose collections
    /// are marked.
    pub known: f64,
    pub marked: f64,
}

pub const TUNE: Ranges = Ranges {
    gogc: (0.5, 1.0),
    gc_s: (3.0, 90.0),
    noise: (0.003, 0.02),
    diurnal: (0.1, 0.5),
    load_share: (0.1, 0.4),
    cache: (0.1, 0.8),
    cache_s: (600.0, 10_800.0),
    burst: (0.1, 1.0),
    burst_s: (120.0, 1800.0),
    step: (0.05, 0.4),
    walk: (0.005, 0.02),
    interval_s: &[10.0, 30.0, 60.0],
    known: 0.7,
    marked: 0.3,
};

pub const WIDE: Ranges = Ranges {
    gogc: (0.25, 2.0),
    gc_s: (0.5, 120.0),
    noise: (0.001, 0.03),
    diurnal: (0.05, 0.7),
    load_share: (0.05, 0.5),
    cache: (0.05, 1.2),
    cache_s: (300.0, 18_000.0),
    burst: (0.05, 1.5),
    burst_s: (60.0, 3600.0),
    step: (0.02, 0.6),
    walk: (0.002, 0.025),
    interval_s: &[5.0, 10.0, 15.0, 30.0, 60.0, 120.0],
    known: 0.7,
    marked: 0.3,
};

#[derive(Clone, Copy, Debug)]
pub struct Leak {
    /// Percent of the base level per minute.
    pub rate: f64,
    /// s.
    pub onset: f64,
}

#[derive(Clone, Debug)]
pub struct Series {
    pub scenario: Scenario,
    pub leak: Option<Leak>,
    pub seconds: f64,
    pub points: Vec<Point>,
    /// A healthy run of the same service.
    pub baseline: Vec<Point>,
}

/// Fixed traits of a service.
#[derive(Clone, Debug)]
struct Service {
    base: f64,
    go: bool,
    gogc: f64,
    gc_s: f64,
    noise: f64,
    diurnal: f64,
    phase: f64,
    load_share: f64,
    mean_load: f64,
    cache: f64,
    cache_s: f64,
    lru: bool,
    burst: f64,
    burst_s: f64,
    bursts_per_day: f64,
    step: f64,
    steps_per_day: f64,
    restarts_per_day: f64,
    walk: f64,
    interval: f64,
    known_load: bool,
    known_uptime: bool,
    marked: bool,
    gaps_per_day: f64,
    limit: f64,
}

impl Service {
    fn draw(r: &mut Random, ranges: &Ranges, scenario: Scenario) -> Self {
        use Scenario as S;
        let has = |s: Scenario| scenario == s || scenario == S::Mixed;
        let some = |r: &mut Random, on: bool, range| if on { r.within(range) } else { 0.0 };
        let go = r.chance(0.6);
        Self {
            base: r.log_within((20.0 * MIB, 4096.0 * MIB)),
            go,
            gogc: r.within(ranges.gogc),
            gc_s: r.log_within(ranges.gc_s),
            noise: r.within(ranges.noise),
            diurnal: some(r, has(S::Diurnal), ranges.diurnal),
            phase: r.unit(),
            load_share: r.within(ranges.load_share),
            mean_load: r.log_within((5.0, 5000.0)),
            cache: some(r, has(S::Cache) || scenario == S::Lru, ranges.cache),
            cache_s: r.log_within(ranges.cache_s),
            lru: scenario == S::Lru,
            burst: some(r, has(S::Bursts), ranges.burst),
            burst_s: r.log_within(ranges.burst_s),
            bursts_per_day: r.within((2.0, 24.0)),
            step: some(r, has(S::Steps), ranges.step),
            steps_per_day: r.within((1.0, 4.0)),
            restarts_per_day: some(r, has(S::Restarts), (1.0, 5.0)),
            walk: some(r, has(S::Walk), ranges.walk),
            interval: r.pick(ranges.interval_s),
            known_load: r.chance(ranges.known),
            known_uptime: r.chance(ranges.known),
            marked: go && r.chance(ranges.marked),
            gaps_per_day: if r.chance(0.3) { 3.0 } else { 0.0 },
            limit: r.within((3.0, 6.0)),
        }
    }

    /// One run from its start, or from a moment when it has long been running.
    fn run(&self, r: &mut Random, seconds: f64, leak: Option<Leak>) -> Vec<Point> {
        let dt = self.interval;
        let day = |n: f64| n * dt / 86_400.0;
        let fresh = self.cache > 0.0 || self.restarts_per_day > 0.0 || r.chance(0.3);
        let mut uptime = if fresh { 0.0 } else { r.log_within((7200.0, 1e6)) };
        let (mut walk, mut level, mut leaked) = (0.0f64, 0.0, 0.0);
        let (mut burst_until, mut burst_from, mut burst) = (-1.0f64, 0.0, 0.0);
        let (mut wobble, mut gap_until, mut phase) = (0.0f64, 0.0, r.unit());
        let mut points = Vec::with_capacity((seconds / dt) as usize);
        let mut t = 0.0;
        while t < seconds {
            let cycle = (2.0 * std::f64::consts::PI * (t / 86_400.0 + self.phase)).sin();
            // Traffic wobbles about its daily course.
            wobble +=
                -wobble * (dt / 300.0).min(1.0) + 0.05 * (dt / 300.0).sqrt().min(1.0) * r.normal();
            let load = (1.0 + self.diurnal * cycle + wobble).max(0.05);
            if r.chance(day(self.bursts_per_day)) && self.burst > 0.0 && t > burst_until {
                burst = self.burst * r.within((0.5, 1.0));
                burst_from = t;
                burst_until = t + self.burst_s * r.within((0.5, 1.5));
            }
            if self.step > 0.0 && r.chance(day(self.steps_per_day)) {
                level = (level + self.step * r.within((-1.0, 1.0))).clamp(-0.4, 1.0);
            }
            // What drifts comes back within hours.
            walk += -walk * dt / 14_400.0 + self.walk * (dt / 3600.0).sqrt() * r.normal();
            let old = leak.filter(|l| t >= l.onset);
            leaked += old.map_or(0.0, |l| l.rate / 100.0 * dt / 60.0);
            let filled = if self.lru {
                (uptime / self.cache_s / 2.0).min(1.0)
            } else {
                1.0 - (-uptime / self.cache_s).exp()
            };
            let up = |at: f64| ((at - burst_from) / 60.0).clamp(0.0, 1.0);
            let bursting = if t < burst_until { burst * up(t) } else { 0.0 };
            let warm = 1.0 - 0.3 * (-uptime / 60.0).exp();
            let used = (1.0 + level + walk + self.load_share * (load - 1.0) + bursting) * warm
                + self.cache * filled
                + leaked;
            if used > self.limit || r.chance(day(self.restarts_per_day)) {
                (uptime, leaked, burst_until) = (0.0, 0.0, -1.0);
                if self.restarts_per_day > 0.0 {
                    level = 0.0;
                }
            }
            if gap_until <= t && r.chance(day(self.gaps_per_day)) {
                gap_until = t + r.log_within((120.0, 7200.0));
            }
            if t >= gap_until {
                let exact = used * self.base * (1.0 + self.noise * 0.3 * r.normal());
                let mut p = Point::new(t, exact.max(1.0));
                if self.go {
                    phase = (phase + dt / self.gc_s * (0.8 + 0.4 * r.unit())).fract();
                    if self.marked {
                        p.gc = true;
                    } else {
                        p.live *= 1.0 + self.gogc * phase;
                    }
                } else {
                    p.live *= 1.0 + self.noise * r.normal().abs();
                }
                if self.known_load {
                    p.load = self.mean_load * load * (1.0 + 0.03 * r.normal());
                }
                if self.known_uptime {
                    p.uptime = uptime;
                }
                points.push(p);
            }
            t += dt;
            uptime += dt;
        }
        points
    }
}

/// A service of this seed, its run of `hours` and a healthy one of 24 h.
pub fn series(seed: u64, ranges: &Ranges, rate: Option<f64>, hours: f64) -> Series {
    let mut r = Random::new(seed);
    let scenario = r.pick(&SCENARIOS);
    let service = Service::draw(&mut r, ranges, scenario);
    let seconds = hours * 3600.0;
    // A slow leak needs its time to be worth finding.
    let leak = rate.map(|rate| Leak { rate, onset: r.within((0.0, 0.4)) * seconds });
    let points = service.run(&mut r, seconds, leak);
    let baseline = service.run(&mut r, 86_400.0, None);
    Series { scenario, leak, seconds, points, baseline }
}
