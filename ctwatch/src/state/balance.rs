//! The kernel's counters against ours, netns by netns: what is unexplained.
//! Kernel counters are read before and after ours, so any value inside that bracket agrees.

use ctwatch_common::Cause;
use ctwatch_common::cause::CAUSES;

use crate::contract::Counted;
use crate::model::CounterArray;

/// One netns's side of the account.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bracket {
    pub before: CounterArray,
    pub after: CounterArray,
    /// The kernel's last word is missing (the netns died, or it can't be read): it may have counted any more.
    pub open: bool,
    /// Not one word of it was heard.
    pub unreadable: bool,
}

impl Bracket {
    /// Counters of which we counted more than the kernel was heard to say, or of which nothing can be read, though we may have
    /// counted nothing either: there is nothing to compare them with.
    pub fn unheard(&self, ours: CounterArray) -> CounterArray<bool> {
        std::array::from_fn(|counter| self.unreadable || (self.open && ours[counter] > self.after[counter]))
    }
}

/// What all namespaces together leave unexplained.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Balance {
    /// How much more ours must be at least, to reach every bracket from below.
    low: CounterArray,
    /// How much more ours may be at most, to stay inside every bracket.
    high: CounterArray,
    /// How far ours is above brackets already.
    excess: CounterArray,
}

impl Balance {
    pub fn add(&mut self, bracket: &Bracket, ours: CounterArray) {
        for (counter, ours) in ours.into_iter().enumerate() {
            let (before, after) = (bracket.before[counter], bracket.after[counter]);
            self.low[counter] += before.saturating_sub(ours);
            let room = if bracket.open { u64::MAX } else { after.saturating_sub(ours) };
            self.high[counter] = self.high[counter].saturating_add(room);
            if !bracket.open {
                self.excess[counter] += ours.saturating_sub(after.max(before));
            }
        }
    }

    /// `elsewhere`: what we counted without knowing the netns. It may belong to any of them.
    pub fn unexplained(&self, elsewhere: CounterArray) -> CounterArray<i64> {
        let mut result = [0; 4];
        for counter in 0..4 {
            let more = elsewhere[counter];
            result[counter] = if more < self.low[counter] {
                signed(self.low[counter] - more)
            } else {
                -signed(more.saturating_sub(self.high[counter]))
            } - signed(self.excess[counter]);
        }
        result
    }
}

/// How far ours is outside of one netns's bracket, as far as `elsewhere` can't account for it.
pub(super) fn distance(bracket: &Bracket, ours: CounterArray, elsewhere: CounterArray) -> CounterArray<i64> {
    let mut balance = Balance::default();
    balance.add(bracket, ours);
    let mut result = [0; 4];
    for counter in 0..4 {
        let missing = balance.low[counter].saturating_sub(elsewhere[counter]);
        result[counter] = signed(missing) - signed(balance.excess[counter]);
    }
    result
}

/// What our losses by cause would have moved the kernel's counters by.
pub(super) fn in_kernel_terms(by_cause: &[u64; CAUSES]) -> CounterArray {
    Counted(*by_cause).in_kernel_terms().as_array()
}

/// The tracepoint backend may have taken a firewall's drops for conntrack's: how many it claims too much.
pub(super) fn overcounted(bracket: &Bracket, by_cause: &[u64; CAUSES]) -> u64 {
    if bracket.open {
        return 0;
    }
    let [drop, ..] = in_kernel_terms(by_cause);
    drop.saturating_sub(bracket.after[0]).min(by_cause[Cause::TableFull as usize])
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drops(before: u64, after: u64) -> Bracket {
        Bracket { before: [before, 0, 0, 0], after: [after, 0, 0, 0], open: false, unreadable: false }
    }

    fn total(account: &[(Bracket, u64)], elsewhere: u64) -> i64 {
        let mut balance = Balance::default();
        for (bracket, ours) in account {
            balance.add(bracket, [*ours, 0, 0, 0]);
        }
        balance.unexplained([elsewhere, 0, 0, 0])[0]
    }

    #[test]
    fn inside_the_bracket_is_explained_outside_is_the_way_back() {
        assert_eq!(total(&[(drops(10, 12), 10)], 0), 0);
        assert_eq!(total(&[(drops(10, 12), 12)], 0), 0);
        assert_eq!(total(&[(drops(10, 12), 7)], 0), 3);
        assert_eq!(total(&[(drops(10, 12), 15)], 0), -3);
    }

    #[test]
    fn a_wide_bracket_does_not_hide_another_netns() {
        assert_eq!(total(&[(drops(0, 1000), 500), (drops(10, 10), 7)], 0), 3);
    }

    #[test]
    fn overflow_may_belong_to_any_netns() {
        assert_eq!(total(&[(drops(10, 10), 7), (drops(5, 5), 5)], 3), 0);
        assert_eq!(total(&[(drops(10, 10), 7), (drops(5, 5), 5)], 2), 1);
        assert_eq!(total(&[(drops(10, 10), 7), (drops(5, 5), 5)], 4), -1);
    }

    #[test]
    fn a_dead_netns_may_have_counted_more_than_its_last_sample_says() {
        let dead = Bracket { open: true, ..drops(10, 10) };
        assert_eq!(total(&[(dead, 25)], 0), 0);
        assert_eq!(total(&[(dead, 8)], 0), 2);
    }

    #[test]
    fn of_what_cannot_be_read_nothing_agrees_though_nothing_was_counted() {
        let closed = Bracket { open: true, unreadable: true, ..drops(0, 0) };
        assert_eq!(closed.unheard([0; 4]), [true; 4]);
        let dead = Bracket { open: true, ..drops(10, 10) };
        assert_eq!(dead.unheard([12, 0, 0, 0]), [true, false, false, false]);
    }

    #[test]
    fn what_a_firewall_dropped_is_not_claimed() {
        let mut ours = [0; CAUSES];
        ours[Cause::TableFull as usize] = 15;
        assert_eq!(overcounted(&drops(10, 12), &ours), 3);
        ours[Cause::TableFull as usize] = 11;
        assert_eq!(overcounted(&drops(10, 12), &ours), 0);
    }

    proptest! {
        #[test]
        fn one_netns_alone_has_the_distance_of_the_whole(before in 0..100u64, wide in 0..10u64, ours in 0..120u64) {
            let bracket = drops(before, before + wide);
            prop_assert_eq!(distance(&bracket, [ours, 0, 0, 0], [0; 4])[0], total(&[(bracket, ours)], 0));
        }
    }
}
