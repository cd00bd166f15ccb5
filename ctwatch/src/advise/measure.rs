//! From a measured window to the demand: flows admitted, flows dropped, flows offered.
//! Takes the same samples and losses as `state`, live or replayed; no I/O, and bounded memory.

use std::collections::HashMap;

use ctwatch_common::Cause;
use ctwatch_common::slot::SlotKind;
use jiff::Timestamp;

use super::demand::{Basis, Residence, Service};
use super::distinct::{Distinct, FirstSeen};
use super::refused::{FirstTimeouts, RefusedFlows, new_flows, shown_doublings, try_after};
use crate::listing::{Added, Listing, ServiceEntries};
use crate::model::{
    Address, Direction, Locals, Loss, NetnsId, Protocol, Sample, SlotSample, TableEntry, TimeoutKind,
    Timeouts,
};

/// Share of the window before dropped flows count as new: until then they may be retries.
const SETTLING: f64 = 1.0 / 3.0;
/// A client that tries again does so after a second for the first time (TCP_TIMEOUT_INIT, include/net/tcp.h), give or take
/// what the kernel's timers round up.
const FIRST_RETRY_S: f64 = 1.6;
/// Fewer entries than this say little of how long those last that never got in.
const FEW: u32 = 10;
/// Where so many times more flows would have had to come than did, entries are left from before the window.
const LEFTOVER: f64 = 4.0;

type Key = (Protocol, u16);

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
        let key = (Protocol(slot.key.proto), slot.key.port);
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

/// Entries that are new in the table.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    entries: u32,
    /// So many of them are of flows that were refused at first.
    refused_before: f64,
}

