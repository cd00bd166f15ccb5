//! From a measured window to the demand: flows admitted, flows dropped, flows offered.
//! Takes the same samples and losses as `state`, live or replayed; no I/O, and bounded memory.

use std::collections::HashMap;

use ctwatch_common::Cause;
use ctwatch_common::slot::SlotKind;

use super::demand::{Residence, Service};
use super::distinct::Distinct;
use crate::listing::{Listing, ServiceEntries};
use crate::model::{
    Address, Direction, Flow, Loss, NetnsId, Protocol, Sample, SlotSample, TableEntry, TimeoutKind, Timeouts,
};

/// Share of the window before dropped flows count as new: until then they may be retries.
const SETTLING: f64 = 1.0 / 3.0;

type Key = (u8, u16);

/// What the counters of one netns said at one time.
#[derive(Clone, Debug, Default)]
struct Totals {
    at: f64,
    inserts: HashMap<Key, u64>,
    refused: HashMap<(Key, bool), u64>,
    evicted: HashMap<Key, u64>,
}

impl Totals {
    fn add(&mut self, slot: &SlotSample) {
        let key = (slot.key.proto, slot.key.port);
        match slot.key.decode() {
            Some(SlotKind::Flows) => {
                *self.inserts.entry(key).or_default() += slot.count.saturating_sub(slot.failed);
            }
            Some(SlotKind::Loss { cause: Cause::TableFull, loopback, attributed: true }) => {
                *self.refused.entry((key, loopback)).or_default() += slot.count;
            }
            Some(SlotKind::Loss { cause: Cause::Evicted | Cause::GcEvicted, attributed: true, .. }) => {
                *self.evicted.entry(key).or_default() += slot.count;
            }
            _ => {}
        }
    }
}

/// A window, while it is watched.
#[derive(Debug)]
pub struct Measure {
    netns: NetnsId,
    counts_flows: bool,
    /// Where flows aren't counted: how many came each second, by the timeouts of those that are there.
    entered: HashMap<Key, f64>,
    window_s: f64,
    first: Option<Totals>,
    /// From here on, a refused tuple that was not refused before is a new flow.
    settled: Option<Totals>,
    last: Totals,
    /// What no slot of a later sample holds.
    retired: Totals,
    elapsed: f64,
    lost_events: u64,
    refused: Distinct<(Key, bool)>,
    census: Listing,
    /// Flows that were refused at first and got in since things had settled.
    got_in: HashMap<(Key, bool), f64>,
}

/// What a window said of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    admitted: f64,
    offered: f64,
    refused: f64,
    evicted: f64,
}

impl Measure {
    /// Nothing seen yet. The timeouts are those in force in that netns; where no program counts flows, the census alone
    /// has to tell how many come.
    #[must_use]
    pub fn new(netns: NetnsId, window_s: f64, timeouts: Timeouts, counts_flows: bool) -> Self {
        Self {
            netns,
            counts_flows,
            entered: HashMap::new(),
            window_s,
            first: None,
            settled: None,
            last: Totals::default(),
            retired: Totals::default(),
            elapsed: 0.0,
            lost_events: 0,
            refused: Distinct::default(),
            census: Listing::new(timeouts, window_s.ceil() as u32),
            got_in: HashMap::new(),
        }
    }

    /// One loss.
    pub fn loss(&mut self, loss: &Loss) {
        let packet = &loss.packet;
        let (Some(Flow { proto, tuple }), Some(port)) = (packet.flow(), packet.service_port()) else {
            return;
        };
        if loss.cause != Cause::TableFull || packet.netns != self.netns {
            return;
        }
        let service = ((proto.0, port), packet.is_loopback);
        let [sport, dport] = if proto.has_ports() { [tuple.sport, tuple.dport] } else { [0; 2] };
        let hash = tuple_hash(proto.0, tuple.src.into(), tuple.dst.into(), sport, dport);
        self.refused.add(hash, service, self.settled.is_some());
    }

    /// An entry of the table, read when the window is over.
    pub fn entry(&mut self, entry: &TableEntry, direction: Direction) {
        let idle = self.census.add(entry, direction);
        let since_settled = self.last.at - self.settled.as_ref().map_or(self.last.at, |settled| settled.at);
        if f64::from(idle) < since_settled
            && let Some((service, stands_for)) =
                self.refused.find(tuple_hash(entry.proto, entry.src, entry.dst, entry.sport, port_of(entry)))
        {
            *self.got_in.entry(service).or_default() += stands_for;
        }
    }

    /// All counters, at the start of the window and at each tick.
    pub fn sample(&mut self, sample: &Sample) {
        if self.first.is_some() {
            self.elapsed += sample.interval_s;
        }
        let of_netns = |slots: &[SlotSample], totals: &mut Totals| {
            slots
                .iter()
                .filter(|slot| slot.key.netns == self.netns.packed())
                .for_each(|slot| totals.add(slot));
        };
        of_netns(&sample.retired, &mut self.retired);
        let mut totals = Totals { at: self.elapsed, ..self.retired.clone() };
        of_netns(&sample.slots, &mut totals);
        self.lost_events = sample.lost_events.iter().sum();
        if self.settled.is_none() && self.elapsed >= self.window_s * SETTLING && self.first.is_some() {
            self.settled = Some(totals.clone());
        }
        if self.first.is_none() {
            self.first = Some(totals.clone());
        }
        self.last = totals;
    }

