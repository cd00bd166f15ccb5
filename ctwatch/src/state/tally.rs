//! Losses per key: totals and what came on top in this tick. Memory is bounded at any cardinality.
//! What a bound cuts off is summed up, never forgotten.

use std::collections::HashMap;

use ctwatch_common::Cause;
use ctwatch_common::cause::CAUSES;

use super::key::Key;

/// One key's losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tallied {
    pub key: Key,
    pub losses: u64,
    pub total: u64,
    /// All its losses are in the numbers, as far as the tally can tell.
    pub whole: bool,
}

/// Losses of a cause that have no key of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub losses: u64,
    pub total: u64,
}

/// Counts from the exact slots. As many keys as the kernel has slots, so bounded by that.
#[derive(Debug, Default)]
pub(super) struct SlotTally {
    keys: HashMap<Key, Counter>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    now: u64,
    before: u64,
}

impl SlotTally {
    /// Adds a slot's count to its row. Several slots may share one.
    pub fn add(&mut self, key: Key, count: u64) {
        self.keys.entry(key).or_default().now += count;
    }

    /// The rows that moved since the last tick.
    pub fn close_tick(&mut self) -> Vec<Tallied> {
        let mut moved = Vec::new();
        for (key, counter) in &mut self.keys {
            // Slots only grow; a key whose slots were left out of a sample keeps its total.
            let total = counter.now.max(counter.before);
            if total > counter.before {
                moved.push(Tallied { key: *key, losses: total - counter.before, total, whole: true });
            }
            *counter = Counter { now: 0, before: total };
        }
        moved
    }

    /// All rows over the whole run.
    pub fn totals(&self) -> Vec<Tallied> {
        let whole_run = |(key, counter): (&Key, &Counter)| Tallied {
            key: *key,
            losses: counter.before,
            total: counter.before,
            whole: true,
        };
        self.keys.iter().map(whole_run).filter(|row| row.total > 0).collect()
    }
}

/// Counts from events.
#[derive(Debug)]
pub(super) struct EventTally {
    keys: HashMap<Key, Entry>,
    limit: usize,
    /// Losses whose key found no room or was dropped, by cause.
    rest: [Sum; CAUSES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    losses: u64,
    total: u64,
    late: bool,
}

/// Keys kept, about 3 MB: 7/8 of 2^15, the most a hash table of that size takes without growing.
const LIMIT: usize = 28_672;

impl EventTally {
    pub fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    pub fn with_limit(limit: usize) -> Self {
        Self { keys: HashMap::new(), limit, rest: [Sum::default(); CAUSES] }
    }

    /// One loss whose key there is no room for anywhere.
    pub fn add_to_rest(&mut self, cause: Cause) {
        let rest = &mut self.rest[cause as usize];
        rest.losses += 1;
        rest.total += 1;
    }

    /// One loss. The hot path: one look-up.
    pub fn add(&mut self, key: Key) {
        if self.keys.len() >= self.limit && !self.keys.contains_key(&key) {
            let rest = &mut self.rest[usize::from(key.cause()) % CAUSES];
            rest.losses += 1;
            rest.total += 1;
            return;
        }
        let rest = &self.rest;
        let entry = self.keys.entry(key).or_insert_with(|| Entry {
            // Once keys of this cause have been dropped, a new one may be an old one coming back.
            late: rest[usize::from(key.cause()) % CAUSES].total > 0,
            ..Entry::default()
        });
        entry.losses += 1;
        entry.total += 1;
    }

    /// The rows that lost something in this tick, and what has no row. Makes room for the next tick.
    pub fn close_tick(&mut self) -> (Vec<Tallied>, [Sum; CAUSES]) {
        let mut moved = Vec::new();
        for (key, entry) in &mut self.keys {
            if entry.losses > 0 {
                moved.push(tallied(key, entry));
                entry.losses = 0;
            }
        }
        let rest = self.rest;
        for sum in &mut self.rest {
            sum.losses = 0;
        }
        self.make_room();
        (moved, rest)
    }

    /// All rows over the whole run, and what has no row.
    pub fn totals(&self) -> (Vec<Tallied>, [Sum; CAUSES]) {
        let rows =
            self.keys.iter().map(|(key, entry)| Tallied { losses: entry.total, ..tallied(key, entry) });
        (rows.collect(), self.rest.map(|sum| Sum { losses: sum.total, ..sum }))
    }

