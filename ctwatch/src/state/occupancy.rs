//! Who occupies each table: a census plus what was inserted less what was deleted since.
//! Pure. What is not known is not shown, and what is not exact says so.

use std::collections::HashMap;

use super::forecast::Forecast;
use super::step::{FlowKey, Step};
use crate::contract::{Occupant, TableStatus};
use crate::model::{Census, FlowSample, NetnsId, PortParts, Protocol, ServicePort};

/// Occupants a report names.
const SHOWN: usize = 5;
/// Rates are averaged over about so many seconds.
const SMOOTH_S: f64 = 10.0;
/// A map this small is not worth shrinking, nor are rates forgotten to keep it small.
const FEW_KEYS: usize = 1 << 12;
/// A key with fewer inserts than this has no rate worth keeping among many. A scan leaves a hundred thousand of them.
const MANY: u64 = 16;
/// A rate that is shown as 0.
const NEGLIGIBLE: f64 = 0.001;
/// What is known of all tables but the host's together, by [`weight`]: about 64 MB. Pods have a thousand each; whoever fills
/// namespaces of his own may have any number.
const MOST: usize = 1 << 19;
/// What a key takes is 1, about 128 bytes;
const OF_DETAIL: usize = 9;
/// and this once it has a history.
const OF_MODEL: usize = 96;
/// Below this a census says too little of a key's states.
const FEW: f64 = 16.0;

/// The occupancy of all tables.
#[derive(Debug, Default)]
pub(super) struct Occupancy {
    tables: HashMap<NetnsId, Flows>,
    overflow: u64,
}

/// The flows of one netns.
#[derive(Debug, Default)]
struct Flows {
    keys: HashMap<FlowKey, Key>,
    /// Whether the last census was exact; none before the first.
    known: Option<bool>,
    forecast: Forecast,
    /// Nothing came or went in the last tick.
    quiet: bool,
    /// Entries that came and went since the last tick without a key being kept for them.
    passed_by: u64,
    occupied: u64,
}

#[derive(Debug, Default)]
struct Key {
    base: i64,
    inserts: u64,
    deletes: u64,
    last: (u64, u64),
    /// Inserts and deletes that no slot holds any more.
    retired: (u64, u64),
    rate: Smoothed,
    census: Option<AtCensus>,
}

/// What the last census saw of a key.
#[derive(Clone, Copy, Debug)]
struct AtCensus {
    entries: f64,
    time_wait: f64,
    inserts: u64,
}

/// An average that forgets.
#[derive(Clone, Copy, Debug, Default)]
struct Smoothed {
    sum: f64,
    weight: f64,
}

impl Smoothed {
    fn add(&mut self, amount: f64, seconds: f64) {
        let kept = (-seconds / SMOOTH_S).exp();
        self.sum = self.sum * kept + amount;
        self.weight = self.weight * kept + seconds;
    }

    fn per_s(&self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }
}

impl Key {
    /// Nothing is left of it: not an entry, not a rate, and not a count that a later census would be measured by.
    fn is_over(&self, among_many: bool) -> bool {
        (self.inserts, self.deletes) == self.retired
            && self.inserts == self.deletes
            && self.base == 0
            && ((among_many && self.inserts < MANY) || self.rate.per_s() < NEGLIGIBLE)
    }

    fn entries(&self) -> u64 {
        let moved = self.inserts as i64 - self.deletes as i64;
        u64::try_from(self.base + moved).unwrap_or(0)
    }
}

const fn flow_key(proto: Protocol, port: u16) -> FlowKey {
    (proto.0 as u32) << 16 | port as u32
}

impl Occupancy {
    /// A new tick: counters are summed from 0 again.
    pub fn begin_tick(&mut self, flows: &FlowSample) {
        if flows.restarted {
            self.tables.clear();
        }
        for key in self.tables.values_mut().flat_map(|flows| flows.keys.values_mut()) {
            key.last = (key.inserts, key.deletes);
            (key.inserts, key.deletes) = key.retired;
        }
    }

    /// What a key had counted that no slot of a later sample holds: inserts and as many deletes. Before the tick begins.
    pub fn retire(&mut self, netns: NetnsId, proto: Protocol, port: u16, inserts: u64, deletes: u64) {
        let flows = self.tables.entry(netns).or_default();
        let key = flow_key(proto, port);
        // Else a scan would leave a key for each port, only for it to be forgotten at the end of the tick.
        if inserts == deletes
            && inserts < MANY
            && flows.keys.len() > FEW_KEYS
            && !flows.keys.contains_key(&key)
        {
            flows.passed_by += inserts;
            return;
        }
        let key = flows.keys.entry(key).or_default();
        key.retired.0 += inserts;
        key.retired.1 += deletes;
    }

