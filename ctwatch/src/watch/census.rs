//! When to count a table's entries again, and the thread that does it beside the watch.
//! The watch never waits for a census; what it says is only believed as far as the flow counters agree.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::conntrack::census::{self, Count};
use crate::model::{Census, FlowOffset, NetnsId, Protocol, SlotSample, Timeouts};
use crate::netns::{self, Netns};
use crate::probe::shared::FlowReader;

/// A census this short is simply taken again if something moved meanwhile (expired entries that the dump itself
/// reaps do move).
const CHEAP: Duration = Duration::from_millis(100);
/// So often at most.
const TRIES: usize = 3;
/// Between two censuses of one netns.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two of a table whose dump takes long.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// A dump that mends the numbers takes this part of the time at most,
const MENDING_SHARE: u32 = 20;
/// and one that only renews what is known of states this.
const RENEWING_SHARE: u32 = 200;
/// After a refusal.
const RETRY: Duration = Duration::from_secs(300);
/// Ticks for which count and occupancy must stay apart.
const APART_TICKS: u32 = 3;

/// What the thread found in one netns.
struct Counted {
    count: Count,
    before: Vec<SlotSample>,
    after: Vec<SlotSample>,
    entries: Option<u32>,
    timeouts: Timeouts,
}

enum Outcome {
    Counted(Box<Counted>),
    Refused(String),
    /// Nobody gets in there: it is gone, or going.
    Closed,
}

/// What is known of one netns's last census.
struct LastCensus {
    at: Instant,
    took: Duration,
    exact: bool,
    refused: bool,
    /// Σ of its bases: with inserts less deletes, what its table should hold.
    base: i64,
    entries: u64,
    inserts: u64,
    apart: u32,
}

/// Inserts and deletes of one netns, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    pub inserts: u64,
    pub deletes: u64,
}

/// All censuses, past and running.
#[derive(Default)]
pub(super) struct Censuses {
    running: Option<Receiver<(NetnsId, Outcome)>>,
    known: HashMap<NetnsId, LastCensus>,
    last: HashMap<NetnsId, Moved>,
    trouble: Option<String>,
    told: bool,
}

impl Censuses {
    /// Forgets everything: the tables start anew.
    pub fn restart(&mut self) {
        *self = Self { told: self.told, ..Self::default() };
    }

    /// Why there is no occupancy: said once.
    pub fn trouble(&mut self) -> Option<String> {
        self.trouble.take()
    }

    /// Starts whatever census is due.
    pub fn start_due(
        &mut self,
        namespaces: &BTreeMap<NetnsId, Netns>,
        reader: impl FnOnce() -> FlowReader,
        moved: &HashMap<NetnsId, Moved>,
        entries: impl Fn(NetnsId) -> Option<u32>,
    ) {
        self.known.retain(|id, _| namespaces.contains_key(id));
        let mut due = Vec::new();
        for (id, netns) in namespaces {
            let now = moved.get(id).copied().unwrap_or_default();
            let quiet = self.last.get(id) == Some(&now);
            match self.known.get_mut(id) {
                None => due.push(netns.clone()),
                Some(known) => {
                    if known.is_due(now, quiet, entries(*id)) {
                        due.push(netns.clone());
                    }
                }
            }
        }
        self.last.clone_from(moved);
        if due.is_empty() || self.running.is_some() {
            return;
        }
        let (sender, receiver) = channel();
        let reader = reader();
        let thread = thread::Builder::new().name("census".to_owned()).stack_size(256 << 10);
        match thread.spawn(move || take_all(&due, &reader, &sender)) {
            Ok(_) => self.running = Some(receiver),
            Err(error) => self.refused(format!("starting a thread for it: {error}")),
        }
    }

