//! A moment of a recording: what it is called, and where it is on the timeline.
//! Everything else of the postmortem is built on it.

use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};

use crate::contract::millis;
use crate::record::timeline::seconds;

/// A moment. The wall clock is what it is called by; what came first, and how far apart two are, the place tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub time: Timestamp,
    /// On the recording's timeline, microseconds.
    pub place_us: i64,
}

impl At {
    /// So many seconds before it.
    pub fn minus(self, seconds: f64) -> Self {
        let by = SignedDuration::try_from_secs_f64(seconds).unwrap_or_default();
        let us = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        let time = self.time.checked_sub(by).unwrap_or(self.time);
        Self { time, place_us: self.place_us.saturating_sub(us) }
    }

    /// Seconds since another; negative if that came later.
    pub fn since(self, other: Self) -> f64 {
        seconds(other.place_us, self.place_us)
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        millis(&self.time, serializer)
    }
}
