//! How many jiffies the kernel counts in a second (CONFIG_HZ): it tells nobody, so two readings have to.
//! Until they are far enough apart it is unknown, and nothing is converted.

/// What kernel/Kconfig.hz lets a kernel be built with.
const CHOICES: [u32; 4] = [100, 250, 300, 1000];
/// Between the readings: 20 jiffies at the slowest, so that one more or less doesn't matter.
const APART_NS: i64 = 200_000_000;

/// Readings of the kernel's jiffies against CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Jiffies {
    first: Option<(u64, i64)>,
    per_s: Option<u32>,
}

impl Jiffies {
    /// The kernel's HZ, once it is known.
    #[must_use]
    pub const fn per_s(&self) -> Option<u32> {
        self.per_s
    }

    /// The jiffies at a monotonic time.
    pub fn reading(&mut self, jiffies: u64, monotonic_ns: i64) {
        let (first, start) = *self.first.get_or_insert((jiffies, monotonic_ns));
        let passed = monotonic_ns - start;
        if passed < APART_NS || self.per_s.is_some() {
            return;
        }
        let measured = jiffies.wrapping_sub(first) as f64 * 1e9 / passed as f64;
        let off = |choice: u32| (f64::from(choice) - measured).abs() / f64::from(choice);
        self.per_s = CHOICES.into_iter().find(|choice| off(*choice) < 0.08);
        if self.per_s.is_none() {
            // A machine that stood still between the readings tells nothing: again.
            self.first = Some((jiffies, monotonic_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readings_tell_the_choice_even_if_a_jiffy_is_cut_off() {
        for hz in CHOICES {
            for cut in [0, 1] {
                let mut jiffies = Jiffies::default();
                jiffies.reading(4_294_967_296, 5);
                jiffies.reading(4_294_967_296 + u64::from(hz) / 10, 100_000_005);
                assert_eq!(jiffies.per_s(), None, "too early");
                jiffies.reading(4_294_967_296 + u64::from(hz) / 4 - cut, 250_000_005);
                assert_eq!(jiffies.per_s(), Some(hz));
            }
        }
    }

    #[test]
    fn what_fits_no_choice_is_measured_again() {
        let mut jiffies = Jiffies::default();
        jiffies.reading(0, 0);
        jiffies.reading(5, 1_000_000_000);
        assert_eq!(jiffies.per_s(), None);
        jiffies.reading(255, 2_000_000_000);
        assert_eq!(jiffies.per_s(), Some(250));
    }
}
