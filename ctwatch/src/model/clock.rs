//! From the kernel's monotonic nanoseconds to wall-clock time.
//! One pair of readings, renewed every tick, so that a clock step doesn't stay wrong.

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// A wall-clock time and the monotonic time at the same instant.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    time: Timestamp,
    monotonic_ns: i64,
}

impl Clock {
    /// Reads both clocks.
    #[must_use]
    pub fn now() -> Self {
        let (time, monotonic_ns) = both();
        Self { time, monotonic_ns }
    }

    /// The monotonic reading, microseconds.
    #[must_use]
    pub const fn monotonic_us(&self) -> i64 {
        self.monotonic_ns / 1000
    }

    /// The wall-clock reading.
    #[must_use]
    pub const fn time(&self) -> Timestamp {
        self.time
    }

    /// The wall-clock time of a bpf_ktime_get_ns() reading.
    #[must_use]
    pub fn wall(&self, ktime_ns: u64) -> Timestamp {
        let since = i64::try_from(ktime_ns).unwrap_or(i64::MAX).saturating_sub(self.monotonic_ns);
        self.time.checked_add(SignedDuration::from_nanos(since)).unwrap_or(self.time)
    }
}

/// So long a pair of readings may take.
const CLOSE_NS: i64 = 50_000;
/// So often another pair is read where one took longer: on a busy host whoever reads them may have to wait in between.
const PAIRS: usize = 16;

/// Both clocks, as close together as they can be had.
fn both() -> (Timestamp, i64) {
    closest(|| (monotonic_ns(), Timestamp::now(), monotonic_ns()))
}

fn closest(mut read: impl FnMut() -> (i64, Timestamp, i64)) -> (Timestamp, i64) {
    let (mut best, mut least) = ((Timestamp::UNIX_EPOCH, 0), i64::MAX);
    for _ in 0..PAIRS {
        let (before, time, after) = read();
        let took = after.saturating_sub(before);
        if took < least {
            (best, least) = ((time, before + took / 2), took);
        }
        if took <= CLOSE_NS {
            break;
        }
    }
    best
}

/// CLOCK_MONOTONIC, by which the kernel stamps events.
#[must_use]
pub fn monotonic_ns() -> i64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec().saturating_mul(1_000_000_000).saturating_add(time.tv_nsec()))
}

/// A kernel's clocks are 64 bits of nanoseconds, which are over in April 2262: no later time is one, and no longer span.
pub const LAST_US: i64 = i64::MAX / 1000;

/// One instant by two clocks: a step of the wall clock shows as a difference between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WallMono {
    /// Wall clock.
    pub time: Timestamp,
    /// CLOCK_MONOTONIC, microseconds.
    pub mono_us: i64,
}

impl WallMono {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let (time, monotonic_ns) = both();
        Self { time, mono_us: monotonic_ns / 1000 }
    }

    /// From a row's two columns; nothing if one is no time that a kernel's clock can show.
    #[must_use]
    pub fn from_columns(wall_us: i64, mono_us: i64) -> Option<Self> {
        let is_time = |us: i64| (0..=LAST_US).contains(&us);
        let time = Timestamp::from_microsecond(wall_us).ok()?;
        (is_time(wall_us) && is_time(mono_us)).then_some(Self { time, mono_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_readings_between_which_somebody_else_ran_the_closest_pair_is_taken() {
        let second = |of: i64| Timestamp::from_second(of).expect("a time");
        let mut readings = [(0, 5, 900_000_000), (1_000_000_000, 6, 1_000_040_000), (0, 7, 0)].into_iter();
        let pair = closest(|| {
            let (before, time, after) = readings.next().expect("no more is read than needed");
            (before, second(time), after)
        });
        assert_eq!(pair, (second(6), 1_000_020_000));
        assert_eq!(readings.len(), 1);
        let mut slow = [70_000, 60_000].into_iter().cycle();
        let pair = closest(|| (0, second(1), slow.next().expect("there are more")));
        assert_eq!(pair, (second(1), 30_000));
    }
}
