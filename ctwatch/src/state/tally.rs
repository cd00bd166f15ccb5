//! Losses per key: totals and what came on top in this tick. Memory is bounded at any cardinality.
//! What a bound cuts off is summed up, never forgotten.

use std::collections::HashMap;

use ctwatch_common::Cause;
use ctwatch_common::cause::CAUSES;

use super::given_up::GivenUp;
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

/// Counts from the exact slots. Rows whose keys are all without a slot are bounded in number: beyond that the largest stay.
#[derive(Debug)]
pub(super) struct SlotTally {
    keys: HashMap<Key, Counter>,
    limit: usize,
    /// With so many rows it is time to give up some.
    crowded: usize,
    /// Losses of rows that were given up, by cause.
    rest: [Sum; CAUSES],
    given_up: GivenUp,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    /// In slots.
    now: u64,
    /// No longer in slots.
    retired: u64,
    before: u64,
    /// The row may have been given up once.
    late: bool,
}

impl Counter {
    /// Slots only grow until they are retired; a key whose slots were left out of a sample keeps its total.
    fn total(&self) -> u64 {
        (self.now + self.retired).max(self.before)
    }
}

impl SlotTally {
    pub fn new() -> Self {
        Self::with_limit(LIMIT)
    }

    pub fn with_limit(limit: usize) -> Self {
        Self {
            keys: HashMap::new(),
            limit,
            crowded: limit,
            rest: [Sum::default(); CAUSES],
            given_up: GivenUp::default(),
        }
    }

    /// Adds a slot's count to its row. Several slots may share one.
    pub fn add(&mut self, key: Key, count: u64) {
        self.counter(key).now += count;
    }

    /// Adds what no slot holds any more. Once all of a tick's slots have been added.
    pub fn retire(&mut self, key: Key, count: u64) {
        if self.keys.len() >= self.crowded && !self.keys.contains_key(&key) {
            self.make_room();
        }
        self.counter(key).retired += count;
    }

    fn counter(&mut self, key: Key) -> &mut Counter {
        let given_up = &self.given_up;
        self.keys
            .entry(key)
            .or_insert_with(|| Counter { late: given_up.may_contain(&key), ..Counter::default() })
    }

    /// The rows that moved since the last tick, and what has no row.
    pub fn close_tick(&mut self) -> (Vec<Tallied>, [Sum; CAUSES]) {
        if self.keys.len() > self.limit / 4 * 3 {
            self.make_room();
        }
        let mut moved = Vec::new();
        for (key, counter) in &mut self.keys {
            let total = counter.total();
            if total > counter.before {
                let losses = total - counter.before;
                moved.push(Tallied { key: *key, losses, total, whole: !counter.late });
            }
            (counter.now, counter.before) = (0, total);
        }
        let rest = self.rest;
        for sum in &mut self.rest {
            sum.losses = 0;
        }
        (moved, rest)
    }

    /// All rows over the whole run, and what has no row.
    pub fn totals(&self) -> (Vec<Tallied>, [Sum; CAUSES]) {
        let whole_run = |(key, counter): (&Key, &Counter)| Tallied {
            key: *key,
            losses: counter.before,
            total: counter.before,
            whole: !counter.late,
        };
        let rows = self.keys.iter().map(whole_run).filter(|row| row.total > 0).collect();
        (rows, self.rest.map(|sum| Sum { losses: sum.total, ..sum }))
    }

    /// Drops the smaller half of the rows that have no slot.
    fn make_room(&mut self) {
        let Self { keys, limit, crowded, rest, given_up } = self;
        // A row that was dropped while it has a slot, or before what it had in one came in as retired, would come back with
        // all of these losses.
        let is_settled = |counter: &Counter| counter.now == 0 && counter.retired == counter.total();
        let size = |counter: &Counter| if is_settled(counter) { counter.retired } else { u64::MAX };
        keep_largest(keys, *limit / 2, size, |key, counter| {
            let sum = &mut rest[usize::from(key.cause()) % CAUSES];
            sum.losses += counter.total() - counter.before;
            sum.total += counter.total();
            given_up.add(key);
        });
        // Rows with slots may be more than that.
        *crowded = (*limit).max(keys.len() + *limit / 2);
    }
}

/// Drops all but `keep` entries, the largest; those of size [`u64::MAX`] all stay. Many may tie at the threshold: room for
/// them is what the larger ones leave.
fn keep_largest<V>(
    keys: &mut HashMap<Key, V>,
    keep: usize,
    size: impl Fn(&V) -> u64,
    mut drop: impl FnMut(&Key, &V),
) {
    if keys.len() <= keep {
        return;
    }
    let mut sizes: Vec<u64> = keys.values().map(&size).collect();
    let (_, &mut smallest_kept, _) = sizes.select_nth_unstable_by(keep, |a, b| b.cmp(a));
    let larger = sizes[..keep].iter().filter(|size| **size > smallest_kept).count();
    let mut ties = if smallest_kept == u64::MAX { usize::MAX } else { keep - larger };
    keys.retain(|key, value| {
        let size = size(value);
        let keeps = size > smallest_kept || (size == smallest_kept && ties > 0);
        if keeps && size == smallest_kept {
            ties -= 1;
        }
        if !keeps {
            drop(key, value);
        }
        keeps
    });
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
        if self.keys.len() > self.limit / 4 * 3 {
            self.keep(self.limit / 2);
        }
    }

    /// Sums up all but so many rows, the largest. Between two ticks.
    pub fn keep(&mut self, most: usize) {
        let Self { keys, limit: _, rest } = self;
        keep_largest(
            keys,
            most,
            |entry| entry.total,
            |key, entry| {
                rest[usize::from(key.cause()) % CAUSES].total += entry.total;
            },
        );
    }

    /// What there are rows of.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.keys()
    }
}

