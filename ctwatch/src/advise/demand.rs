//! Little's law over what was measured: how many entries the table would hold, now and after a change.
//! Pure arithmetic; it knows nothing of how numbers are measured or shown.

use std::collections::BTreeMap;

use super::gc::Gc;
use super::target::ServiceTarget;
use super::whatif::Changes;
use crate::contract::{optional_rounded, rounded};
use crate::model::{Direction, Protocol, TimeoutHistogram, TimeoutKind};

/// Entries of one service in one state.
#[derive(Clone, Debug)]
pub struct Residence {
    /// The timeout they are subject to.
    pub phase: TimeoutKind,
    /// The timeout in force, seconds.
    pub timeout: u32,
    /// Entries in it.
    pub entries: u32,
    /// Entries by the seconds since their timeout was last refreshed.
    pub idle: TimeoutHistogram,
    /// Entries that enter it each second if no flow is dropped.
    pub per_s: f64,
    /// None of these flows got in, so how long they would stay isn't known: the timeout that a first packet gets stands
    /// for it.
    pub assumed: bool,
}

impl Residence {
    /// Whether its entries mostly wait for the timeout.
    const fn waits(&self) -> bool {
        self.assumed || self.phase.expires_unrefreshed()
    }

    /// Entries in it once things are steady, with this timeout.
    fn entries_with(&self, timeout: u32) -> f64 {
        if self.waits() {
            // Each one waits for the whole timeout: what comes in each second, times that.
            return self.per_s * f64::from(timeout);
        }
        if timeout >= self.timeout {
            // Those that the present timeout ends would stay on.
            let ending = self.idle_from(self.timeout.saturating_sub(Self::END)) / f64::from(Self::END);
            return f64::from(self.entries) + ending * f64::from(timeout - self.timeout);
        }
        (f64::from(self.entries) - self.idle_from(timeout)).max(0.0)
    }

    /// Entries within this many seconds of their timeout are about to expire.
    const END: u32 = 10;

    fn idle_from(&self, seconds: u32) -> f64 {
        let from = f64::from(seconds);
        let part = |(low, high, entries): (f64, f64, u32)| {
            f64::from(entries) * ((high - from.max(low)) / (high - low)).clamp(0.0, 1.0)
        };
        self.idle.buckets().map(part).sum()
    }
}

/// The flows of one service in one direction.
#[derive(Clone, Debug)]
pub struct Service {
    /// The protocol.
    pub proto: Protocol,
    /// Service port; for ICMP `type << 8 | code`.
    pub port: u16,
    /// Their direction.
    pub direction: Direction,
    /// Entries when listed.
    pub entries: u32,
    /// Flows that got an entry, each second.
    pub admitted_per_s: f64,
    /// Offered load: flows that would come each second if none was dropped.
    pub offered_per_s: f64,
    /// Packets dropped each second.
    pub refused_per_s: f64,
    /// Its entries by state.
    pub residences: Vec<Residence>,
    /// Offered flows per admitted flow.
    pub backlog_factor: f64,
    /// Number of source and destination address pairs, if there are few.
    pub pairs: Option<u32>,
    /// Entries that came before the window and aren't followed by others: what it would need if they had kept coming.
    pub earlier: Option<f64>,
    /// How sure its rate and lifetimes are.
    pub basis: Basis,
}

/// What a service's need rests on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Flows that were counted, and entries that were looked at.
    #[default]
    Measured,
    /// Flows that never got in, by the shortest time their entries would stay.
    AtLeast,
    /// Flows that never got in, by the timeout of their first packet: more if they are answered and last, less if refused.
    Assumed,
    /// Refused packets, each of which may be a flow of its own: some may be retries.
    AtMost,
}

impl Service {
    /// The timeout that stands for a lifetime that isn't known, seconds.
    #[must_use]
    pub fn assumed_lifetime(&self) -> Option<(TimeoutKind, u32)> {
        let assumed = self.residences.iter().find(|residence| residence.assumed)?;
        Some((assumed.phase, assumed.timeout))
    }

    /// Flows each second at which those of its entries came that wait for their timeout, if these tell its demand: it is refused,
    /// and most entries are of that kind. More than come now if it was busier within the last timeout.
    #[must_use]
    pub fn entered_per_s(&self) -> Option<f64> {
        (self.refused_per_s > 0.0 && self.waiting_entries() * 2 >= self.entries)
            .then(|| self.waiting().map(|one| one.per_s).sum())
    }