impl Recent {
    /// Which part of those that get in was refused before.
    fn share(self) -> f64 {
        if self.entries == 0 { 0.0 } else { (self.refused_before / f64::from(self.entries)).min(1.0) }
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
    /// When the window began, by the clock that losses have.
    began: Option<Timestamp>,
    lost_events: u64,
    refused: Distinct<(Key, Direction)>,
    /// Where refused packets were going, and between whom.
    refused_flows: RefusedFlows,
    /// The timeouts of first packets that the listing doesn't know.
    first_timeouts: FirstTimeouts,
    census: Listing,
    /// Of the entries listed live, those that a full table can't make room of.
    unevictable: Option<u32>,
    /// Entries that were made since things had settled.
    recent: HashMap<(Key, Direction), Recent>,
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
            began: None,
            lost_events: 0,
            refused: Distinct::default(),
            refused_flows: RefusedFlows::default(),
            first_timeouts: FirstTimeouts::default(),
            census: Listing::new(timeouts, window_s.ceil() as u32),
            unevictable: None,
            recent: HashMap::new(),
        }
    }

    /// Entries that a full table can't make room of, of those that were listed; none if they come from a recording.
    #[must_use]
    pub const fn unevictable(&self) -> Option<u32> {
        self.unevictable
    }

    /// What else is known of the netns: its addresses, which tell where refused flows were going, and timeouts of its own.
    #[must_use]
    pub fn of_netns(mut self, locals: Locals, first_timeouts: FirstTimeouts) -> Self {
        self.refused_flows = RefusedFlows::new(locals);
        self.first_timeouts = first_timeouts;
        self
    }

    /// One loss.
    pub fn loss(&mut self, loss: &Loss) {
        let packet = &loss.packet;
        let (Some(proto), Some(tuple), Some(port)) = (packet.proto, packet.tuple, packet.service_port())
        else {
            return;
        };
        if loss.cause != Cause::TableFull || packet.netns != self.netns {
            return;
        }
        let key = (proto, port);
        let direction = self.refused_flows.add(key, packet, tuple);
        let [sport, dport] = if proto.has_ports() { [tuple.sport, tuple.dport] } else { [0; 2] };
        let hash = tuple_hash(proto, tuple.src.into(), tuple.dst.into(), sport, dport);
        let at = self.began.map_or(0.0, |began| loss.time.duration_since(began).as_secs_f64());
        self.refused.add(hash, (key, direction), at, self.settled.is_some(), FIRST_RETRY_S);
    }

    /// An entry of the table, read when the window is over.
    pub fn entry(&mut self, entry: &TableEntry, direction: Direction) {
        let Added { idle, timeout } = self.census.add(entry, direction);
        *self.unevictable.get_or_insert(0) += u32::from(entry.unevictable);
        let since_settled = self.last.at - self.settled.as_ref().map_or(self.last.at, |settled| settled.at);
        // Those that got in longer ago than entries last are gone: the ones that are left tell of them, too.
        if f64::from(idle) >= since_settled.min(f64::from(timeout.max(1))) {
            return;
        }
        let hash = tuple_hash(entry.proto, entry.src, entry.dst, entry.sport, port_of(entry));
        let recent = self.recent.entry(((entry.proto, entry.port), direction)).or_default();
        recent.entries += 1;
        recent.refused_before += self.refused.got_in(hash).unwrap_or(0.0);
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
            self.began = Some(sample.time);
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
        if self.counts_flows {
            found.values_mut().for_each(without_leftovers);
        }
        let mut services: Vec<Service> = found.into_values().collect();
        // Those that never got in count, too.
        let size = |one: &Service| one.entries.max((one.refused_per_s * f64::from(FEW)) as u32);
        services.sort_by(|a, b| {
            size(b).cmp(&size(a)).then((a.proto, a.port, a.direction).cmp(&(b.proto, b.port, b.direction)))
        });
        services
    }

    /// Flow counters know no direction: flows of a port go to its directions as its entries do, and refused ones as the
    /// packets that were seen.
    fn share_out(&self, key: Key, found: &mut HashMap<(Key, Direction), Service>) {
        let entered = |direction: Direction| {
            let service = found.get(&(key, direction));
            service.map_or(0.0, |service| {
                service.residences.iter().map(|residence| residence.per_s).sum::<f64>()
            })
        };
        let weight = |direction: Direction| {
            entered(direction) + found.get(&(key, direction)).map_or(0.0, |one| f64::from(one.entries) * 1e-6)
        };
        let weights = Direction::ALL.map(weight);
        let total: f64 = weights.iter().sum();
        let mut refused = self.refused_by_direction(key, &weights);
        let most = Direction::ALL
            .into_iter()
            .max_by(|a, b| refused[*a as usize].0.total_cmp(&refused[*b as usize].0));
        let likely = most.filter(|most| refused[*most as usize].0 > 0.0).unwrap_or(Direction::In);
        let (admitted, evicted) = (self.admitted(key), self.evicted(key));
        for (index, direction) in Direction::ALL.into_iter().enumerate() {
            let of_admitted = if total > 0.0 {
                weights[index] / total
            } else {
                // Nothing of it is in the table: it is gone already.
                f64::from(u8::from(direction == likely))
            };
            let (counted, seen_as) = std::mem::take(&mut refused[index]);
            let admitted = admitted * of_admitted;
            if admitted + counted == 0.0 {
                continue;
            }
            let one = found
                .entry((key, direction))
                .or_insert_with(|| service((key, direction), None, self.census.look_s()));
            one.admitted_per_s = admitted;
            one.refused_per_s = counted;
            one.offered_per_s =
                self.offered((key, direction), &seen_as, of_admitted, admitted, counted).max(admitted);
            if counted > 0.0 && self.lost_events > 0 {
                one.basis = Basis::AtMost;
            }
            if one.pairs.is_none() && one.entries == 0 {
                one.pairs = self.refused_flows.pairs(key, &seen_as);
            }
            add_evicted(one, evicted * of_admitted, &self.census);
            lift_admission_limit(one, self.first_timeouts.of(one.proto, self.census.timeouts()));
        }
    }

    /// Refused packets each second by direction, and as which directions their packets were seen.
    fn refused_by_direction(&self, key: Key, weights: &[f64; 4]) -> [(f64, Vec<Direction>); 4] {
        let mut shared: [(f64, Vec<Direction>); 4] = Default::default();
        let first = self.first.as_ref().unwrap_or(&self.last);
        let seconds = self.last.at - first.at;
        for loopback in [true, false] {
            let counted = per_s(&self.last.refused, &first.refused, &(key, loopback), seconds);
            let of_kind = |direction: &Direction| (*direction == Direction::Loopback) == loopback;
            let mut shares = self.refused_flows.shares(key, loopback);
            if shares.is_empty() {
                // No packet of it was seen: they go as entries do.
                let known = |direction: &Direction| of_kind(direction) && weights[*direction as usize] > 0.0;
                let sum: f64 =
                    Direction::ALL.iter().filter(|one| known(one)).map(|one| weights[*one as usize]).sum();
                shares = Direction::ALL
                    .into_iter()
                    .filter(known)
                    .map(|direction| (direction, weights[direction as usize] / sum))
                    .collect();
            }
            if shares.is_empty() {
                shares.push((if loopback { Direction::Loopback } else { Direction::In }, 1.0));
            }
            for (seen_as, share) in shares {
                let direction = self.refused_flows.goes_with(seen_as, weights);
                let (sum, all) = &mut shared[direction as usize];
                *sum += counted * share;
                if counted > 0.0 {
                    all.push(seen_as);
                }
            }
        }
        shared
    }

    fn admitted(&self, key: Key) -> f64 {
        if !self.counts_flows {
            return self.entered.get(&key).copied().unwrap_or(0.0);
        }
        let Some(first) = &self.first else { return 0.0 };
        per_s(&self.last.inserts, &first.inserts, &key, self.last.at - first.at)
    }

    fn evicted(&self, key: Key) -> f64 {
        let Some(first) = &self.first else { return 0.0 };
        per_s(&self.last.evicted, &first.evicted, &key, self.last.at - first.at)
    }

    /// Flows that would come if none was refused: those refused for the first time, and those that got in without
    /// having been refused before.
    fn offered(
        &self,
        (key, direction): (Key, Direction),
        seen_as: &[Direction],
        of_admitted: f64,
        admitted: f64,
        refused: f64,
    ) -> f64 {
        let Some(settled) = &self.settled else { return admitted + refused };
        let seconds = self.last.at - settled.at;
        let refused_since: f64 = [true, false]
            .into_iter()
            .map(|loopback| per_s(&self.last.refused, &settled.refused, &(key, loopback), seconds))
            .sum();
        if refused <= 0.0 || refused_since <= 0.0 {
            return admitted;
        }
        if self.lost_events > 0 {
            // Tuples are missing: each refused packet may be a flow of its own.
            return admitted + refused;
        }
        let admitted_since = if self.counts_flows {
            per_s(&self.last.inserts, &settled.inserts, &key, seconds) * of_admitted
        } else {
            admitted
        };
        let tuples: f64 =
            seen_as.iter().map(|direction| self.new_tuples_per_s(key, *direction, settled.at)).sum();
        let recent = self.recent.get(&(key, direction)).copied().unwrap_or_default();
        tuples + admitted_since * (1.0 - recent.share())
    }

    /// Flows refused for the first time, each second. A SYN is sent again at growing intervals, so that an old one may come
    /// for the first time in this window; a new one is told by its first retry.
    fn new_tuples_per_s(&self, key: Key, direction: Direction, settled_at: f64) -> f64 {
        let kind = (key, direction);
        let until = self.last.at - FIRST_RETRY_S;
        if key.0 != Protocol::TCP || until - settled_at < 1.0 {
            return self.refused.since_settled(&kind) / (self.last.at - settled_at);
        }
        let FirstSeen { once, again } = self.refused.first_seen(&kind, settled_at, until);
        let shown = shown_doublings(until);
        let persists = |doublings: i32| {
            let after = try_after(doublings.min(shown));
            let before = until - after - FIRST_RETRY_S;
            self.refused.persisting(&kind, before, after - 0.5).unwrap_or(1.0)
        };
        new_flows(once, again, settled_at, until, persists)
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
            assumed: false,
        };
        collected.phases.iter().map(residence).collect()
    });
    Service {
        proto: key.0,
        port: key.1,
        direction,
        entries: collected.map_or(0, ServiceEntries::entries),
        admitted_per_s: 0.0,
        offered_per_s: 0.0,
        refused_per_s: 0.0,
        backlog_factor: 1.0,
        residences,
        pairs: collected.and_then(ServiceEntries::pairs),
        earlier: None,
        basis: Basis::Measured,
    }
}

