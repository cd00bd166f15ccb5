//! When a recording begins and ends, without reading all of it.

use anyhow::Result;
use jiff::Timestamp;

use super::{RecordedRun, Recording};
use crate::record::limits;

impl Recording {
    /// From the start of the first run to the last tick; `None` if there is no run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn bounds(&self, runs: &[RecordedRun]) -> Result<Option<(Timestamp, Timestamp)>> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(None) };
        let times = self.all("SELECT wall_us FROM tick ORDER BY id DESC LIMIT 1", [], |row| {
            Ok(limits::time(row.get(0)?))
        })?;
        let last_tick = times.into_iter().flatten().next();
        Ok(Some((first.run.started.time, last_tick.unwrap_or(last.run.started.time))))
    }
}