    /// Its entries that wait for their timeout.
    #[must_use]
    pub fn waiting_entries(&self) -> u32 {
        self.waiting().map(|one| one.entries).sum()
    }

    fn waiting(&self) -> impl Iterator<Item = &Residence> {
        self.residences.iter().filter(|one| one.phase.expires_unrefreshed() && !one.assumed)
    }

    /// The target that means this service alone.
    #[must_use]
    pub const fn target(&self) -> ServiceTarget {
        ServiceTarget { port: self.port, proto: self.proto, direction: Some(self.direction) }
    }

    /// Its steady state: all flows admitted, with these changes, at this multiple of the present rate.
    fn steady(&self, changes: &Changes, ephemeral: Option<u32>, times: f64) -> Steady {
        let mut steady = Steady::default();
        for (residence, timeout, rate) in self.residences_with(changes, times) {
            steady.add(residence, timeout, rate);
        }
        let entries = self.distinct(steady.entries, ephemeral);
        if entries < steady.entries {
            steady.scale(entries / steady.entries);
        }
        steady
    }

    /// Its entries after this many seconds of arrivals into an empty table without garbage collection.
    fn gathered(&self, changes: &Changes, ephemeral: Option<u32>, gc: &Gc, seconds: f64) -> f64 {
        let of = |(residence, timeout, rate): (&Residence, u32, f64)| {
            if !residence.waits() {
                return residence.entries_with(timeout) * rate;
            }
            let expired_for = (seconds - f64::from(timeout)).max(0.0);
            residence.per_s * rate * (seconds - expired_for + gc.seconds_kept(expired_for))
        };
        self.distinct(self.residences_with(changes, changes.times).map(of).sum(), ephemeral)
    }

    /// Its residences with these changes: the timeout of each, and the factor on its arrivals.
    fn residences_with<'a>(
        &'a self,
        changes: &'a Changes,
        times: f64,
    ) -> impl Iterator<Item = (&'a Residence, u32, f64)> {
        let covers = |target: &ServiceTarget| target.covers(self.proto, self.port, self.direction);
        let untracked = changes.notrack.iter().any(covers);
        let reuse = changes.keepalive.iter().filter(|(target, _)| covers(target));
        let reuse = reuse.map(|(_, requests)| f64::from((*requests).max(1))).fold(1.0, f64::max);
        self.residences.iter().filter(move |_| !untracked).map(move |residence| {
            // Protocols without a state of their own here have other sysctls than `generic`.
            let is_of_another = residence.assumed && residence.phase == TimeoutKind::Generic;
            let changed = changes.timeouts.get(&residence.phase).filter(|_| !is_of_another);
            let timeout = changed.copied().unwrap_or(residence.timeout);
            // A connection that serves more requests lasts longer: as many are open at once as before.
            let rate = match (residence.waits(), residence.phase.is_refreshed()) {
                (true, _) => times / reuse,
                (false, true) => times * self.backlog_factor,
                (false, false) => times * self.backlog_factor / reuse,
            };
            (residence, timeout, rate)
        })
    }

    /// How many different entries its connections can leave.
    fn distinct(&self, connections: f64, ephemeral: Option<u32>) -> f64 {
        match (self.direction, self.pairs, ephemeral) {
            (Direction::Loopback | Direction::Out, Some(pairs), Some(ports)) => {
                distinct(self.proto, connections, f64::from(pairs) * f64::from(ports))
            }
            _ => connections,
        }
    }
}

/// How many different entries these connections leave, given the number of source ports. A port that is reused while
/// its entry still waits takes that entry's place, and connect() takes ports of one parity as long as there are
/// any (__inet_hash_connect, net/ipv4/inet_hashtables.c).
fn distinct(proto: Protocol, connections: f64, ports: f64) -> f64 {
    let of_one_parity = ports / 2.0;
    if proto == Protocol::TCP && connections < of_one_parity {
        of_one_parity * (1.0 - (-connections / of_one_parity).exp())
    } else {
        connections.min(ports)
    }
}

