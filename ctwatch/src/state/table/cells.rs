//! Entries by key in a bounded number of cells: exact while there are cells, Space-Saving from then on.
//! One hash and a few additions per entry; no allocation once the cells are there.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use super::key::Wide;
use super::spread::{Spread, Spreads};
use crate::model::{StateCounts, TableEntry};

/// No cell, or no spread.
const NONE: u32 = u32::MAX;

/// A key small enough to be copied around.
pub(super) trait Key: Copy + Ord {
    /// Seeded, for sources of packets are chosen by whoever sends them.
    fn hash(&self, seed: u64) -> u64;
}

impl Key for u64 {
    fn hash(&self, seed: u64) -> u64 {
        fold(*self ^ seed, seed)
    }
}

impl Key for Wide {
    fn hash(&self, seed: u64) -> u64 {
        self.0.iter().fold(seed, |hash, word| fold(hash ^ word, seed))
    }
}

fn fold(word: u64, seed: u64) -> u64 {
    let product = u128::from(word) * u128::from(seed.rotate_left(32) | 0x8000_0000_0000_0001);
    (product >> 64) as u64 ^ product as u64
}

/// Entries of several kinds, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub entries: u64,
    pub assured: u64,
    pub time_wait: u64,
}

impl Sum {
    #[inline]
    pub fn add(&mut self, entry: &TableEntry) {
        self.entries += 1;
        self.assured += u64::from(entry.assured);
        self.time_wait += u64::from(entry.tcp_state == StateCounts::TIME_WAIT);
    }
}

struct Cell<K> {
    key: K,
    entries: u32,
    /// As many of them may be another key's.
    error: u32,
    assured: u32,
    time_wait: u32,
    spread: u32,
}

/// What was counted of one key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Counted<K> {
    pub key: K,
    /// At most so many,
    pub entries: u64,
    /// and at least so many fewer.
    pub error: u64,
    /// Of the entries that are certainly this key's.
    pub assured: u64,
    pub time_wait: u64,
    pub left_median: Option<f64>,
    pub left_p90: Option<f64>,
    pub age_median: Option<f64>,
}

impl<K> Counted<K> {
    pub fn with_key<L>(self, key: L) -> Counted<L> {
        let Self { key: _, entries, error, assured, time_wait, left_median, left_p90, age_median } = self;
        Counted { key, entries, error, assured, time_wait, left_median, left_p90, age_median }
    }
}

/// Counts by key.
///
/// When all cells are taken, a new key takes one with the fewest entries and inherits its count as its error
/// (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams, 2005). So a cell's
/// count is never too low, too high by its error at most, and that at most by all entries divided by the cells. A key
/// with more entries than that has a cell.
pub(super) struct Cells<K> {
    /// Open addressing: a cell's place, or NONE. Twice as long as there may be cells.
    index: Vec<u32>,
    cells: Vec<Cell<K>>,
    most: usize,
    seed: u64,
    spreads: Spreads,
    /// Where the search for a cell with `fewest` entries goes on: no cell before it has so few.
    hand: usize,
    fewest: u32,
}

impl<K: Key> Cells<K> {
    pub fn new(most: usize) -> Self {
        Self {
            index: vec![NONE; 64.min(most.next_power_of_two() * 2)],
            cells: Vec::new(),
            most,
            seed: RandomState::new().build_hasher().finish(),
            spreads: Spreads::default(),
            hand: 0,
            fewest: 1,
        }
    }

    #[inline]
    pub fn add(&mut self, key: K, entry: &TableEntry, age: Option<u32>) {
        let place = match self.find(&key) {
            Ok(place) => place,
            Err(slot) => self.make(key, slot),
        };
        let cell = &mut self.cells[place as usize];
        cell.entries = cell.entries.saturating_add(1);
        cell.assured += u32::from(entry.assured);
        cell.time_wait += u32::from(entry.tcp_state == StateCounts::TIME_WAIT);
        if cell.spread == NONE {
            self.claim_spread(place);
        }
        let spread = self.cells[place as usize].spread;
        if spread != NONE {
            self.spreads.at(spread).add(entry.left, age);
        }
    }

    /// The place of a key's cell, or the slot of the index where it belongs.
    fn find(&self, key: &K) -> Result<u32, usize> {
        let mask = self.index.len() - 1;
        let mut slot = key.hash(self.seed) as usize & mask;
        loop {
            match self.index[slot] {
                NONE => return Err(slot),
                place if self.cells[place as usize].key == *key => return Ok(place),
                _ => slot = (slot + 1) & mask,
            }
        }
    }