    /// Drops the smaller half once three quarters are taken, so that newcomers get a chance in every tick.
    fn make_room(&mut self) {
        if self.keys.len() <= self.limit / 4 * 3 {
            return;
        }
        let keep = self.limit / 2;
        let mut totals: Vec<u64> = self.keys.values().map(|entry| entry.total).collect();
        let (_, &mut smallest_kept, _) = totals.select_nth_unstable_by(keep, |a, b| b.cmp(a));
        // Many keys may tie at the threshold: room for them is what the larger ones leave.
        let larger = totals[..keep].iter().filter(|total| **total > smallest_kept).count();
        let mut ties = keep - larger;
        self.keys.retain(|key, entry| {
            let keeps = entry.total > smallest_kept || (entry.total == smallest_kept && ties > 0);
            if keeps && entry.total == smallest_kept {
                ties -= 1;
            }
            if !keeps {
                self.rest[usize::from(key.cause()) % CAUSES].total += entry.total;
            }
            keeps
        });
    }
}

fn tallied(key: &Key, entry: &Entry) -> Tallied {
    Tallied { key: *key, losses: entry.losses, total: entry.total, whole: !entry.late }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NetnsId, Protocol};
    use crate::state::key::{Facts, Seen};
    use crate::state::settings::By;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn key(port: u16) -> Key {
        let facts = Facts {
            netns: NetnsId::from_packed(1),
            proto: Some(Protocol::TCP),
            port: Some(port),
            loopback: Some(false),
        };
        Seen { cause: Cause::TableFull, facts }.key(By::Port, None)
    }

    proptest! {
        #[test]
        fn nothing_is_forgotten_and_memory_stays_bounded(
            limit in 4..32usize,
            ticks in proptest::collection::vec(proptest::collection::vec(0..64u16, 0..200), 1..8),
        ) {
            let mut tally = EventTally::with_limit(limit);
            let mut truth = BTreeMap::<u16, u64>::new();
            let mut all = 0u64;
            for tick in ticks {
                for port in &tick {
                    tally.add(key(*port));
                    *truth.entry(*port).or_default() += 1;
                    prop_assert!(tally.keys.len() <= limit);
                }
                all += tick.len() as u64;
                let (rows, rest) = tally.close_tick();
                let sum = rows.iter().map(|row| row.losses).sum::<u64>() + rest.iter().map(|sum| sum.losses).sum::<u64>();
                prop_assert_eq!(sum, tick.len() as u64);
                for row in &rows {
                    let truth = truth[&row.key.fields().port];
                    prop_assert!(row.total <= truth);
                    // A row that calls itself whole is.
                    prop_assert!(!row.whole || row.total == truth);
                }
            }
            let (rows, rest) = tally.totals();
            let sum = rows.iter().map(|row| row.total).sum::<u64>() + rest.iter().map(|sum| sum.total).sum::<u64>();
            prop_assert_eq!(sum, all);
        }

        #[test]
        fn slot_rows_are_the_difference_of_their_totals(
            ticks in proptest::collection::vec(proptest::collection::vec((0..8u16, 1..1000u64), 0..20), 1..8),
        ) {
            let mut tally = SlotTally::default();
            let mut slots = BTreeMap::<u16, u64>::new();
            for tick in ticks {
                for (port, count) in &tick {
                    *slots.entry(*port).or_default() += count;
                }
                for (port, total) in &slots {
                    tally.add(key(*port), *total);
                }
                let rows = tally.close_tick();
                let losses: u64 = tick.iter().map(|(_, count)| count).sum();
                prop_assert_eq!(rows.iter().map(|row| row.losses).sum::<u64>(), losses);
                for row in rows {
                    prop_assert_eq!(row.total, slots[&row.key.fields().port]);
                }
            }
        }
    }

    #[test]
    fn a_heavy_key_stays_when_room_is_made() {
        let mut tally = EventTally::with_limit(16);
        for _ in 0..100 {
            tally.add(key(6379));
        }
        for port in 0..1000 {
            tally.add(key(10_000 + port));
        }
        tally.close_tick();
        tally.add(key(6379));
        let (rows, _) = tally.close_tick();
        assert_eq!(rows, [Tallied { key: key(6379), losses: 1, total: 101, whole: true }]);
    }
}