    /// The totals of one flow slot.
    pub fn add(&mut self, netns: NetnsId, proto: Protocol, port: u16, inserts: u64, deletes: u64) {
        if (inserts, deletes) == (0, 0) {
            return;
        }
        let flows = self.tables.entry(netns).or_default();
        let key = flows.keys.entry(flow_key(proto, port)).or_default();
        key.inserts += inserts;
        key.deletes += deletes;
    }

    /// All slots are in: takes in the censuses that ended meanwhile, the host's in any case.
    pub fn end_tick(&mut self, interval_s: f64, sample: &FlowSample, is_home: impl Fn(NetnsId) -> bool) {
        let overflowed = sample.overflow > std::mem::replace(&mut self.overflow, sample.overflow);
        for census in &sample.censuses {
            let others = self.tables.iter().filter(|(netns, _)| **netns != census.netns && !is_home(**netns));
            let theirs: usize = others.map(|(_, flows)| flows.weight()).sum();
            let flows = self.tables.entry(census.netns).or_default();
            if is_home(census.netns) || theirs + weight(census) <= MOST {
                flows.take_census(census);
            } else {
                flows.forget();
            }
        }
        for flows in self.tables.values_mut() {
            if overflowed {
                flows.known = flows.known.map(|_| false);
            }
            // Right after a restart the totals of earlier programs look like news.
            flows.end_tick(if sample.restarted { 0.0 } else { interval_s });
        }
    }

    /// Forgets namespaces that are gone.
    pub fn retain(&mut self, is_there: impl Fn(NetnsId) -> bool) {
        self.tables.retain(|netns, _| is_there(*netns));
    }

    /// Adds to a table's line what is known of its occupants.
    pub fn describe(&self, table: &mut TableStatus) {
        let Some(flows) = self.tables.get(&table.netns).filter(|flows| flows.known.is_some()) else { return };
        if table.gone {
            return;
        }
        table.occupancy_exact = Some(flows.is_exact(table.count));
        table.occupants = Some(flows.occupants());
        if let (Some(count), Some(max)) = (table.count, table.max) {
            table.full_in_s = flows.forecast.full_in_s(count, max).map(rounded);
        }
    }
}

/// What would be kept of a census, at most.
fn weight(census: &Census) -> usize {
    let keys = census.keys.len().max(census.bases.len());
    keys + OF_DETAIL * census.details.len() + OF_MODEL * keys.min(Forecast::MODELS)
}

impl Flows {
    /// What it takes, at most, as long as its keys are these.
    fn weight(&self) -> usize {
        match self.known {
            Some(_) => {
                let keys = self.keys.len();
                keys + OF_DETAIL * self.forecast.details() + OF_MODEL * keys.min(Forecast::MODELS)
            }
            // Keys that have a counter of their own are bounded there.
            None => 0,
        }
    }

    /// There is no room for what a census says: who occupies the table isn't known, rather than half of it.
    fn forget(&mut self) {
        self.known = None;
        self.forecast = Forecast::default();
        for key in self.keys.values_mut() {
            (key.base, key.census) = (0, None);
        }
    }

    fn take_census(&mut self, census: &Census) {
        if census.replaces_offsets {
            for key in self.keys.values_mut() {
                // A key that the census doesn't name has no entries.
                key.base = key.deletes as i64 - key.inserts as i64;
            }
            for base in &census.bases {
                self.keys.entry(flow_key(base.proto, base.port)).or_default().base = base.entries;
            }
            self.known = Some(census.exact);
        }
        for key in self.keys.values_mut() {
            key.census = None;
        }
        for seen in &census.keys {
            let key = self.keys.entry(flow_key(seen.proto, seen.port)).or_default();
            key.census = Some(AtCensus {
                entries: f64::from(seen.entries),
                time_wait: f64::from(seen.time_wait),
                inserts: key.inserts,
            });
        }
        let keys = &self.keys;
        self.forecast.take_census(census, |key| keys.get(&key).map_or(0.0, |key| key.entries() as f64));
    }

