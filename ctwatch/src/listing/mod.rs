//! What advice needs of a table listing: entries per service, direction and timeout, and since when.
//! Bounded: services beyond the first 2,048 are summed up by protocol.

use std::collections::{BTreeMap, HashMap};

use crate::model::{Address, Direction, Protocol, TableEntry, TimeoutHistogram, TimeoutKind, Timeouts};

/// Services with an account of their own.
const MOST: usize = 2048;
/// Pairs of addresses remembered of one service.
const PAIRS: usize = 16;

/// Entries of one service that are subject to one timeout.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeoutBucket {
    /// The timeout in force.
    pub timeout: u32,
    /// Entries.
    pub entries: u32,
    /// By the seconds since their timeout was last refreshed.
    pub idle: TimeoutHistogram,
    /// Those whose timeout was last refreshed within the last [`Listing::look_s`].
    pub entered: u32,
}

/// Entries of one service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceEntries {
    /// By timeout.
    pub phases: BTreeMap<TimeoutKind, TimeoutBucket>,
    pairs: Pairs,
}

/// Different pairs of addresses of one service.
#[derive(Clone, Debug, PartialEq)]
enum Pairs {
    /// These.
    Few(Vec<(Address, Address)>),
    /// Only their number was kept.
    Counted(u32),
    Many,
}

impl Default for Pairs {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Pairs {
    fn add(&mut self, pair: (Address, Address)) {
        let Self::Few(pairs) = self else { return };
        if pairs.contains(&pair) {
            return;
        }
        if pairs.len() == PAIRS {
            *self = Self::Many;
        } else {
            pairs.push(pair);
        }
    }
}

impl ServiceEntries {
    /// As it was kept in a recording.
    #[must_use]
    pub fn restored(phases: BTreeMap<TimeoutKind, TimeoutBucket>, pairs: Option<u32>) -> Self {
        Self { phases, pairs: pairs.map_or(Pairs::Many, Pairs::Counted) }
    }

    /// All its entries.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.phases.values().map(|seen| seen.entries).sum()
    }

    /// Different pairs of addresses; none if they are many.
    #[must_use]
    pub fn pairs(&self) -> Option<u32> {
        match &self.pairs {
            Pairs::Few(pairs) => Some(pairs.len() as u32),
            Pairs::Counted(pairs) => Some(*pairs),
            Pairs::Many => None,
        }
    }
}

/// A table listing, by service and direction.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    timeouts: Timeouts,
    look_s: u32,
    services: HashMap<(Protocol, u16, Direction), ServiceEntries>,
}

/// What is known of an entry that was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Added {
    /// How long its timeout has been running, seconds.
    pub idle: u32,
    /// The timeout of entries like it, seconds.
    pub timeout: u32,
}

impl Listing {
    /// Nothing counted yet. Arrivals in each phase are read from the last `look_s` seconds.
    #[must_use]
    pub fn new(timeouts: Timeouts, look_s: u32) -> Self {
        Self { timeouts, look_s: look_s.max(1), services: HashMap::new() }
    }

    /// As it was kept in a recording.
    #[must_use]
    pub fn restored(
        timeouts: Timeouts,
        look_s: u32,
        services: HashMap<(Protocol, u16, Direction), ServiceEntries>,
    ) -> Self {
        Self { timeouts, look_s, services }
    }

    /// Counts an entry.
    pub fn add(&mut self, entry: &TableEntry, direction: Direction) -> Added {
        let mut key = (entry.proto, entry.port, direction);
        if self.services.len() >= MOST && !self.services.contains_key(&key) {
            key.1 = 0;
        }
        let service = self.services.entry(key).or_default();
        let phase = TimeoutKind::of(entry.proto, entry.tcp_state, entry.assured);
        // A timeout that can't be read is at least what an entry has left.
        let timeout = self.timeouts.get(phase).unwrap_or(entry.left);
        let seen = service.phases.entry(phase).or_insert_with(|| TimeoutBucket {
            timeout,
            entries: 0,
            idle: TimeoutHistogram::default(),
            entered: 0,
        });
        // What is left is cut to whole seconds: with a timeout of 30, 29 are left during the first second.
        let idle = seen.timeout.saturating_sub(1).saturating_sub(entry.left);
        seen.entries += 1;
        seen.idle.add(idle);
        seen.entered += u32::from(idle < self.look_s.min(seen.timeout));
        service.pairs.add((entry.src, entry.dst));
        Added { idle, timeout: seen.timeout }
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = (&(Protocol, u16, Direction), &ServiceEntries)> {
        self.services.iter()
    }

    /// Timeouts in force.
    #[must_use]
    pub const fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The timeout in force, if it is known.
    #[must_use]
    pub fn timeout(&self, phase: TimeoutKind) -> Option<u32> {
        self.timeouts.get(phase)
    }

    /// Over how many seconds arrivals were counted, at most.
    #[must_use]
    pub const fn look_s(&self) -> u32 {
        self.look_s
    }
}