fn tallied(key: &Key, entry: &Entry) -> Tallied {
    Tallied { key: *key, losses: entry.losses, total: entry.total, whole: !entry.late }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NetnsId, Protocol};
    use crate::state::by::By;
    use crate::state::key::{ClassifiedLoss, Facts};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What rows and the rests of all causes add up to.
    fn in_all(rows: &[Tallied], rest: &[Sum], of_row: fn(&Tallied) -> u64, of_rest: fn(&Sum) -> u64) -> u64 {
        rows.iter().map(of_row).sum::<u64>() + rest.iter().map(of_rest).sum::<u64>()
    }

    fn key(port: u16) -> Key {
        let facts = Facts {
            netns: NetnsId::from_packed(1),
            proto: Some(Protocol::TCP),
            port: Some(port),
            loopback: Some(false),
            zone: None,
        };
        ClassifiedLoss { cause: Cause::TableFull, facts }.key(By::Port, None)
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
                let sum = in_all(&rows, &rest, |row| row.losses, |sum| sum.losses);
                prop_assert_eq!(sum, tick.len() as u64);
                for row in &rows {
                    let truth = truth[&row.key.fields().port];
                    prop_assert!(row.total <= truth);
                    // A row that calls itself whole is.
                    prop_assert!(!row.whole || row.total == truth);
                }
            }
            let (rows, rest) = tally.totals();
            let sum = in_all(&rows, &rest, |row| row.total, |sum| sum.total);
            prop_assert_eq!(sum, all);
        }

        #[test]
        fn slot_rows_are_the_difference_of_their_totals(
            ticks in proptest::collection::vec(proptest::collection::vec((0..8u16, 1..1000u64), 0..20), 1..8),
        ) {
            let mut tally = SlotTally::new();
            let mut slots = BTreeMap::<u16, u64>::new();
            for tick in ticks {
                for (port, count) in &tick {
                    *slots.entry(*port).or_default() += count;
                }
                for (port, total) in &slots {
                    tally.add(key(*port), *total);
                }
                let (rows, _) = tally.close_tick();
                let losses: u64 = tick.iter().map(|(_, count)| count).sum();
                prop_assert_eq!(rows.iter().map(|row| row.losses).sum::<u64>(), losses);
                for row in rows {
                    prop_assert_eq!(row.total, slots[&row.key.fields().port]);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn slots_that_are_given_back_leave_rows_that_add_up_and_say_whether_they_are_whole(
            limit in 4..32usize,
            ticks in proptest::collection::vec(
                (
                    proptest::collection::vec((0..300u16, 1..50u64), 0..60),
                    proptest::collection::btree_set(0..300u16, 0..200),
                ),
                1..12,
            ),
        ) {
            let mut tally = SlotTally::with_limit(limit);
            let (mut slots, mut truth) = (BTreeMap::<u16, u64>::new(), BTreeMap::<u16, u64>::new());
            let mut all = 0;
            for (lost, give_back) in ticks {
                for (port, count) in &lost {
                    *slots.entry(*port).or_default() += count;
                    *truth.entry(*port).or_default() += count;
                }
                // Half of a slot's losses come after it was given back and claimed again.
                let retired: Vec<(u16, u64)> = give_back
                    .iter()
                    .filter_map(|port| {
                        let total = slots.remove(port)?;
                        if port % 3 == 0 && total > 1 {
                            slots.insert(*port, total / 2);
                        }
                        Some((*port, total - slots.get(port).copied().unwrap_or(0)))
                    })
                    .collect();
                for (port, count) in &slots {
                    tally.add(key(*port), *count);
                }
                for (port, count) in &retired {
                    tally.retire(key(*port), *count);
                }
                let (rows, rest) = tally.close_tick();
                prop_assert!(tally.keys.len() <= limit.max(slots.len() + limit / 2), "{} rows", tally.keys.len());
                let losses: u64 = lost.iter().map(|(_, count)| count).sum();
                all += losses;
                let sum = in_all(&rows, &rest, |row| row.losses, |sum| sum.losses);
                prop_assert_eq!(sum, losses);
                for row in &rows {
                    let truth = truth[&row.key.fields().port];
                    prop_assert!(row.total <= truth);
                    prop_assert!(!row.whole || row.total == truth);
                }
            }
            let (rows, rest) = tally.totals();
            let sum = in_all(&rows, &rest, |row| row.total, |sum| sum.total);
            prop_assert_eq!(sum, all);
        }
    }

    #[test]
    fn after_a_scan_of_all_ports_a_new_victim_has_a_row_that_is_whole() {
        let mut tally = SlotTally::new();
        // Each port twice, over IPv4 and over IPv6: not at the same time.
        for tick in 0..8u16 {
            for port in (0..=u16::MAX).filter(|port| port % 4 == tick % 4 && *port != 6379) {
                tally.retire(key(port), 1);
            }
            tally.close_tick();
            assert!(tally.keys.len() <= LIMIT);
        }
        tally.add(key(6379), 500);
        let (rows, _) = tally.close_tick();
        assert_eq!(rows, [Tallied { key: key(6379), losses: 500, total: 500, whole: true }]);
        let (rows, rest) = tally.totals();
        let sums = rows.iter().map(|row| row.total).chain(rest.iter().map(|sum| sum.total));
        assert_eq!(sums.sum::<u64>(), 2 * 65_535 + 500);
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
