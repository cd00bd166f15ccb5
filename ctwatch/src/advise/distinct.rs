//! Which tuples were refused, per service, and since when: exact while they are few, by a fair sample when they are many.
//! Bounded: it never holds more than 65,536 hashes.

use std::collections::HashMap;
use std::hash::Hash;

/// Hashes remembered.
const MOST: usize = 1 << 16;

/// A thing that was seen.
#[derive(Clone, Copy, Debug)]
struct Seen<K> {
    kind: K,
    /// When it was first seen, seconds.
    first: f64,
    /// And last.
    last: f64,
    /// It was first seen after things had settled.
    settled: bool,
    /// It was seen a second time soon after, or got in.
    again: bool,
}

/// Different things of several kinds.
#[derive(Debug)]
pub struct Distinct<K> {
    seen: HashMap<u64, Seen<K>>,
    /// Only hashes that end in so many zero bits are remembered.
    level: u32,
}

/// Things first seen within a time: those seen again soon after, and those that were not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FirstSeen {
    /// Not seen again soon.
    pub once: f64,
    /// Seen again soon, or got in.
    pub again: f64,
}

impl<K> Default for Distinct<K> {
    fn default() -> Self {
        Self { seen: HashMap::new(), level: 0 }
    }
}

impl<K: Copy + Eq + Hash> Distinct<K> {
    /// Counts one, unless it was there before. Within `soon` seconds it counts as seen again.
    pub fn add(&mut self, hash: u64, kind: K, at: f64, settled: bool, soon: f64) {
        if hash.trailing_zeros() < self.level {
            return;
        }
        let new = Seen { kind, first: at, last: at, settled, again: false };
        let seen_again = |seen: &mut Seen<K>| {
            seen.again |= at - seen.first <= soon;
            seen.last = seen.last.max(at);
        };
        self.seen.entry(hash).and_modify(seen_again).or_insert(new);
        while self.seen.len() > MOST {
            self.level += 1;
            self.seen.retain(|hash, _| hash.trailing_zeros() >= self.level);
        }
    }

    /// How many this one stands for, if it was seen and is remembered. It got in.
    pub fn got_in(&mut self, hash: u64) -> Option<f64> {
        self.seen.get_mut(&hash)?.again = true;
        Some(self.each())
    }

    /// Those of this kind that were first seen after things had settled.
    pub fn since_settled(&self, kind: &K) -> f64 {
        let found = self.seen.values().filter(|seen| seen.kind == *kind && seen.settled).count();
        found as f64 * self.each()
    }

    /// Those of this kind that were first seen from one time on to before another.
    pub fn first_seen(&self, kind: &K, from: f64, to: f64) -> FirstSeen {
        let mut found = FirstSeen::default();
        for seen in self.seen.values().filter(|seen| seen.kind == *kind && (from..to).contains(&seen.first)) {
            *(if seen.again { &mut found.again } else { &mut found.once }) += self.each();
        }
        found
    }

    /// Of those of this kind that were first seen before a time, and soon again: the part that was still seen so many seconds
    /// after the first time. None if there are none.
    pub fn persisting(&self, kind: &K, before: f64, after: f64) -> Option<f64> {
        let (mut of, mut still) = (0_u32, 0_u32);
        for seen in self.seen.values().filter(|seen| seen.kind == *kind && seen.again && seen.first < before)
        {
            of += 1;
            still += u32::from(seen.last - seen.first >= after);
        }
        (of > 0).then(|| f64::from(still) / f64::from(of))
    }

    fn each(&self) -> f64 {
        f64::from(1_u32 << self.level)
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
                distinct.add(hash(number), number % 2, 0.0, number >= 500, 1.0);
            }
        }
        assert_eq!((distinct.since_settled(&0), distinct.since_settled(&1)), (250.0, 250.0));
    }

    #[test]
    fn a_million_are_counted_within_two_percent_in_bounded_room() {
        let mut distinct = Distinct::default();
        for number in 0..1_000_000 {
            distinct.add(hash(number), (), 0.0, true, 1.0);
        }
        assert!(distinct.seen.len() <= MOST);
        assert!((distinct.since_settled(&()) - 1e6).abs() < 2e4, "{}", distinct.since_settled(&()));
    }
    #[test]
    fn what_comes_again_soon_is_told_from_what_does_not() {
        let mut distinct = Distinct::default();
        for (number, at) in [(1, 2.0), (1, 3.0), (2, 2.0), (2, 10.0), (3, 9.0), (4, 2.5), (5, 2.5)] {
            distinct.add(hash(number), (), at, true, 1.6);
        }
        assert_eq!(distinct.got_in(hash(4)), Some(1.0));
        assert_eq!(distinct.got_in(hash(6)), None);
        assert_eq!(distinct.first_seen(&(), 2.0, 9.0), FirstSeen { once: 2.0, again: 2.0 });
        assert_eq!(distinct.first_seen(&(), 9.0, 20.0), FirstSeen { once: 1.0, again: 0.0 });
        distinct.add(hash(1), (), 5.0, true, 1.6);
        assert_eq!(
            distinct.persisting(&(), 9.0, 2.5),
            Some(0.5),
            "one of the two that came again is still there"
        );
        assert_eq!(distinct.persisting(&(), 1.0, 2.5), None);
    }
}
