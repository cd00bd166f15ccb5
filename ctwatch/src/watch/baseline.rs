//! The kernel's counters of one netns since the baseline: u32 per CPU, wrapping, added up as u64.
//! Pure: readings go in, totals come out.

use ctwatch_common::classify::Counters;

use crate::conntrack::stat::Stat;
use crate::model::KernelCounters;

/// Totals since the baseline.
#[derive(Clone, Debug, Default)]
pub struct BaselineCounters {
    /// The last reading of each CPU; `None` until there is one.
    last: Vec<Option<Counters>>,
    /// What CPUs without a baseline start from: 0 in a new netns, their first reading in an old one.
    starts_at_zero: bool,
    total: KernelCounters,
    /// Entries at the last reading.
    pub entries: Option<u32>,
    /// The limit at the last reading.
    pub max: Option<u32>,
    /// The netns is gone, and nothing it counted is missing.
    pub complete: bool,
}

impl BaselineCounters {
    /// Starts from what each CPU had counted when its watch began (`None`: it was offline).
    #[must_use]
    pub fn new(bases: Vec<Option<Counters>>, starts_at_zero: bool) -> Self {
        Self {
            last: bases,
            starts_at_zero,
            total: KernelCounters::default(),
            entries: None,
            max: None,
            complete: false,
        }
    }

    /// Whether the reading is another netns's: counters don't go back.
    #[must_use]
    pub fn is_of_another(&self, stat: &Stat) -> bool {
        self.last.iter().zip(&stat.cpus).any(|(last, now)| {
            let is_back = |from: u32, to: u32| to.wrapping_sub(from) > u32::MAX / 2;
            last.is_some_and(|last| {
                is_back(last.drop, now.drop)
                    || is_back(last.early_drop, now.early_drop)
                    || is_back(last.insert_failed, now.insert_failed)
                    || is_back(last.chaintoolong, now.chaintoolong)
            })
        })
    }

    /// Takes in a reading; returns the totals.
    pub fn update(&mut self, stat: &Stat) -> KernelCounters {
        self.entries = Some(stat.entries);
        self.max = stat.max;
        self.last.resize(stat.cpus.len().max(self.last.len()), None);
        for (last, now) in self.last.iter_mut().zip(&stat.cpus) {
            let base = last.unwrap_or(if self.starts_at_zero { Counters::default() } else { *now });
            self.total.drop += grown(base.drop, now.drop);
            self.total.early_drop += grown(base.early_drop, now.early_drop);
            self.total.insert_failed += grown(base.insert_failed, now.insert_failed);
            self.total.chaintoolong += grown(base.chaintoolong, now.chaintoolong);
            *last = Some(*now);
        }
        self.total
    }

    /// The totals as of the last reading.
    #[must_use]
    pub const fn total(&self) -> KernelCounters {
        self.total
    }

    /// The netns is gone, and this is what it had counted in the end, summed up over its CPUs.
    pub fn finish(&mut self, sums: KernelCounters) {
        let last = |pick: fn(&Counters) -> u32| {
            self.last.iter().flatten().fold(0u32, |sum, cpu| sum.wrapping_add(pick(cpu)))
        };
        // Every CPU's counter wraps at 2^32, and so does their sum: the difference is right nevertheless.
        self.total.drop += grown(last(|cpu| cpu.drop), sums.drop as u32);
        self.total.early_drop += grown(last(|cpu| cpu.early_drop), sums.early_drop as u32);
        self.total.insert_failed += grown(last(|cpu| cpu.insert_failed), sums.insert_failed as u32);
        self.total.chaintoolong += grown(last(|cpu| cpu.chaintoolong), sums.chaintoolong as u32);
        self.complete = true;
    }

    /// The module was reloaded: the kernel counts from 0 again, the totals stay.
    pub fn restart(&mut self, bases: Vec<Option<Counters>>) {
        self.last = bases;
    }
}

/// How much a wrapping counter grew.
fn grown(from: u32, to: u32) -> u64 {
    u64::from(to.wrapping_sub(from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CounterSource;
    use proptest::prelude::*;

    fn reading(drops: &[u32]) -> Stat {
        Stat {
            entries: 7,
            from: CounterSource::Procfs,
            max: None,
            cpus: drops.iter().map(|drop| Counters { drop: *drop, ..Counters::default() }).collect(),
        }
    }

    proptest! {
        #[test]
        fn totals_are_the_sum_of_all_steps_whatever_wraps(base: u32, steps in prop::collection::vec(0..1_000_000u32, 0..50)) {
            let mut baseline = BaselineCounters::new(vec![Some(Counters { drop: base, ..Counters::default() })], false);
            let mut now = base;
            for step in &steps {
                now = now.wrapping_add(*step);
                baseline.update(&reading(&[now]));
            }
            prop_assert_eq!(baseline.total().drop, steps.iter().map(|step| u64::from(*step)).sum::<u64>());
        }
    }

    #[test]
    fn what_a_netns_counted_after_the_last_reading_is_not_lost_when_it_goes() {
        let base = |drop| Some(Counters { drop, ..Counters::default() });
        let mut baseline = BaselineCounters::new(vec![base(u32::MAX - 1), base(10)], false);
        baseline.update(&reading(&[u32::MAX, 10]));
        // The first CPU's counter wrapped to 4, the second went on to 12.
        baseline.finish(KernelCounters { drop: 16, ..KernelCounters::default() });
        assert_eq!((baseline.total().drop, baseline.complete), (8, true));
    }

    #[test]
    fn counters_that_go_back_are_another_netns_s_and_those_that_wrap_are_not() {
        let mut baseline = BaselineCounters::new(Vec::new(), true);
        baseline.update(&reading(&[5, u32::MAX]));
        assert!(!baseline.is_of_another(&reading(&[5, 3])));
        assert!(baseline.is_of_another(&reading(&[0, u32::MAX])));
        assert!(baseline.is_of_another(&reading(&[9, u32::MAX - 1])));
    }

    #[test]
    fn a_cpu_without_a_baseline_starts_at_its_first_reading_in_an_old_netns_and_at_zero_in_a_new_one() {
        let mut old = BaselineCounters::new(vec![Some(Counters::default()), None], false);
        assert_eq!(old.update(&reading(&[2, 900])).drop, 2);
        assert_eq!(old.update(&reading(&[2, 901])).drop, 3);
        let mut new = BaselineCounters::new(Vec::new(), true);
        assert_eq!(new.update(&reading(&[2, 3])).drop, 5);
    }
}