    /// The table as it was listed at another time: it stands for all entries.
    pub fn listed(&mut self, census: Listing) {
        self.census = census;
    }

    /// Whether no sample came yet.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.first.is_none()
    }

    /// Timeouts in force.
    #[must_use]
    pub fn timeouts(&self) -> &Timeouts {
        self.census.timeouts()
    }

    /// Length of the window so far, seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.elapsed
    }

    /// Packets refused for want of room.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let at = |totals: &Totals| totals.refused.values().sum::<u64>();
        at(&self.last) - self.first.as_ref().map_or(0, at)
    }

    /// Its services, once the entries are read.
    #[must_use]
    pub fn services(&mut self) -> Vec<Service> {
        let mut found: HashMap<(Key, Direction), Service> = HashMap::new();
        for ((proto, port, direction), collected) in self.census.services() {
            let key = ((*proto, *port), *direction);
            let service = service(key, Some(collected), self.census.look_s());
            let entered: f64 = service.residences.iter().map(|residence| residence.per_s).sum();
            *self.entered.entry(key.0).or_default() += entered;
            found.insert(key, service);
        }
        let mut keys: Vec<Key> = self.last.inserts.keys().copied().collect();
        keys.extend(self.last.refused.keys().map(|(key, _)| *key));
        if !self.counts_flows {
            keys.extend(self.entered.keys());
        }
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            self.share_out(key, &mut found);
        }
        let mut services: Vec<Service> = found.into_values().collect();
        services.sort_by(|a, b| {
            b.entries.cmp(&a.entries).then((a.proto, a.port, a.direction).cmp(&(
                b.proto,
                b.port,
                b.direction,
            )))
        });
        services
    }

    /// Flow counters know no direction: flows of a port go to its directions as its entries do.
    fn share_out(&self, key: Key, found: &mut HashMap<(Key, Direction), Service>) {
        let census = &self.census;
        let directions = [Direction::Loopback, Direction::In, Direction::Out, Direction::Forwarded];
        let entered = |direction: Direction| {
            let service = found.get(&(key, direction));
            service.map_or(0.0, |service| {
                service.residences.iter().map(|residence| residence.per_s).sum::<f64>()
            })
        };
        let weight = |direction: Direction| {
            entered(direction) + found.get(&(key, direction)).map_or(0.0, |one| f64::from(one.entries) * 1e-6)
        };
        let weights = directions.map(weight);
        let total: f64 = weights.iter().sum();
        for refused_on_loopback in [true, false] {
            let rates = self.rates(key, refused_on_loopback);
            let known: Vec<(Direction, f64)> = directions
                .into_iter()
                .zip(weights)
                .filter(|(direction, weight)| {
                    (*direction == Direction::Loopback) == refused_on_loopback && *weight > 0.0
                })
                .collect();
            let sum: f64 = known.iter().map(|(_, weight)| weight).sum();
            let shares = match (known.is_empty(), total > 0.0) {
                (false, _) => known
                    .into_iter()
                    .map(|(direction, weight)| (direction, weight / sum, weight / total))
                    .collect(),
                // Nothing of it is in the table: all of it is refused, or it is gone already.
                (true, false) => {
                    let direction = if refused_on_loopback { Direction::Loopback } else { Direction::In };
                    vec![(direction, 1.0, if refused_on_loopback { 0.0 } else { 1.0 })]
                }
                (true, true) if rates.refused > 0.0 => {
                    vec![(if refused_on_loopback { Direction::Loopback } else { Direction::In }, 1.0, 0.0)]
                }
                (true, true) => continue,
            };
            for (direction, of_refused, of_admitted) in shares {
                let admitted = self.admitted(key) * of_admitted;
                if admitted + rates.refused == 0.0 {
                    continue;
                }
                let one = found
                    .entry((key, direction))
                    .or_insert_with(|| service((key, direction), None, census.look_s()));
                one.admitted_per_s = admitted;
                one.refused_per_s = rates.refused * of_refused;
                one.offered_per_s = (rates.offered * of_refused).max(admitted);
                add_evicted(one, rates.evicted * of_admitted, census);
                lift_admission_limit(one);
            }
        }
    }

    fn admitted(&self, key: Key) -> f64 {
        if !self.counts_flows {
            return self.entered.get(&key).copied().unwrap_or(0.0);
        }
        let Some(first) = &self.first else { return 0.0 };
        per_s(&self.last.inserts, &first.inserts, &key, self.last.at - first.at)
    }

    fn rates(&self, key: Key, loopback: bool) -> Rates {
        let Some(first) = &self.first else { return Rates::default() };
        let seconds = self.last.at - first.at;
        let refused = per_s(&self.last.refused, &first.refused, &(key, loopback), seconds);
        let evicted = per_s(&self.last.evicted, &first.evicted, &key, seconds);
        let admitted = self.admitted(key);
        Rates { admitted, refused, evicted, offered: self.offered(key, loopback, admitted, refused) }
    }

    /// Flows that would come if none was refused: those refused for the first time, and those that got in without
    /// having been refused before.
    fn offered(&self, key: Key, loopback: bool, admitted: f64, refused: f64) -> f64 {
        let Some(settled) = &self.settled else { return admitted + refused };
        let seconds = self.last.at - settled.at;
        let refused_since = per_s(&self.last.refused, &settled.refused, &(key, loopback), seconds);
        if refused_since <= 0.0 {
            return admitted;
        }
        if self.lost_events > 0 {
            // Tuples are missing: each refused packet may be a flow of its own.
            return admitted + refused;
        }
        let admitted_since = if self.counts_flows {
            per_s(&self.last.inserts, &settled.inserts, &key, seconds)
        } else {
            admitted
        };
        let tuples = self.refused.since_settled(&(key, loopback)) / seconds;
        let got_in = self.got_in.get(&(key, loopback)).copied().unwrap_or(0.0) / seconds;
        tuples + (admitted_since - got_in).max(0.0)
    }
}