    fn end_tick(&mut self, interval_s: f64) {
        self.quiet = std::mem::take(&mut self.passed_by) == 0;
        self.occupied = 0;
        for key in self.keys.values_mut() {
            if interval_s > 0.0 {
                key.rate.add(key.inserts.saturating_sub(key.last.0) as f64, interval_s);
            }
            self.quiet &= (key.inserts, key.deletes) == key.last;
            self.occupied += key.entries();
        }
        if self.known.is_some() {
            let steps = self.keys.iter().map(|(key, flows)| Step {
                key: *key,
                entries: flows.entries() as f64,
                inserts: flows.inserts.saturating_sub(flows.last.0) as f64,
                deletes: flows.deletes.saturating_sub(flows.last.1) as f64,
            });
            self.forecast.tick(interval_s, steps);
        }
        let forecast = &self.forecast;
        let among_many = self.keys.len() > FEW_KEYS;
        self.keys.retain(|key, flows| !flows.is_over(among_many) || forecast.has_model(*key));
        if self.keys.capacity() > 4 * self.keys.len().max(FEW_KEYS) {
            self.keys.shrink_to_fit();
        }
    }

    fn is_exact(&self, count: Option<u32>) -> bool {
        self.known == Some(true) && agrees(self.occupied, count, self.quiet)
    }

    fn occupants(&self) -> Vec<Occupant> {
        let mut largest: Vec<(u64, FlowKey)> =
            self.keys.iter().map(|(key, flows)| (flows.entries(), *key)).filter(|(n, _)| *n > 0).collect();
        let by_size = |a: &(u64, FlowKey), b: &(u64, FlowKey)| b.0.cmp(&a.0).then(a.1.cmp(&b.1));
        if largest.len() > SHOWN {
            largest.select_nth_unstable_by(SHOWN, by_size);
            largest.truncate(SHOWN);
        }
        largest.sort_unstable_by(by_size);
        largest.into_iter().map(|(entries, key)| self.occupant(key, entries)).collect()
    }

    fn occupant(&self, key: FlowKey, entries: u64) -> Occupant {
        let flows = &self.keys[&key];
        let (proto, port) = (Protocol((key >> 16) as u8), key as u16);
        let PortParts { port, service, icmp_type, icmp_code } = ServicePort { proto, port }.parts();
        let share = entries as f64 / self.occupied.max(1) as f64;
        Occupant {
            proto,
            port,
            service: port.map(|_| service),
            icmp_type,
            icmp_code,
            entries,
            share: floored(share),
            new_per_s: rounded(flows.rate.per_s()),
            mean_lifetime_s: self.forecast.lifetime(key).map(rounded),
            time_wait_share: (proto == Protocol::TCP).then(|| flows.time_wait_share()).flatten().map(floored),
        }
    }
}

impl Key {
    /// As of the census; unknown once most entries are newer.
    fn time_wait_share(&self) -> Option<f64> {
        let AtCensus { entries, time_wait, inserts } = self.census?;
        let newer = self.inserts.saturating_sub(inserts) as f64;
        (newer <= entries.max(FEW)).then(|| time_wait / entries.max(1.0))
    }
}

/// Whether the entries of all services add up to the kernel's count, which is the judge. While entries come and go (not
/// `quiet`) it is read at another instant than they are.
pub fn agrees(entries: u64, count: Option<u32>, quiet: bool) -> bool {
    let count = u64::from(count.unwrap_or(0));
    let slack = if quiet { 0 } else { (count / 100).max(64) };
    entries.abs_diff(count) <= slack
}

/// To a tenth.
fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

