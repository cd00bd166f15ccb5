//! How the timeouts and the ages of one row's entries are spread: medians in a fixed size.
//! A few hundred rows have one; a row that grows past another takes its place.

use crate::model::TimeoutHistogram;

/// Rows whose timeouts are kept apart.
pub(super) const SPREADS: usize = 256;
/// Before that size a row takes no other's place.
const WORTH_A_PLACE: u32 = 16;

/// Timeouts and ages of one row's entries, from when it got it on.
#[derive(Clone, Debug, Default)]
pub(super) struct Spread {
    left: Values,
    ages: Option<Box<Values>>,
}

/// Seconds, fine where they are few.
#[derive(Clone, Debug)]
struct Values {
    spread: TimeoutHistogram,
    least: u32,
    most: u32,
}

impl Default for Values {
    fn default() -> Self {
        Self { spread: TimeoutHistogram::default(), least: u32::MAX, most: 0 }
    }
}

impl Values {
    fn add(&mut self, value: u32) {
        self.spread.add(value);
        self.least = self.least.min(value);
        self.most = self.most.max(value);
    }

    /// The seconds that this part of the values doesn't exceed: exact below 64 s, else within its bucket.
    fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = (f64::from(self.spread.total()) * part).max(1.0);
        let mut sum = 0.0;
        for (from, to, values) in self.spread.buckets() {
            let values = f64::from(values);
            if sum + values >= wanted {
                let inside = (to - from - 1.0) * (wanted - sum) / values;
                return Some((from + inside).clamp(self.least.into(), self.most.into()));
            }
            sum += values;
        }
        None
    }
}

impl Spread {
    pub fn add(&mut self, left: u32, age: Option<u32>) {
        self.left.add(left);
        if let Some(age) = age {
            self.ages.get_or_insert_default().add(age);
        }
    }

    pub fn entries(&self) -> u32 {
        self.left.spread.total()
    }

    pub fn left(&self, part: f64) -> Option<f64> {
        self.left.quantile(part)
    }

    pub fn age(&self, part: f64) -> Option<f64> {
        self.ages.as_ref()?.quantile(part)
    }
}

/// All spreads, and whose they are.
#[derive(Debug, Default)]
pub(super) struct Spreads {
    held: Vec<(u32, Spread)>,
    /// No holder has fewer entries than this.
    floor: u32,
}

impl Spreads {
    /// A place for the row at `row` with so many entries, if it deserves one; `entries_of` tells those of a holder.
    /// Returns it, and the row that lost it.
    pub fn claim(
        &mut self,
        row: u32,
        entries: u32,
        entries_of: impl Fn(u32) -> u32,
    ) -> Option<(u32, Option<u32>)> {
        if self.held.len() < SPREADS {
            self.held.push((row, Spread::default()));
            return Some((self.held.len() as u32 - 1, None));
        }
        // Each row asks a few times in its life, and the half of its entries that are yet to come tell as much as all
        // do: a dump lists them in the order of a hash.
        if entries < WORTH_A_PLACE || !entries.is_power_of_two() || entries / 2 < self.floor {
            return None;
        }
        let holders = self.held.iter().enumerate().map(|(place, (row, _))| (entries_of(*row), place));
        let (fewest, place) = holders.min()?;
        self.floor = fewest;
        if entries / 2 < fewest {
            return None;
        }
        let (before, spread) = &mut self.held[place];
        *spread = Spread::default();
        Some((place as u32, Some(std::mem::replace(before, row))))
    }

    /// The row lost its key, and its entries: it starts over.
    pub fn clear(&mut self, place: u32) {
        self.held[place as usize].1 = Spread::default();
        self.floor = 0;
    }

    pub fn at(&mut self, place: u32) -> &mut Spread {
        &mut self.held[place as usize].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn seconds_below_a_minute_are_exact_and_a_single_value_is_itself() {
        let mut spread = Spread::default();
        (0..60).for_each(|left| spread.add(left, None));
        assert_eq!((spread.left(0.5), spread.left(0.9), spread.age(0.5)), (Some(29.0), Some(53.0), None));
        let mut spread = Spread::default();
        (0..9).for_each(|_| spread.add(431_990, Some(10)));
        assert_eq!((spread.left(0.5), spread.age(0.5)), (Some(431_990.0), Some(10.0)));
        assert_eq!(Spread::default().left(0.5), None);
    }

    proptest! {
        #[test]
        fn a_quantile_is_near_the_true_one(mut values in prop::collection::vec(0..1u32 << 20, 1..300), part in 0.1..0.95f64) {
            let mut spread = Spread::default();
            values.iter().for_each(|value| spread.add(*value, None));
            values.sort_unstable();
            let rank = (values.len() as f64 * part).max(1.0).ceil() as usize - 1;
            let (truth, told) = (f64::from(values[rank]), spread.left(part).unwrap());
            prop_assert!((told - truth).abs() <= truth * 0.25 + 0.5, "{told} for {truth}");
        }
    }

    #[test]
    fn a_row_that_grows_takes_the_place_of_the_smallest() {
        let mut spreads = Spreads::default();
        for row in 0..SPREADS as u32 {
            assert_eq!(spreads.claim(row, 1, |_| 0), Some((row, None)));
        }
        let entries_of = |row: u32| if row == 7 { 8 } else { 100 };
        assert_eq!(spreads.claim(999, 8, entries_of), None);
        assert_eq!(spreads.claim(999, 16, entries_of), Some((7, Some(7))));
        assert_eq!(spreads.claim(1000, 16, |_| 100), None);
    }
}