/// Entries in steady state, and the rate at which they expire.
#[derive(Clone, Debug, Default)]
struct Steady {
    /// Not yet expired.
    entries: f64,
    /// How many expire each second.
    expire_per_s: f64,
    /// Those of them whose lifetime is assumed.
    assumed: f64,
    /// Entries by timeout, and whether they only wait for it.
    mix: BTreeMap<(u32, bool), f64>,
}

impl Steady {
    fn add(&mut self, residence: &Residence, timeout: u32, rate: f64) {
        let entries = residence.entries_with(timeout) * rate;
        let waits = residence.waits();
        self.entries += entries;
        if residence.assumed {
            self.assumed += entries;
        }
        if waits {
            self.expire_per_s += residence.per_s * rate;
        }
        *self.mix.entry((timeout, waits)).or_default() += entries;
    }

    fn plus(mut self, other: Self) -> Self {
        self.entries += other.entries;
        self.expire_per_s += other.expire_per_s;
        self.assumed += other.assumed;
        for (key, entries) in other.mix {
            *self.mix.entry(key).or_default() += entries;
        }
        self
    }

    fn scale(&mut self, by: f64) {
        self.entries *= by;
        self.expire_per_s *= by;
        self.assumed *= by;
        self.mix.values_mut().for_each(|entries| *entries *= by);
    }

    /// Expired entries that still count, if gc comes this often: just before it does, and on average.
    fn lag(&self, gc: &Gc, interval: f64) -> Lag {
        let per_s = gc.reaped_per_s;
        let kept = gc.seconds_kept(interval);
        let mean = if per_s * interval < 1e-6 { interval / 2.0 } else { (1.0 - kept / interval) / per_s };
        Lag { peak: self.expire_per_s * kept, mean: self.expire_per_s * mean }
    }
}

/// Expired entries that still count.
#[derive(Clone, Copy, Debug)]
struct Lag {
    peak: f64,
    mean: f64,
}

/// A measured netns: what a what-if starts from.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    /// Its services.
    pub services: Vec<Service>,
    /// nf_conntrack_max; 0 is unlimited.
    pub max: u32,
    /// Source ports a client of this host can have to one destination.
    pub ephemeral: Option<u32>,
    /// How expired entries go.
    pub gc: Gc,
    /// Of the entries that are there, those that early_drop leaves alone; none if unknown.
    pub unevictable: Option<u32>,
}

/// What the table would be.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Outcome {
    /// Entries on average, if there is room for all.
    #[serde(serialize_with = "rounded")]
    pub needed: f64,
    /// Entries just before gc collects the expired ones: the room it takes.
    #[serde(serialize_with = "rounded")]
    pub peak: f64,
    /// Entries before gc comes for the first time, if this demand begins after an idle minute; none unless that is more
    /// than `peak`.
    #[serde(serialize_with = "optional_rounded")]
    pub after_idle: Option<f64>,
    /// nf_conntrack_max then; 0 is unlimited.
    pub max: u32,
    /// New flows dropped each second.
    #[serde(serialize_with = "rounded")]
    pub refused_per_s: f64,
    /// The multiple of the rate at which the table overflows; none if no rate fills it.
    #[serde(serialize_with = "optional_rounded")]
    pub full_at_times: Option<f64>,
    /// Of `needed`, what rests on an assumed lifetime, since none of those flows got in.
    #[serde(serialize_with = "rounded")]
    pub assumed: f64,
}

impl Basis {
    /// Put before a number of entries.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Measured => "",
            Self::AtLeast => "at least ",
            Self::Assumed => "about ",
            Self::AtMost => "at most ",
        }
    }
}

impl Outcome {
    /// Entries it would hold on average.
    #[must_use]
    pub fn entries(&self) -> f64 {
        if self.max == 0 { self.needed } else { self.needed.min(f64::from(self.max)) }
    }

    /// Whether flows would still be refused.
    #[must_use]
    pub fn overflows(&self) -> bool {
        self.max != 0 && self.peak > f64::from(self.max)
    }

    /// Whether it can be promised that no flow is refused: it fits, and how long each one stays is known.
    #[must_use]
    pub fn fits_for_certain(&self) -> bool {
        self.max == 0 || (!self.overflows() && self.assumed <= 0.0)
    }

    /// Whether flows would be refused before gc comes for the first time, though not later.
    #[must_use]
    pub fn overflows_after_idle(&self) -> bool {
        self.max != 0 && self.after_idle.is_some_and(|entries| entries > f64::from(self.max))
    }
}