/// As fills are: rounded down, so that only all of it is 1.
fn floored(share: f64) -> f64 {
    (share * 10_000.0 + 1e-6).floor() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CensusKey, FlowOffset, PortDetail};
    use crate::testing::table_status;
    use proptest::prelude::*;

    const HOST: NetnsId = NetnsId::from_packed(4_026_531_840);

    fn table(count: u32) -> TableStatus {
        TableStatus { count: Some(count), max: Some(1_000_000), ..table_status(HOST) }
    }

    fn census(exact: bool, entries: &[(u16, u32)], counted: i64) -> Census {
        let key = |port, entries| CensusKey {
            proto: Protocol::TCP,
            port,
            entries,
            assured: 0,
            time_wait: entries / 2,
        };
        let base = |port, entries: u32| FlowOffset {
            proto: Protocol::TCP,
            port,
            entries: i64::from(entries) - counted,
        };
        Census {
            netns: HOST,
            keys: entries.iter().map(|(port, entries)| key(*port, *entries)).collect(),
            bases: entries.iter().map(|(port, entries)| base(*port, *entries)).collect(),
            replaces_offsets: true,
            exact,
            ..Census::default()
        }
    }

    fn tick(occupancy: &mut Occupancy, slots: &[(u16, u64, u64)], censuses: Vec<Census>) {
        let sample = FlowSample { censuses, ..FlowSample::default() };
        occupancy.begin_tick(&sample);
        for (port, inserts, deletes) in slots {
            occupancy.add(HOST, Protocol::TCP, *port, *inserts, *deletes);
        }
        occupancy.end_tick(1.0, &sample, |netns| netns == HOST);
    }

    fn shown(occupancy: &Occupancy, count: u32) -> (Vec<(Option<u16>, u64)>, Option<bool>) {
        let mut table = table(count);
        occupancy.describe(&mut table);
        let occupants = table.occupants.unwrap_or_default();
        (occupants.iter().map(|one| (one.port, one.entries)).collect(), table.occupancy_exact)
    }

    #[test]
    fn nothing_is_said_before_the_census() {
        let mut occupancy = Occupancy::default();
        tick(&mut occupancy, &[(80, 10, 5)], vec![]);
        assert_eq!(shown(&occupancy, 5), (vec![], None));
    }

    #[test]
    fn entries_are_those_of_the_census_and_what_came_and_went_since() {
        let mut occupancy = Occupancy::default();
        tick(&mut occupancy, &[(6379, 10, 0)], vec![census(true, &[(6379, 710)], 10)]);
        assert_eq!(shown(&occupancy, 710), (vec![(Some(6379), 710)], Some(true)));
        assert_eq!(shown(&occupancy, 810).1, Some(false));
        let mut occupancy = Occupancy::default();
        tick(&mut occupancy, &[], vec![census(true, &[(6379, 700), (443, 100)], 0)]);
        tick(&mut occupancy, &[(6379, 20, 5), (53, 7, 0)], vec![]);
        let all = vec![(Some(6379), 715), (Some(443), 100), (Some(53), 7)];
        assert_eq!(shown(&occupancy, 822), (all.clone(), Some(true)));
        // Quiet, so every entry must be accounted for.
        tick(&mut occupancy, &[(6379, 20, 5), (53, 7, 0)], vec![]);
        assert_eq!(shown(&occupancy, 823), (all, Some(false)));
    }

    #[test]
    fn a_later_census_that_is_less_exact_only_tells_states() {
        let mut occupancy = Occupancy::default();
        tick(&mut occupancy, &[], vec![census(true, &[(80, 100)], 0)]);
        let later = Census { replaces_offsets: false, ..census(false, &[(80, 90)], 0) };
        tick(&mut occupancy, &[(80, 4, 4)], vec![later]);
        assert_eq!(shown(&occupancy, 100), (vec![(Some(80), 100)], Some(true)));
    }

    #[test]
    fn tables_for_which_there_is_no_room_are_unknown_and_the_hosts_is_known() {
        let detail = |port| {
            let mut detail = PortDetail::new(Protocol::TCP, Some(port));
            detail.add(7, true, 60);
            detail
        };
        let mut occupancy = Occupancy::default();
        let of_netns = |inode| {
            let ports: Vec<(u16, u32)> = (0..256).map(|port| (port, 16)).collect();
            let netns = NetnsId::from_packed(HOST.packed() + inode);
            Census { netns, details: (0..256).map(detail).collect(), ..census(true, &ports, 0) }
        };
        tick(&mut occupancy, &[], (1..500).map(of_netns).collect());
        let scanned: Vec<(u16, u32)> = (0..=u16::MAX).map(|port| (port, 1)).collect();
        tick(&mut occupancy, &[], vec![census(true, &scanned, 0)]);
        assert_eq!(occupancy.tables[&HOST].known, Some(true));
        let others = || occupancy.tables.iter().filter(|(netns, _)| **netns != HOST);
        let known = others().filter(|(_, flows)| flows.known.is_some()).count();
        assert!((50..100).contains(&known), "{known} of the others");
        assert!(others().map(|(_, flows)| flows.weight()).sum::<usize>() <= MOST);
        // What isn't known takes nothing.
        assert!(others().all(|(_, flows)| flows.known.is_some() || flows.keys.is_empty()));
        // Even if it was, before it grew.
        let netns = NetnsId::from_packed(HOST.packed() + 1);
        assert_eq!(occupancy.tables[&netns].known, Some(true));
        tick(&mut occupancy, &[], vec![Census { netns, ..census(true, &scanned, 0) }]);
        assert!(occupancy.tables[&netns].known.is_none() && occupancy.tables[&netns].keys.is_empty());
    }

    #[test]
    fn the_time_wait_share_is_unknown_once_the_census_is_history() {
        let mut occupancy = Occupancy::default();
        let share = |occupancy: &Occupancy| {
            let mut table = table(100);
            occupancy.describe(&mut table);
            table.occupants.unwrap_or_default()[0].time_wait_share
        };
        tick(&mut occupancy, &[], vec![census(true, &[(80, 100)], 0)]);
        assert_eq!(share(&occupancy), Some(0.5));
        tick(&mut occupancy, &[(80, 100, 100)], vec![]);
        assert_eq!(share(&occupancy), Some(0.5));
        tick(&mut occupancy, &[(80, 101, 101)], vec![]);
        assert_eq!(share(&occupancy), None);
    }

    #[test]
    fn keys_that_came_and_went_are_forgotten_and_come_back_as_they_were() {
        let mut occupancy = Occupancy::default();
        tick(&mut occupancy, &[], vec![census(true, &[], 0)]);
        // Larger ones have the models.
        let large: Vec<(u16, u64, u64)> = (0..100).map(|port| (port, 1000, 0)).collect();
        tick(&mut occupancy, &large, vec![]);
        let scanned: Vec<(u16, u64, u64)> = (1000..21_000).map(|port| (port, 2, 2)).collect();
        let busy = vec![(30_000, 100, 100)];
        tick(&mut occupancy, &[&large[..], &scanned, &busy].concat(), vec![]);
        assert_eq!(occupancy.tables[&HOST].keys.len(), 20_101);
        for (port, inserts, deletes) in scanned.into_iter().chain(busy) {
            occupancy.retire(HOST, Protocol::TCP, port, inserts, deletes);
        }
        tick(&mut occupancy, &large, vec![]);
        assert_eq!(occupancy.tables[&HOST].keys.len(), 101, "only that with a rate is kept");
        for _ in 0..200 {
            tick(&mut occupancy, &large, vec![]);
        }
        assert_eq!(occupancy.tables[&HOST].keys.len(), 100);
        assert!(occupancy.tables[&HOST].keys.capacity() < 20_000);
        tick(&mut occupancy, &[&large[..], &[(1000, 100_000, 1)]].concat(), vec![]);
        let (shown, exact) = shown(&occupancy, 199_999);
        assert_eq!((shown[0], exact), ((Some(1000), 99_999), Some(true)));
    }

    #[test]
    fn ports_that_a_scan_passes_by_between_two_ticks_take_no_room_but_the_tick_is_not_quiet() {
        let mut occupancy = Occupancy::default();
        let many: Vec<(u16, u64, u64)> = (0..5000).map(|port| (port, 2, 1)).collect();
        tick(&mut occupancy, &[], vec![census(true, &[], 0)]);
        tick(&mut occupancy, &many, vec![]);
        tick(&mut occupancy, &many, vec![]);
        assert_eq!(shown(&occupancy, 5001).1, Some(false));
        for port in 5000..=u16::MAX {
            occupancy.retire(HOST, Protocol::TCP, port, 1, 1);
        }
        // What is known keeps its counts.
        occupancy.retire(HOST, Protocol::TCP, 0, 1, 1);
        assert!(occupancy.tables[&HOST].keys.capacity() < 20_000);
        tick(&mut occupancy, &many, vec![]);
        assert_eq!(occupancy.tables[&HOST].keys[&flow_key(Protocol::TCP, 0)].inserts, 3);
        assert_eq!(shown(&occupancy, 5001).1, Some(true), "read while entries came and went");
        tick(&mut occupancy, &many, vec![]);
        assert_eq!(shown(&occupancy, 5001).1, Some(false));
    }

    proptest! {
        #[test]
        fn shares_never_exceed_one_and_entries_never_go_below_nothing(
            slots in prop::collection::vec((0..20u16, 0..1_000u64, 0..1_000u64), 0..60),
            found in prop::collection::vec((0..20u16, 0..1_000u32), 0..20),
        ) {
            let mut occupancy = Occupancy::default();
            tick(&mut occupancy, &slots, vec![census(true, &found, 0)]);
            let mut table = table(1);
            occupancy.describe(&mut table);
            let occupants = table.occupants.expect("after a census");
            prop_assert!(occupants.len() <= SHOWN);
            prop_assert!(occupants.iter().map(|one| one.share).sum::<f64>() <= 1.0 + 1e-9);
            prop_assert!(occupants.windows(2).all(|pair| pair[0].entries >= pair[1].entries));
        }
    }
}
