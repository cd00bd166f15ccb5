//! How old ticks are, by their place on the timeline of all runs.

use rusqlite::Connection;

use crate::record::fault::ReadError;
use crate::record::timeline::Timeline;

/// The ages of all runs of a file.
#[derive(Debug)]
pub(super) struct Ages {
    timeline: Timeline,
    current: i64,
}

impl Ages {
    /// For the current run.
    pub fn read(connection: &Connection, current: i64) -> Result<Self, ReadError> {
        Ok(Self { timeline: Timeline::read(connection, current)?, current })
    }

    /// Ticks of this run before this moment of CLOCK_MONOTONIC are older than `limit_us` now.
    pub fn cutoff(&self, run: i64, now_mono_us: i64, limit_us: i64) -> i64 {
        if run >= self.current {
            return now_mono_us.saturating_sub(limit_us);
        }
        let now_us = self.timeline.place_us(self.current, now_mono_us);
        let offset_us = self.timeline.offset_us(run);
        offset_us.map_or(i64::MIN, |offset| now_us.saturating_sub(limit_us).saturating_sub(offset))
    }
}
