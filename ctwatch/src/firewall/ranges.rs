//! Sets of numbers as sorted intervals, because a rule names addresses and ports by ranges and a path narrows them down.
//! Exact: no operation here may round or guess.

/// A set of numbers: sorted, disjoint, inclusive intervals that don't touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    /// All numbers from `low` to `high`, both included.
    #[must_use]
    pub fn span(low: u128, high: u128) -> Self {
        Self(if low <= high { vec![(low, high)] } else { Vec::new() })
    }

    /// One number.
    #[must_use]
    pub fn one(value: u128) -> Self {
        Self::span(value, value)
    }

    /// Everything in any of these intervals.
    #[must_use]
    pub fn of(intervals: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut sorted: Vec<_> = intervals.into_iter().filter(|(low, high)| low <= high).collect();
        sorted.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (low, high) in sorted {
            match merged.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    /// Everything in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (few, many) = if self.0.len() <= other.0.len() { (self, other) } else { (other, self) };
        let mut both = Vec::new();
        for (low, high) in &few.0 {
            let first = many.0.partition_point(|(_, end)| end < low);
            let met = many.0[first..].iter().take_while(|(start, _)| start <= high);
            both.extend(met.map(|(start, end)| (*low.max(start), *high.min(end))));
        }
        Self(both)
    }

    /// Everything in any of the two.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self::of(self.0.iter().chain(&other.0).copied())
    }

    /// Everything that is in this one only.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let [(low, high)] = other.0[..] else { return self.and(&other.not()) };
        let first = self.0.partition_point(|(_, end)| *end < low);
        let last = first + self.0[first..].partition_point(|(start, _)| *start <= high);
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        rest.extend_from_slice(&self.0[..first]);
        for (start, end) in &self.0[first..last] {
            rest.extend((*start < low).then(|| (*start, low - 1)));
            rest.extend((*end > high).then(|| (high + 1, *end)));
        }
        rest.extend_from_slice(&self.0[last..]);
        Self(rest)
    }

    /// Whether they have a number in common.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        let (few, many) = if self.0.len() <= other.0.len() { (self, other) } else { (other, self) };
        few.0.iter().any(|(low, high)| {
            let first = many.0.partition_point(|(_, end)| end < low);
            many.0.get(first).is_some_and(|(start, _)| start <= high)
        })
    }

    /// Whether all of it is in the other.
    #[must_use]
    pub fn is_in(&self, other: &Self) -> bool {
        self.0.iter().all(|(low, high)| {
            let first = other.0.partition_point(|(_, end)| end < low);
            other.0.get(first).is_some_and(|(start, end)| start <= low && high <= end)
        })
    }

    /// Everything that isn't in it.
    #[must_use]
    pub fn not(&self) -> Self {
        let mut gaps = Vec::with_capacity(self.0.len() + 1);
        let mut next = Some(0);
        for (low, high) in &self.0 {
            if let Some(start) = next
                && start < *low
            {
                gaps.push((start, low - 1));
            }
            next = high.checked_add(1);
        }
        if let Some(start) = next {
            gaps.push((start, u128::MAX));
        }
        Self(gaps)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this number is in it.
    #[must_use]
    pub fn contains(&self, value: u128) -> bool {
        let after = self.0.partition_point(|(low, _)| *low <= value);
        after > 0 && self.0[after - 1].1 >= value
    }

    /// Its intervals, in order.
    #[must_use]
    pub fn intervals(&self) -> &[(u128, u128)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Ranges;

    fn ranges() -> impl Strategy<Value = Ranges> {
        // Small numbers and the two ends, so that intervals touch, overlap and reach the limits.
        let number = prop_oneof![0..40u128, Just(u128::MAX), Just(u128::MAX - 1)];
        proptest::collection::vec((number.clone(), number), 0..6).prop_map(Ranges::of)
    }

    proptest! {
        #[test]
        fn set_algebra_is_that_of_single_numbers(a in ranges(), b in ranges()) {
            for value in (0..42).chain([u128::MAX - 2, u128::MAX - 1, u128::MAX]) {
                let (in_a, in_b) = (a.contains(value), b.contains(value));
                prop_assert_eq!(a.and(&b).contains(value), in_a && in_b);
                prop_assert_eq!(a.or(&b).contains(value), in_a || in_b);
                prop_assert_eq!(a.not().and(&b.not()).not().contains(value), in_a || in_b);
                prop_assert_eq!(a.not().contains(value), !in_a);
                prop_assert_eq!(a.without(&b).contains(value), in_a && !in_b);
            }
            prop_assert_eq!(a.meets(&b), !a.and(&b).is_empty());
            prop_assert_eq!(a.is_in(&b), a.without(&b).is_empty());
            prop_assert_eq!(a.without(&b), a.and(&b.not()));
            prop_assert_eq!(a.not().not(), a);
        }
    }
}
