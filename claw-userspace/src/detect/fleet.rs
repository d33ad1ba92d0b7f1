//! Many series at once, each with its own [`Trend`]; what they say together is
//! held against chance.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use rustc_hash::FxHashMap;

use super::{
    fdr,
    parity::service,
    series::{Point, Subject},
    trend::{Change, Layers, Notes, Profile, Standing, State, Trend},
};

/// Healthy profiles by subject.
pub type Profiles = BTreeMap<Subject, Arc<Profile>>;

#[derive(Debug)]
struct One {
    subject: Subject,
    process: u32,
    trend: Trend,
    live: f64,
    last_t: f64,
    points: u64,
}

#[derive(Debug, Default)]
pub struct Fleet {
    ids: FxHashMap<Subject, u32>,
    all: Vec<One>,
    processes: FxHashMap<String, u32>,
    /// In use by each process, all its series together.
    totals: Vec<f64>,
    profiles: Profiles,
    layers: Layers,
    /// See [`Fleet::limits`]; empty after a new value.
    limits: OnceLock<Vec<f64>>,
}

/// What is found of one series.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    pub subject: &'a Subject,
    pub standing: &'a Standing,
    /// See [`Trend::keeps`].
    pub kept: Option<[f32; 2]>,
    pub state: State,
    /// Time of the first value and of the verdict, s in the series' own time.
    pub t0: f64,
    pub detected_at: f64,
    pub live: f64,
    /// Series of the same process.
    pub series: usize,
}

/// What one series did.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub subject: &'a Subject,
    pub points: u64,
    pub from: f64,
    pub to: f64,
    pub judged: bool,
    pub baseline: bool,
    pub notes: Notes,
}

impl Fleet {
    pub fn new(profiles: Profiles, layers: Layers) -> Self {
        Self { profiles, layers, ..Self::default() }
    }

    /// A handle to the series of a subject.
    pub fn id(&mut self, subject: &Subject) -> u32 {
        if let Some(id) = self.ids.get(subject) {
            return *id;
        }
        let id = self.all.len() as u32;
        let next = self.processes.len() as u32;
        let process = *self.processes.entry(subject.process.clone()).or_insert(next);
        if process == next {
            self.totals.push(0.0);
        }
        self.ids.insert(subject.clone(), id);
        self.limits.take();
        let profile = self.profile(subject);
        let trend = Trend::new(profile, self.layers);
        let subject = subject.clone();
        self.all.push(One { subject, process, trend, live: 0.0, last_t: 0.0, points: 0 });
        id
    }

    /// That of the subject itself, else that of its service.
    fn profile(&self, subject: &Subject) -> Option<Arc<Profile>> {
        let of_service =
            || Subject { process: service(&subject.process).to_owned(), ..subject.clone() };
        self.profiles.get(subject).or_else(|| self.profiles.get(&of_service())).cloned()
    }

    pub fn standing(&self, subject: &Subject) -> Option<&Standing> {
        let id = self.ids.get(subject)?;
        self.all.get(*id as usize)?.trend.standing()
    }

    /// Times of one series must not go back.
    pub fn put(&mut self, id: u32, p: &Point) -> Option<Change> {
        let one = self.all.get_mut(id as usize)?;
        let total = self.totals.get_mut(one.process as usize)?;
        *total += p.live - one.live;
        one.live = p.live;
        one.last_t = p.t;
        one.points += 1;
        self.limits.take();
        one.trend.put(p, *total)
    }

    /// Time and size of the latest value; `None` before the first.
    pub fn last(&self, id: u32) -> Option<(f64, f64)> {
        let one = self.all.get(id as usize).filter(|o| o.points > 0)?;
        Some((one.last_t, one.live))
    }

    /// Series of each process, and the largest probability of chance that is a
    /// discovery among them.
    fn limits(&self) -> (Vec<usize>, &[f64]) {
        let mut members = vec![0usize; self.totals.len()];
        for one in &self.all {
            members[one.process as usize] += 1;
        }
        let limits = self.limits.get_or_init(|| {
            let mut chances: Vec<Vec<f64>> = vec![Vec::new(); self.totals.len()];
            for one in &self.all {
                if let Some(s) = one.trend.standing().filter(|s| s.state == State::Leak) {
                    chances[one.process as usize].push(f64::from(s.p));
                }
            }
            let each = chances.iter_mut().zip(&members);
            each.map(|(p, n)| fdr::threshold(p, *n, fdr::FALSE_SHARE)).collect()
        });
        (members, limits)
    }

    /// Leaks and suspects, false discoveries held down among the series of each
    /// process: worst first.
    pub fn found(&self) -> Vec<Found<'_>> {
        let (members, limits) = self.limits();
        let mut found: Vec<Found<'_>> = Vec::new();
        for one in &self.all {
            let Some(s) = one.trend.standing() else { continue };
            let t0 = one.trend.t0();
            let sure = match s.state {
                State::Leak => s.since_p(limits[one.process as usize]),
                State::Suspect => None,
            };
            found.push(Found {
                subject: &one.subject,
                standing: s,
                kept: one.trend.keeps(),
                state: if sure.is_some() { State::Leak } else { State::Suspect },
                t0,
                detected_at: t0 + f64::from(sure.unwrap_or(s.at_s)),
                live: one.live,
                series: members[one.process as usize],
            });
        }
        found.sort_by(|a, b| {
            (b.state.cmp(&a.state))
                .then(b.standing.slope.total_cmp(&a.standing.slope))
                .then_with(|| a.subject.cmp(b.subject))
        });
        found
    }

    pub fn seen(&self) -> Vec<Seen<'_>> {
        let mut seen: Vec<Seen<'_>> = self
            .all
            .iter()
            .map(|o| Seen {
                subject: &o.subject,
                points: o.points,
                from: o.trend.t0(),
                to: o.last_t,
                judged: o.trend.judged(),
                baseline: o.trend.has_profile(),
                notes: o.trend.notes,
            })
            .collect();
        seen.sort_by(|a, b| a.subject.cmp(b.subject));
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Grows by 1 % of its first size a minute, or stays; 30 s apart.
    fn grow(fleet: &mut Fleet, id: u32, rate: f64, steps: std::ops::Range<u32>) {
        for i in steps {
            let t = f64::from(i) * 30.0;
            fleet.put(
                id,
                &Point { uptime: 1e6 + t, ..Point::new(t, 1e8 * (1.0 + rate * t / 60.0)) },
            );
        }
    }

    #[test]
    fn what_is_found_follows_each_value() {
        let mut fleet = Fleet::default();
        let of = |site: &str| Subject {
            process: "api".to_owned(),
            tenant: "-".to_owned(),
            site: site.to_owned(),
        };
        let id = fleet.id(&of("a"));
        grow(&mut fleet, id, 0.0, 0..60);
        assert!(fleet.found().is_empty());
        grow(&mut fleet, id, 0.01, 60..240);
        let found = fleet.found();
        assert!(found.len() == 1 && found[0].state == State::Leak, "{found:?}");
        for i in 0..9 {
            fleet.id(&of(&format!("quiet {i}")));
        }
        assert_eq!(fleet.found()[0].series, 10, "all series of the process count");
    }
}
