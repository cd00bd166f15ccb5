//! When the kernel collects expired entries: until then they count towards the limit.
//! Follows gc_worker (net/netfilter/nf_conntrack_core.c, 5.15 to 7.3) as far as that is known from outside.

use std::collections::BTreeMap;

/// Jiffies a second. Debian's kernels have 250; with 1,000 gc comes a little sooner.
const HZ: f64 = 250.0;
/// GC_SCAN_INTERVAL_MAX, also what the average begins with.
const LONGEST: f64 = 60.0 * HZ;
/// GC_SCAN_INTERVAL_MIN
const SHORTEST: f64 = HZ;
/// GC_SCAN_INTERVAL_CLAMP: no entry counts for more.
const MOST_OF_ONE: f64 = 300.0 * HZ;
/// GC_SCAN_INITIAL_COUNT: the average starts as if this many entries lasted LONGEST.
const PRETENDED: f64 = 100.0;
/// After this many entries, another one hardly moves the average by a jiffy.
const ENOUGH: f64 = 16_000.0;

/// How this kernel collects expired entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gc {
    /// Seconds from one run of gc to the next; none: as long as entries last on average, which is so from 5.15 on.
    pub every_s: Option<f64>,
    /// A look-up takes expired entries away that it meets in its bucket (____nf_conntrack_find): look-ups a second
    /// for each bucket.
    pub reaped_per_s: f64,
}

impl Gc {
    /// Seconds from one run to the next, for so many entries by their timeout and whether they only wait for it.
    #[must_use]
    pub fn interval(&self, mix: &BTreeMap<(u32, bool), f64>) -> f64 {
        self.every_s.unwrap_or_else(|| on_the_wheel(average(mix)) / HZ)
    }

    /// Seconds from one run to the next while there are next to no entries; none where it is always the same.
    #[must_use]
    pub fn idle_interval(&self) -> Option<f64> {
        self.every_s.is_none().then_some(LONGEST / HZ)
    }

    /// How long an expired entry still counts on average, if gc comes after so many seconds: it may be found by a
    /// passing packet before.
    #[must_use]
    pub fn seconds_kept(&self, seconds: f64) -> f64 {
        let found = self.reaped_per_s * seconds;
        if found < 1e-6 { seconds } else { (1.0 - (-found).exp()) / self.reaped_per_s }
    }
}

/// The average of what entries have left, as the kernel adds it up: each moves it by whole jiffies only, so that the more
/// have been met, the less it moves.
fn average(mix: &BTreeMap<(u32, bool), f64>) -> f64 {
    let entries: f64 = mix.values().sum();
    let (mut average, mut met) = (LONGEST, PRETENDED);
    // Each entry is met twice, once for each direction.
    let end = PRETENDED + (2.0 * entries).min(ENOUGH);
    // The golden ratio spreads the draws evenly.
    let mut draw = 0.5;
    while met < end {
        met += 1.0;
        draw = (draw + 0.618_033_988_749_895_f64).fract();
        let left = left_of(mix, draw * entries).clamp(SHORTEST, MOST_OF_ONE);
        average += ((left - average) / met).trunc();
    }
    average.clamp(SHORTEST, LONGEST)
}

/// Jiffies that the entry at this place has left.
fn left_of(mix: &BTreeMap<(u32, bool), f64>, mut place: f64) -> f64 {
    for ((timeout, waits), entries) in mix {
        if place < *entries {
            let part = if *waits { place / entries } else { 1.0 };
            return f64::from(*timeout) * part * HZ;
        }
        place -= entries;
    }
    LONGEST
}

/// A timer is put off to the next step of its level of the wheel (kernel/time/timer.c): 64 jiffies up to 4,032, then 512.
fn on_the_wheel(jiffies: f64) -> f64 {
    let step = if jiffies < 4_032.0 { 64.0 } else { 512.0 };
    (jiffies / step).ceil() * step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interval(timeout: u32, entries: f64) -> f64 {
        Gc::default().interval(&[((timeout, true), entries)].into())
    }

    #[test]
    fn it_comes_about_as_often_as_entries_last_on_average() {
        // Measured on 6.12 at 200 flows/s: 18.4 s with a TIME_WAIT of 30 s, 11.5 to 15.5 s with 15 s.
        assert!((16.5..19.0).contains(&interval(30, 6_000.0)), "{}", interval(30, 6_000.0));
        assert!((11.0..13.0).contains(&interval(15, 3_000.0)), "{}", interval(15, 3_000.0));
        // Two minutes: nearly as rarely as it can.
        assert!(interval(120, 24_000.0) > 57.0, "{}", interval(120, 24_000.0));
    }

    #[test]
    fn a_table_next_to_empty_is_looked_at_once_a_minute() {
        assert!(interval(15, 2.0) > 55.0, "{}", interval(15, 2.0));
        assert!(interval(15, 0.0) > 59.0);
    }

    #[test]
    fn an_older_kernel_has_its_own_pace() {
        let gc = Gc { every_s: Some(120.0), reaped_per_s: 0.0 };
        assert_eq!(gc.interval(&BTreeMap::new()), 120.0);
    }
}