    /// Takes in what has been counted. `net` says what a netns's slots mean, as inserts less deletes per key.
    pub fn collect(
        &mut self,
        net: impl Fn(NetnsId, &[SlotSample]) -> HashMap<(Protocol, u16), i64>,
        moved: &HashMap<NetnsId, Moved>,
    ) -> Vec<Census> {
        let mut done = Vec::new();
        while let Some(running) = &self.running {
            match running.try_recv() {
                Ok((id, Outcome::Counted(taken))) => {
                    let mut census = census(id, &taken, &net);
                    let mut known = LastCensus {
                        at: Instant::now(),
                        took: taken.count.took,
                        exact: census.exact,
                        refused: false,
                        base: census.bases.iter().map(|base| base.entries).sum(),
                        entries: taken.count.entries,
                        inserts: moved.get(&id).map_or(0, |moved| moved.inserts),
                        apart: 0,
                    };
                    if let Some(last) = self.known.get(&id)
                        && last.exact
                        && last.apart < APART_TICKS
                        && !census.exact
                    {
                        census.replaces_offsets = false;
                        (known.exact, known.base) = (true, last.base);
                    }
                    self.known.insert(id, known);
                    done.push(census);
                }
                Ok((id, Outcome::Refused(reason))) => {
                    self.known.insert(id, LastCensus::refused());
                    self.refused(reason);
                }
                Ok((_, Outcome::Closed)) => {}
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.running = None,
            }
        }
        done
    }

    fn refused(&mut self, reason: String) {
        if !std::mem::replace(&mut self.told, true) {
            self.trouble = Some(reason);
        }
    }
}

impl LastCensus {
    fn refused() -> Self {
        Self {
            at: Instant::now(),
            took: Duration::ZERO,
            exact: false,
            refused: true,
            base: 0,
            entries: 0,
            inserts: 0,
            apart: 0,
        }
    }

    fn is_due(&mut self, now: Moved, quiet: bool, entries: Option<u32>) -> bool {
        let age = self.at.elapsed();
        if self.refused {
            return age >= RETRY;
        }
        let held = self.base + now.inserts as i64 - now.deletes as i64;
        let entries = entries.map_or(held, i64::from);
        let apart = (held - entries).abs() > (entries / 100).max(64) || (quiet && held != entries);
        self.apart = if apart { self.apart + 1 } else { 0 };
        let pause = if self.took > 3 * CHEAP { LONG_PAUSE } else { PAUSE };
        if age < pause.max(self.took * MENDING_SHARE) {
            return false;
        }
        // Half the table is newer than what the last census saw: states and timeouts may be others by now.
        let arrived = now.inserts.saturating_sub(self.inserts);
        let stale = (age >= LONG_PAUSE || self.entries < arrived) && age >= self.took * RENEWING_SHARE;
        (quiet && !self.exact) || self.apart >= APART_TICKS || (stale && arrived > self.entries / 2 + 100)
    }
}

fn take_all(namespaces: &[Netns], reader: &FlowReader, results: &Sender<(NetnsId, Outcome)>) {
    for netns in namespaces {
        let outcome = match netns::run_inside(netns, || Ok(count_entries(netns, reader))) {
            Ok(Ok(taken)) => Outcome::Counted(Box::new(taken)),
            Ok(Err(error)) => Outcome::Refused(format!("{error:#}")),
            Err(_) => Outcome::Closed,
        };
        if results.send((netns.id, outcome)).is_err() {
            return;
        }
    }
}

/// Counts until nothing moves meanwhile, if that is cheap.
fn count_entries(netns: &Netns, reader: &FlowReader) -> Result<Counted> {
    let inode = netns.id.inode();
    let mut tries = 0;
    loop {
        let before = reader.read(inode);
        let count = census::count_entries().context("counting the table's entries")?;
        let entries = census::entries_here();
        let after = reader.read(inode);
        tries += 1;
        let taken = Counted { count, before, after, entries, timeouts: census::read_timeouts() };
        if taken.is_quiet() || tries == TRIES || taken.count.took > CHEAP {
            return Ok(taken);
        }
    }
}

impl Counted {
    /// Nothing came or went while it was taken.
    fn is_quiet(&self) -> bool {
        let sums = |slots: &[SlotSample]| {
            slots.iter().fold([0; 3], |sum: [u64; 3], slot| {
                [sum[0] + slot.count, sum[1] + slot.deletes, sum[2] + slot.failed]
            })
        };
        sums(&self.before) == sums(&self.after)
    }
}