fn per_s<K: std::hash::Hash + Eq>(
    last: &HashMap<K, u64>,
    first: &HashMap<K, u64>,
    key: &K,
    seconds: f64,
) -> f64 {
    let of = |totals: &HashMap<K, u64>| totals.get(key).copied().unwrap_or(0);
    if seconds > 0.0 { of(last).saturating_sub(of(first)) as f64 / seconds } else { 0.0 }
}

fn service((key, direction): (Key, Direction), collected: Option<&ServiceEntries>, look_s: u32) -> Service {
    let residences = collected.map_or_else(Vec::new, |collected| {
        let residence = |(phase, seen): (&TimeoutKind, &crate::listing::TimeoutBucket)| Residence {
            phase: *phase,
            timeout: seen.timeout,
            entries: seen.entries,
            idle: seen.idle.clone(),
            // The longer look is the better one, unless the flows began meanwhile.
            per_s: (f64::from(seen.entered) / f64::from(look_s.min(seen.timeout).max(1)))
                .max(f64::from(seen.entries) / f64::from(seen.timeout.max(1))),
        };
        collected.phases.iter().map(residence).collect()
    });
    Service {
        proto: Protocol(key.0),
        port: key.1,
        direction,
        entries: collected.map_or(0, ServiceEntries::entries),
        admitted_per_s: 0.0,
        offered_per_s: 0.0,
        refused_per_s: 0.0,
        backlog_factor: 1.0,
        residences,
        pairs: collected.and_then(ServiceEntries::pairs),
    }
}

/// Raises arrivals in each state to what they would be if all flows got in. A full table admits flows in bursts, as
/// entries expire, so the window alone does not tell how many it admits: the entries that wait in the table do, unless
/// most of them are long-lived.
fn lift_admission_limit(service: &mut Service) {
    if service.refused_per_s <= 0.0 {
        return;
    }
    let waits = || service.residences.iter().filter(|residence| residence.phase.expires_unrefreshed());
    let waiting: u32 = waits().map(|residence| residence.entries).sum();
    let got_in = if waiting * 2 >= service.entries {
        waits().map(|residence| residence.per_s).sum()
    } else {
        service.admitted_per_s
    };
    if got_in > 0.0 {
        service.backlog_factor = (service.offered_per_s / got_in).max(1.0);
    }
    for residence in &mut service.residences {
        residence.per_s *= service.backlog_factor;
    }
}

/// Entries that were pushed out would be waiting for their timeout still.
fn add_evicted(service: &mut Service, evicted: f64, census: &Listing) {
    if evicted <= 0.0 {
        return;
    }
    let phase = match service.proto {
        Protocol::TCP => TimeoutKind::SynSent,
        proto => TimeoutKind::of(proto, 0, false),
    };
    let Some(timeout) = census.timeout(phase) else { return };
    match service.residences.iter_mut().find(|residence| residence.phase == phase) {
        Some(residence) => residence.per_s += evicted,
        None => service.residences.push(Residence {
            phase,
            timeout,
            entries: 0,
            idle: Default::default(),
            per_s: evicted,
        }),
    }
}

/// A hash of an original tuple; ports are 0 where the protocol has none.
fn tuple_hash(proto: u8, src: Address, dst: Address, sport: u16, dport: u16) -> u64 {
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::new().hash_one((proto, src, dst, sport, dport))
}

const fn port_of(entry: &TableEntry) -> u16 {
    if has_ports(entry.proto) { entry.port } else { 0 }
}

const fn has_ports(proto: u8) -> bool {
    Protocol(proto).has_ports()
}

#[cfg(test)]
mod tests;