    /// A cell for a new key: a fresh one, or the one of a key with the fewest entries.
    fn make(&mut self, key: K, slot: usize) -> u32 {
        let fresh = Cell { key, entries: 0, error: 0, assured: 0, time_wait: 0, spread: NONE };
        if self.cells.len() < self.most {
            let place = self.cells.len() as u32;
            self.cells.push(fresh);
            self.index[slot] = place;
            if self.cells.len() * 2 > self.index.len() {
                self.grow();
            }
            return place;
        }
        let place = self.fewest();
        self.unlink(place);
        let Err(slot) = self.find(&key) else { unreachable!("the key was not there") };
        self.index[slot] = place;
        let cell = &mut self.cells[place as usize];
        *cell = Cell { entries: cell.entries, error: cell.entries, spread: cell.spread, ..fresh };
        if cell.spread != NONE {
            self.spreads.clear(cell.spread);
        }
        place
    }

    /// Counts only grow, so the hand goes round once for each number of entries: a step per entry on average.
    fn fewest(&mut self) -> u32 {
        loop {
            while self.hand < self.cells.len() {
                if self.cells[self.hand].entries <= self.fewest {
                    return self.hand as u32;
                }
                self.hand += 1;
            }
            self.hand = 0;
            self.fewest += 1;
        }
    }

    /// Takes a cell out of the index, and closes the gap that others may have been found across.
    fn unlink(&mut self, place: u32) {
        let mask = self.index.len() - 1;
        let home = |cells: &[Cell<K>], seed, place: u32| cells[place as usize].key.hash(seed) as usize & mask;
        let mut gap = home(&self.cells, self.seed, place);
        while self.index[gap] != place {
            gap = (gap + 1) & mask;
        }
        let mut next = gap;
        loop {
            next = (next + 1) & mask;
            let other = self.index[next];
            if other == NONE {
                break;
            }
            let wants = home(&self.cells, self.seed, other);
            // It may move into the gap unless its home lies between the gap and where it is.
            if (next.wrapping_sub(wants) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.index[gap] = other;
                gap = next;
            }
        }
        self.index[gap] = NONE;
    }

    fn grow(&mut self) {
        self.index = vec![NONE; self.index.len() * 2];
        let mask = self.index.len() - 1;
        for (place, cell) in self.cells.iter().enumerate() {
            let mut slot = cell.key.hash(self.seed) as usize & mask;
            while self.index[slot] != NONE {
                slot = (slot + 1) & mask;
            }
            self.index[slot] = place as u32;
        }
    }

    fn claim_spread(&mut self, place: u32) {
        let cells = &self.cells;
        let certain = |place: u32| cells[place as usize].entries - cells[place as usize].error;
        if let Some((spread, before)) = self.spreads.claim(place, certain(place), certain) {
            if let Some(before) = before {
                self.cells[before as usize].spread = NONE;
            }
            self.cells[place as usize].spread = spread;
        }
    }

    /// The keys with the most entries, most first, without those of which only one entry is certain; and where that is not
    /// all that there is to know, how many entries any other key has at most.
    pub fn finish(mut self, top: usize) -> (Vec<Counted<K>>, Option<u64>) {
        let is_told = |cell: &Cell<K>| cell.error == 0 || cell.entries - cell.error > 1;
        let told = |place: &u32| is_told(&self.cells[*place as usize]);
        let mut order: Vec<u32> = (0..self.cells.len() as u32).filter(told).collect();
        let is_approximate = self.cells.iter().any(|cell| cell.error > 0);
        let rank = |place: &u32| {
            let cell = &self.cells[*place as usize];
            // By what is certain, which is what is shown.
            (std::cmp::Reverse((cell.entries - cell.error, cell.entries)), cell.key)
        };
        if top < order.len() {
            order.select_nth_unstable_by_key(top, rank);
            order.truncate(top);
        }
        order.sort_unstable_by_key(rank);
        let shown: HashSet<u32> = order.iter().copied().collect();
        let others = (0u32..).zip(&self.cells).filter(|(place, _)| !shown.contains(place));
        let most = others.map(|(_, cell)| cell.entries).max();
        // A key without a cell has no more entries than the cell with the fewest.
        let fewest = self.cells.iter().map(|cell| cell.entries).min();
        let each_at_most = most.max(fewest).filter(|_| is_approximate).map(u64::from);
        (order.into_iter().map(|place| self.counted(place)).collect(), each_at_most)
    }

    /// All of them, in no order.
    #[cfg(test)]
    fn all(mut self) -> Vec<Counted<K>> {
        (0..self.cells.len() as u32).map(|place| self.counted(place)).collect()
    }

