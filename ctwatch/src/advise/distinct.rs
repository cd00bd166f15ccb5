//! How many different tuples were refused, per service: exact while they are few, by a fair sample when they are many.
//! Bounded: it never holds more than 65,536 hashes.

use std::collections::HashMap;
use std::hash::Hash;

/// Hashes remembered.
const MOST: usize = 1 << 16;

/// Different things of several kinds.
#[derive(Debug)]
pub struct Distinct<K> {
    /// What each hash belongs to, and whether it was first seen after things had settled.
    seen: HashMap<u64, (K, bool)>,
    /// Only hashes that end in so many zero bits are remembered.
    level: u32,
}

impl<K> Default for Distinct<K> {
    fn default() -> Self {
        Self { seen: HashMap::new(), level: 0 }
    }
}

impl<K: Copy + Eq + Hash> Distinct<K> {
    /// Counts one, unless it was there before.
    pub fn add(&mut self, hash: u64, kind: K, settled: bool) {
        if hash.trailing_zeros() < self.level {
            return;
        }
        self.seen.entry(hash).or_insert((kind, settled));
        while self.seen.len() > MOST {
            self.level += 1;
            self.seen.retain(|hash, _| hash.trailing_zeros() >= self.level);
        }
    }

    /// What this one belongs to, if it was seen and is remembered; and how many it stands for.
    pub fn find(&self, hash: u64) -> Option<(K, f64)> {
        self.seen.get(&hash).map(|(kind, _)| (*kind, f64::from(1_u32 << self.level)))
    }

    /// Those of this kind that were first seen after things had settled.
    pub fn since_settled(&self, kind: &K) -> f64 {
        let found = self.seen.values().filter(|(of, settled)| of == kind && *settled).count();
        found as f64 * f64::from(1_u32 << self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: u64) -> u64 {
        (number ^ number >> 31)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(32)
            .wrapping_mul(0xD6E8_FEB8_6659_FD93)
    }

    #[test]
    fn few_are_counted_exactly_and_repetition_not_at_all() {
        let mut distinct = Distinct::default();
        for number in 0..1_000 {
            for _ in 0..3 {
                distinct.add(hash(number), number % 2, number >= 500);
            }
        }
        assert_eq!((distinct.since_settled(&0), distinct.since_settled(&1)), (250.0, 250.0));
    }

    #[test]
    fn a_million_are_counted_within_two_percent_in_bounded_room() {
        let mut distinct = Distinct::default();
        for number in 0..1_000_000 {
            distinct.add(hash(number), (), true);
        }
        assert!(distinct.seen.len() <= MOST);
        assert!((distinct.since_settled(&()) - 1e6).abs() < 2e4, "{}", distinct.since_settled(&()));
    }
}
