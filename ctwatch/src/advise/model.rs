//! Little's law over what was measured: how many entries the table would hold, now and after a change.
//! Pure arithmetic; it knows nothing of how numbers are measured or shown.

use std::collections::BTreeMap;

use super::phase::Phase;
use super::target::{Target, Way};
use super::whatif::Changes;
use crate::event::Remaining;

/// What entries of one service wait for, or talk in.
#[derive(Clone, Debug)]
pub struct Stay {
    /// Whose timeout ends it.
    pub phase: Phase,
    /// The timeout in force, seconds.
    pub timeout: u32,
    /// Entries in it.
    pub entries: u32,
    /// Entries by the seconds since their timeout began anew.
    pub idle: Remaining,
    /// Entries that came into it each second.
    pub per_s: f64,
}

impl Stay {
    /// Entries in it once things are steady, with this timeout.
    fn entries_with(&self, timeout: u32) -> f64 {
        if self.phase.only_waits() {
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

    /// Seconds before the timeout in which those are counted that it is about to end.
    const END: u32 = 10;

    fn idle_from(&self, seconds: u32) -> f64 {
        let from = f64::from(seconds);
        let part = |(low, high, entries): (f64, f64, u32)| {
            f64::from(entries) * ((high - from.max(low)) / (high - low)).clamp(0.0, 1.0)
        };
        self.idle.buckets().map(part).sum()
    }
}

/// The flows of one service by one way.
#[derive(Clone, Debug)]
pub struct Service {
    /// IP protocol number.
    pub proto: u8,
    /// Service port; for ICMP `type << 8 | code`.
    pub port: u16,
    /// The way.
    pub way: Way,
    /// Entries when looked at.
    pub entries: u32,
    /// Flows that got an entry, each second.
    pub admitted_per_s: f64,
    /// Flows that would come if none was refused, each second.
    pub offered_per_s: f64,
    /// Packets refused, each second.
    pub refused_per_s: f64,
    /// How its entries spend their time.
    pub stays: Vec<Stay>,
    /// Pairs of source and destination address, if they are few.
    pub pairs: Option<u32>,
}

impl Service {
    /// The target that means this service alone.
    #[must_use]
    pub const fn target(&self) -> Target {
        Target { port: self.port, proto: self.proto, way: Some(self.way) }
    }

    /// How many times more flows come than get in.
    fn pent_up(&self) -> f64 {
        if self.admitted_per_s > 0.0 { (self.offered_per_s / self.admitted_per_s).max(1.0) } else { 1.0 }
    }

    /// Entries in steady state: all flows admitted, with these changes, at so many times the present rate.
    fn needs(&self, changes: &Changes, ephemeral: Option<u32>, times: f64) -> f64 {
        let untracked =
            changes.notrack.iter().any(|target| target.covers(self.proto, self.port, self.way));
        if untracked {
            return 0.0;
        }
        let reuse = changes
            .keepalive
            .iter()
            .filter(|(target, _)| target.covers(self.proto, self.port, self.way))
            .map(|(_, requests)| f64::from((*requests).max(1)))
            .fold(1.0, f64::max);
        let flows = self.pent_up() * times;
        let stays = self.stays.iter().map(|stay| {
            let timeout = changes.timeouts.get(&stay.phase).copied().unwrap_or(stay.timeout);
            // A connection that serves more requests is there for longer: as many talk at once as before.
            let rate = if stay.phase.is_talking() { flows } else { flows / reuse };
            stay.entries_with(timeout) * rate
        });
        let entries: f64 = stays.sum();
        // A client of this host has so many source ports for each pair of addresses.
        match (self.way, self.pairs, ephemeral) {
            (Way::Loopback | Way::Out, Some(pairs), Some(ports)) => {
                entries.min(f64::from(pairs) * f64::from(ports))
            }
            _ => entries,
        }
    }
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
}

/// What the table would be.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Entries it would hold if it had room for all.
    pub needed: f64,
    /// nf_conntrack_max then; 0 is unlimited.
    pub max: u32,
    /// New flows refused each second.
    pub refused_per_s: f64,
    /// The table overflows at so many times the rate; none if no rate fills it.
    pub full_at_times: Option<f64>,
}

impl Outcome {
    /// Entries it would hold.
    #[must_use]
    pub fn entries(&self) -> f64 {
        if self.max == 0 { self.needed } else { self.needed.min(f64::from(self.max)) }
    }

    /// Whether flows would still be refused.
    #[must_use]
    pub fn overflows(&self) -> bool {
        self.max != 0 && self.needed > f64::from(self.max)
    }
}

impl Demand {
    /// Each service's entries with these changes, once things are steady.
    pub fn needs<'a>(&'a self, changes: &'a Changes) -> impl Iterator<Item = (&'a Service, f64)> {
        self.services.iter().map(|service| (service, service.needs(changes, self.ephemeral, changes.times)))
    }

    /// The table with these changes.
    #[must_use]
    pub fn after(&self, changes: &Changes) -> Outcome {
        let max = changes.max.unwrap_or(self.max);
        let at = |times: f64| -> f64 {
            let needs = |service: &Service| service.needs(changes, self.ephemeral, changes.times * times);
            self.services.iter().map(needs).sum()
        };
        let needed = at(1.0);
        let limit = f64::from(max);
        let offered: f64 = self.services.iter().map(|service| service.offered_per_s * changes.times).sum();
        let refused_per_s =
            if max != 0 && needed > limit { offered * (1.0 - limit / needed) } else { 0.0 };
        Outcome { needed, max, refused_per_s, full_at_times: (max != 0).then(|| rate_that_fills(at, limit)).flatten() }
    }
}

/// At how many times the rate so many entries are reached; none if never.
fn rate_that_fills(at: impl Fn(f64) -> f64, limit: f64) -> Option<f64> {
    const MOST: f64 = 1e6;
    if at(MOST) < limit {
        return None;
    }
    let (mut low, mut high) = (0.0, MOST);
    // `at` only grows: halve on a logarithmic scale once off zero.
    for _ in 0..80 {
        let middle = if low == 0.0 { high / 1_000.0 } else { f64::sqrt(low * high) };
        if at(middle) < limit { low = middle } else { high = middle }
        if low == 0.0 && high < 1e-6 {
            return Some(0.0);
        }
    }
    Some(high)
}

/// Timeouts in force.
pub type Timeouts = BTreeMap<Phase, u32>;

#[cfg(test)]
mod tests;
