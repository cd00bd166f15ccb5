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
        Self { monotonic_ns: monotonic_ns(), time: Timestamp::now() }
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
        Self { time: Timestamp::now(), mono_us: monotonic_ns() / 1000 }
    }

    /// From a row's two columns; nothing if one is no time that a kernel's clock can show.
    #[must_use]
    pub fn from_columns(wall_us: i64, mono_us: i64) -> Option<Self> {
        let is_time = |us: i64| (0..=LAST_US).contains(&us);
        let time = Timestamp::from_microsecond(wall_us).ok()?;
        (is_time(wall_us) && is_time(mono_us)).then_some(Self { time, mono_us })
    }
}