impl Demand {
    /// Each service's entries with these changes, once things are steady: its share of what gc leaves included.
    pub fn needs<'a>(&'a self, changes: &'a Changes) -> impl Iterator<Item = (&'a Service, f64)> {
        let total = self.steady(changes, 1.0);
        let lag = total.lag(&self.gc, self.gc.interval(&total.mix)).mean;
        self.services.iter().map(move |service| {
            let steady = service.steady(changes, self.ephemeral, changes.times);
            let part = if total.expire_per_s > 0.0 { steady.expire_per_s / total.expire_per_s } else { 0.0 };
            (service, steady.entries + lag * part)
        })
    }

    /// Whether nothing comes: the entries that wait in the table are left from an earlier time.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let comes = |service: &Service| service.offered_per_s > 0.0 || service.refused_per_s > 0.0;
        !self.services.iter().any(comes) && self.earlier().is_some()
    }

    /// What the entries of earlier flows would need if these had kept coming; none if there are none.
    #[must_use]
    pub fn earlier(&self) -> Option<f64> {
        self.services.iter().filter_map(|service| service.earlier).reduce(|sum, one| sum + one)
    }

    /// What the need as a whole rests on.
    #[must_use]
    pub fn basis(&self) -> Basis {
        let others =
            self.services.iter().map(|service| service.basis).filter(|basis| *basis != Basis::Measured);
        let both = |a: Basis, b: Basis| if a == b { a } else { Basis::Assumed };
        others.reduce(both).unwrap_or_default()
    }

    fn steady(&self, changes: &Changes, times: f64) -> Steady {
        let of = |service: &Service| service.steady(changes, self.ephemeral, changes.times * times);
        self.services.iter().map(of).fold(Steady::default(), Steady::plus)
    }

    /// Seconds from one run of gc to the next, at the present demand.
    #[must_use]
    pub fn gc_interval(&self) -> f64 {
        self.gc.interval(&self.steady(&Changes::default(), 1.0).mix)
    }

    /// The table with these changes.
    #[must_use]
    pub fn after(&self, changes: &Changes) -> Outcome {
        let max = changes.max.unwrap_or(self.max);
        let steady = self.steady(changes, 1.0);
        let interval = self.gc.interval(&steady.mix);
        let lag = steady.lag(&self.gc, interval);
        let (needed, peak, limit) = (steady.entries + lag.mean, steady.entries + lag.peak, f64::from(max));
        let peak_at = |times: f64| {
            let steady = self.steady(changes, times);
            steady.entries + steady.lag(&self.gc, interval).peak
        };
        let offered: f64 = self.services.iter().map(|service| service.offered_per_s * changes.times).sum();
        let refused_per_s = if max != 0 && needed > limit { offered * (1.0 - limit / needed) } else { 0.0 };
        let full_at_times = (max != 0).then(|| rate_that_fills(peak_at, limit)).flatten();
        let after_idle = self.after_idle(changes).filter(|entries| *entries > peak);
        Outcome { needed, peak, after_idle, max, refused_per_s, full_at_times, assumed: steady.assumed }
    }

    /// Entries when gc comes for the first time, if all was idle before; none where it always comes as often.
    fn after_idle(&self, changes: &Changes) -> Option<f64> {
        let seconds = self.gc.idle_interval()?;
        let of = |service: &Service| service.gathered(changes, self.ephemeral, &self.gc, seconds);
        Some(self.services.iter().map(of).sum())
    }
}

/// The multiple of the rate at which this many entries are reached; none if never.
fn rate_that_fills(at: impl Fn(f64) -> f64, limit: f64) -> Option<f64> {
    const MOST: f64 = 1e6;
    if at(MOST) < limit {
        return None;
    }
    let (mut low, mut high) = (0.0, MOST);
    // `at` only grows: halve on a logarithmic scale once off zero.
    for _ in 0..80 {
        let middle = if low == 0.0 { high / 1_000.0 } else { f64::sqrt(low * high) };
        if at(middle) < limit {
            low = middle
        } else {
            high = middle
        }
        if low == 0.0 && high < 1e-6 {
            return Some(0.0);
        }
    }
    Some(high)
}

#[cfg(test)]
mod tests;
