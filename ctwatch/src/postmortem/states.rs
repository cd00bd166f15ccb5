//! What a table held by service when it was last listed: a census of the recording, or one of its listings.
//! Plain counts of one moment; how near that moment is to another.

use std::collections::HashMap;

use anyhow::Result;

use super::at::At;
use crate::model::{Census, NetnsId, ServicePort, TimeoutKind, WallMono};
use crate::record::reader::Head;
use crate::record::rows::StoredListing;

/// All entries of a service, and those of them in TIME_WAIT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    pub entries: u64,
    pub time_wait: u64,
}

/// A table, listed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct States {
    /// When the listing was finished.
    pub at: At,
    /// All entries it saw.
    pub total: u64,
    /// By the nearest census, which alone tells: assured entries, of how many, and when.
    pub assured: Option<(u64, u64, At)>,
    pub services: HashMap<ServicePort, Held>,
}

impl States {
    pub fn of_census(census: &Census, at: At) -> Self {
        let services: HashMap<_, _> = census
            .keys
            .iter()
            .map(|key| {
                let held = Held { entries: key.entries.into(), time_wait: key.time_wait.into() };
                (ServicePort { proto: key.proto, port: key.port }, held)
            })
            .collect();
        // Keys beyond the first 2,048 are left out of a recording; their states are not.
        let of_states: u64 = census.details.iter().map(|detail| u64::from(detail.mix.total())).sum();
        let of_services = services.values().map(|held| held.entries).sum();
        let total = of_states.max(of_services);
        let assured = census.details.iter().map(|detail| u64::from(detail.mix.assured)).sum();
        Self { at, total, assured: (of_states == total).then_some((assured, total, at)), services }
    }

    fn of_listing(listing: &StoredListing, at: At) -> Self {
        let mut services: HashMap<ServicePort, Held> = HashMap::new();
        for ((proto, port, _), found) in listing.census.services() {
            let held = services.entry(ServicePort { proto: *proto, port: *port }).or_default();
            held.entries += u64::from(found.entries());
            let waiting = found.phases.get(&TimeoutKind::TimeWait);
            held.time_wait += waiting.map_or(0, |bucket| u64::from(bucket.entries));
        }
        Self { at, total: listing.entries, assured: None, services }
    }

    /// How far it is from this moment, seconds.
    pub fn distance_s(&self, at: At) -> f64 {
        self.at.since(at).abs()
    }

    /// The service's part of all entries in TIME_WAIT.
    pub fn time_wait_of_table(&self, port: ServicePort) -> Option<f64> {
        let held = self.services.get(&port)?;
        (self.total > 0).then(|| held.time_wait as f64 / self.total as f64)
    }

    /// The part of a service's entries in TIME_WAIT; none if it has no such state, or had no entry.
    pub fn time_wait(&self, port: ServicePort) -> Option<f64> {
        let held = self.services.get(&port).filter(|held| port.is_tcp() && held.entries > 0)?;
        Some(held.time_wait as f64 / held.entries as f64)
    }

    /// As [`States::time_wait`], of all services but these.
    pub fn time_wait_of_others(&self, shown: &[ServicePort]) -> Option<f64> {
        let others = self.services.iter().filter(|(port, _)| port.is_tcp() && !shown.contains(port));
        let (entries, time_wait) = others
            .fold((0, 0), |(entries, waiting), (_, held)| (entries + held.entries, waiting + held.time_wait));
        (entries > 0).then(|| time_wait as f64 / entries as f64)
    }

    /// The services with most entries.
    pub fn largest(&self, most: usize) -> Vec<(ServicePort, u64)> {
        let mut all: Vec<_> = self.services.iter().map(|(port, held)| (*port, held.entries)).collect();
        all.sort_unstable_by_key(|(port, entries)| (std::cmp::Reverse(*entries), *port));
        all.truncate(most);
        all
    }
}

/// The nearest to this moment: this one, or a listing of the same table.
pub(super) fn nearest(
    known: Option<&States>,
    listings: &[Head],
    netns: NetnsId,
    at: At,
    place: impl Fn(WallMono) -> At,
    read: impl FnOnce(&Head) -> Result<StoredListing>,
) -> Result<Option<States>> {
    let of_table = || listings.iter().filter(|listing| listing.netns == Some(netns));
    // One that was interrupted may have seen entries twice, or not at all.
    let all_interrupted = known.is_none() && of_table().all(|listing| listing.is_incomplete);
    let distance_s = |head: &&Head| place(head.at).since(at).abs();
    let listed = of_table()
        .filter(|listing| all_interrupted || !listing.is_incomplete)
        .min_by(|a, b| distance_s(a).total_cmp(&distance_s(b)));
    let listed = listed.filter(|head| known.is_none_or(|known| distance_s(head) < known.distance_s(at)));
    let mut found = match (listed, known) {
        (Some(head), _) => States::of_listing(&read(head)?, place(head.at)),
        (None, Some(known)) => known.clone(),
        (None, None) => return Ok(None),
    };
    found.assured = found.assured.or_else(|| known?.assured);
    Ok(Some(found))
}