    fn counted(&mut self, place: u32) -> Counted<K> {
        let Cell { key, entries, error, assured, time_wait, spread } = self.cells[place as usize];
        // What was seen of it must tell for the whole.
        let certain = entries - error;
        let spread: Option<&Spread> = (spread != NONE)
            .then(|| &*self.spreads.at(spread))
            .filter(|spread| spread.entries() >= certain / 4);
        Counted {
            key,
            entries: entries.into(),
            error: error.into(),
            assured: assured.into(),
            time_wait: time_wait.into(),
            left_median: spread.and_then(|spread| spread.left(0.5)),
            left_p90: spread.and_then(|spread| spread.left(0.9)),
            age_median: spread.and_then(|spread| spread.age(0.5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::prelude::*;

    /// Few keys often, many seldom.
    fn keys() -> impl Strategy<Value = Vec<u64>> {
        let key = prop_oneof![3 => 0..10u64, 2 => 0..300u64, 1 => any::<u64>()];
        prop::collection::vec(key, 0..3_000)
    }

    fn count<K: Key>(most: usize, keys: &[K]) -> Vec<Counted<K>> {
        let mut cells = Cells::new(most);
        for key in keys {
            cells.add(*key, &TableEntry { assured: true, left: 60, ..TableEntry::default() }, None);
        }
        cells.all()
    }

    fn truth(keys: &[u64]) -> HashMap<u64, u64> {
        let mut truth = HashMap::new();
        for key in keys {
            *truth.entry(*key).or_default() += 1;
        }
        truth
    }

    proptest! {
        // Each has thousands of keys.
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn with_room_for_all_every_count_is_exact(keys in keys()) {
            let counted = count(4_096, &keys);
            prop_assert!(counted.iter().all(|row| row.error == 0 && row.assured == row.entries));
            let found: HashMap<u64, u64> = counted.iter().map(|row| (row.key, row.entries)).collect();
            prop_assert_eq!(found, truth(&keys));
        }

        #[test]
        fn without_room_counts_keep_to_their_errors(keys in keys(), most in 1..200usize) {
            let truth = truth(&keys);
            let counted = count(most, &keys);
            prop_assert_eq!(counted.iter().map(|row| row.entries).sum::<u64>(), keys.len() as u64);
            let bound = (keys.len() / most) as u64;
            for row in &counted {
                let true_count = truth[&row.key];
                prop_assert!(row.entries >= true_count && row.entries - row.error <= true_count, "{row:?} {true_count}");
                prop_assert!(row.error <= bound);
                prop_assert_eq!(row.assured, row.entries - row.error);
            }
            for (key, true_count) in &truth {
                prop_assert!(*true_count <= bound || counted.iter().any(|row| row.key == *key), "{key} is missing");
            }
        }

        #[test]
        fn wide_keys_count_like_narrow_ones(keys in keys(), most in 1..200usize) {
            let wide: Vec<Wide> = keys.iter().map(|key| Wide([0, 0, *key, 1, 0])).collect();
            let sums = |counted: Vec<u64>| counted.iter().sum::<u64>();
            let narrow = count(most, &keys).iter().map(|row| row.entries).collect();
            let wide = count(most, &wide).iter().map(|row| row.entries).collect();
            prop_assert_eq!(sums(narrow), sums(wide));
        }
    }

    #[test]
    fn what_is_certain_decides_who_comes_first() {
        let mut cells = Cells::new(2);
        // The third takes over the cell of the second, and with it what may be its.
        for (key, times) in [(1_u64, 5), (2, 4), (3, 3)] {
            (0..times).for_each(|_| cells.add(key, &TableEntry::default(), None));
        }
        let top: Vec<_> = cells.finish(2).0.iter().map(|row| (row.key, row.entries, row.error)).collect();
        assert_eq!(top, [(1, 5, 0), (3, 7, 4)]);
    }

    #[test]
    fn the_top_comes_first_and_in_a_fixed_order() {
        let keys = [5, 5, 5, 9, 9, 1, 1, 3];
        let mut cells = Cells::new(16);
        keys.iter().for_each(|key: &u64| cells.add(*key, &TableEntry::default(), None));
        let top: Vec<_> = cells.finish(3).0.iter().map(|row| (row.key, row.entries)).collect();
        assert_eq!(top, [(5, 3), (1, 2), (9, 2)]);
    }

    #[test]
    fn a_row_of_which_one_entry_is_certain_is_left_out() {
        let mut cells = Cells::new(8);
        for key in 0..100_u64 {
            cells.add(key, &TableEntry::default(), None);
            cells.add(1_000, &TableEntry::default(), None);
        }
        let (rows, each_at_most) = cells.finish(4);
        assert_eq!(
            rows.iter().map(|row| (row.key, row.entries, row.error)).collect::<Vec<_>>(),
            [(1_000, 100, 0)]
        );
        // 100 keys in the seven other cells.
        assert_eq!(each_at_most, Some(15));
        let mut few = Cells::new(8);
        (0..5_u64).for_each(|key| few.add(key, &TableEntry::default(), None));
        let (rows, each_at_most) = few.finish(4);
        assert_eq!((rows.len(), each_at_most), (4, None), "all of one entry, and all exact");
    }

    #[test]
    fn a_large_row_that_comes_late_still_knows_its_timeouts() {
        let mut cells = Cells::new(4_096);
        for key in 0..2_000_u64 {
            cells.add(key, &TableEntry { left: 10, ..TableEntry::default() }, None);
        }
        for _ in 0..1_000 {
            cells.add(9_999, &TableEntry { left: 50, ..TableEntry::default() }, Some(7));
        }
        let row = cells.finish(1).0[0];
        assert_eq!((row.key, row.left_median, row.age_median), (9_999, Some(50.0), Some(7.0)));
    }
}