/// Raises arrivals in each state to what they would be if all flows got in. A full table admits flows in bursts, as
/// entries expire, so the window alone does not tell how many it admits: the entries that wait in the table do, unless
/// most of them are long-lived. Where next to none got in, nothing tells how long they would stay but the timeout of
/// their first packet.
fn lift_admission_limit(service: &mut Service, (phase, timeout, basis): (TimeoutKind, u32, Basis)) {
    if service.refused_per_s <= 0.0 {
        return;
    }
    let by_entries = service.entered_per_s();
    let got_in = by_entries.unwrap_or(service.admitted_per_s);
    let tells = if by_entries.is_some() { service.waiting_entries() >= FEW } else { got_in > 0.0 };
    if got_in > 0.0 && (tells || service.offered_per_s <= 2.0 * got_in) {
        service.backlog_factor = (service.offered_per_s / got_in).max(1.0);
        for residence in &mut service.residences {
            residence.per_s *= service.backlog_factor;
        }
        return;
    }
    let per_s = service.offered_per_s - got_in;
    if per_s > 0.0 {
        let idle = Default::default();
        service.residences.push(Residence { phase, timeout, entries: 0, idle, per_s, assumed: true });
        if service.basis == Basis::Measured {
            service.basis = basis;
        }
    }
}

/// Takes what is left of an earlier burst out of the demand: far more flows would have had to come than did.
fn without_leftovers(service: &mut Service) {
    let waits = |residence: &&mut Residence| residence.phase.expires_unrefreshed();
    let implied = service
        .residences
        .iter_mut()
        .filter(waits)
        .map(|residence| f64::from(residence.entries) / f64::from(residence.timeout.max(1)))
        .fold(0.0, f64::max);
    if service.refused_per_s > 0.0
        || service.waiting_entries() < FEW
        || implied <= LEFTOVER * service.admitted_per_s
    {
        return;
    }
    let needed = |residence: &mut Residence| residence.per_s * f64::from(residence.timeout);
    service.earlier = Some(service.residences.iter_mut().filter(waits).map(needed).sum());
    for residence in service.residences.iter_mut().filter(waits) {
        residence.per_s = residence.per_s.min(service.admitted_per_s);
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
            assumed: false,
        }),
    }
}

/// A hash of an original tuple; ports are 0 where the protocol has none.
fn tuple_hash(proto: Protocol, src: Address, dst: Address, sport: u16, dport: u16) -> u64 {
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::new().hash_one((proto, src, dst, sport, dport))
}

const fn port_of(entry: &TableEntry) -> u16 {
    if entry.proto.has_ports() { entry.port } else { 0 }
}

#[cfg(test)]
mod tests;