fn census(
    id: NetnsId,
    taken: &Counted,
    net: impl Fn(NetnsId, &[SlotSample]) -> HashMap<(Protocol, u16), i64>,
) -> Census {
    let Counted { count, before, after, entries, timeouts } = taken;
    let before = net(id, before);
    let mut bases: HashMap<(Protocol, u16), i64> = net(id, after)
        .into_iter()
        .map(|(key, after)| (key, -(after + before.get(&key).copied().unwrap_or(0)).div_euclid(2)))
        .collect();
    for key in &count.keys {
        *bases.entry((key.proto, key.port)).or_default() += i64::from(key.entries);
    }
    let agrees = entries.is_none_or(|entries| u64::from(entries) == count.entries);
    Census {
        netns: id,
        keys: count.keys.clone(),
        details: count.details.clone(),
        bases: bases
            .into_iter()
            .map(|((proto, port), entries)| FlowOffset { proto, port, entries })
            .collect(),
        replaces_offsets: true,
        timeouts: *timeouts,
        exact: taken.is_quiet() && !count.interrupted && count.duplicates == 0 && agrees,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CensusKey;
    use ctwatch_common::slot::{KIND_FLOWS, SlotKey};

    fn slot(port: u16, count: u64, deletes: u64) -> SlotSample {
        SlotSample { key: SlotKey { netns: 1, port, proto: 6, kind: KIND_FLOWS }, count, deletes, failed: 0 }
    }

    fn net(_: NetnsId, slots: &[SlotSample]) -> HashMap<(Protocol, u16), i64> {
        slots
            .iter()
            .map(|slot| ((Protocol::TCP, slot.key.port), slot.count as i64 - slot.deletes as i64))
            .collect()
    }

    fn taken(before: Vec<SlotSample>, after: Vec<SlotSample>) -> Counted {
        let key = CensusKey { proto: Protocol::TCP, port: 80, entries: 100, assured: 0, time_wait: 0 };
        let count = Count { keys: vec![key], entries: 100, ..Count::default() };
        Counted { count, before, after, entries: Some(100), timeouts: Timeouts::default() }
    }

    #[test]
    fn a_census_in_a_quiet_moment_is_exact_and_its_base_undoes_what_was_counted() {
        let slots = || vec![slot(80, 30, 10), slot(81, 7, 7)];
        let census = census(NetnsId::from_packed(1), &taken(slots(), slots()), net);
        assert!(census.exact);
        let base = |port| census.bases.iter().find(|base| base.port == port).map(|base| base.entries);
        assert_eq!((base(80), base(81)), (Some(80), Some(0)));
    }

    #[test]
    fn what_moved_meanwhile_counts_half_and_makes_it_approximate() {
        let census =
            census(NetnsId::from_packed(1), &taken(vec![slot(80, 30, 10)], vec![slot(80, 50, 10)]), net);
        assert!(!census.exact);
        assert_eq!(census.bases[0].entries, 70);
    }

    #[test]
    fn a_long_dump_is_not_repeated_soon_and_an_approximate_one_only_when_all_is_quiet() {
        let mut known = LastCensus { exact: false, refused: false, ..LastCensus::refused() };
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        assert!(!known.is_due(Moved::default(), true, Some(0)));
        known.at = ago(31);
        assert!(known.is_due(Moved::default(), true, Some(0)));
        assert!(!known.is_due(Moved { inserts: 5, deletes: 5 }, false, Some(0)));
        known.took = Duration::from_secs(2);
        assert!(!known.is_due(Moved::default(), true, Some(0)));
        known.at = ago(61);
        assert!(known.is_due(Moved::default(), true, Some(0)));
        // Only states would be news: that can wait.
        let busy = Moved { inserts: 5_000, deletes: 5_000 };
        assert!(!known.is_due(busy, false, Some(0)));
        known.at = ago(401);
        assert!(known.is_due(busy, false, Some(0)));
    }
}
