//! How old ticks are. CLOCK_MONOTONIC decides: a wall clock that is set (by hand, by NTP after a bad RTC) makes nothing older
//! or younger. Only how long a host was off between two boots is taken from the wall clock, and never less than nothing.
//! A host that sleeps doesn't age its recording: CLOCK_MONOTONIC stands still meanwhile.

use rusqlite::{Connection, OptionalExtension as _};

use crate::record::open::ReadError;
use crate::record::reader::each;

/// The ages of all runs of a file.
#[derive(Debug)]
pub(super) struct Ages {
    runs: Vec<RunAge>,
    current: i64,
    started_mono_us: i64,
}

#[derive(Debug)]
struct RunAge {
    run: i64,
    last_mono_us: i64,
    /// How old its last tick was when the current run began.
    at_start_us: i64,
}

struct Started {
    run: i64,
    wall_us: i64,
    mono_us: i64,
    boot_id: Option<String>,
}

impl Ages {
    /// For the current run.
    pub fn read(connection: &Connection, current: i64) -> Result<Self, ReadError> {
        let sql = "SELECT id, started_us, started_mono_us, boot_id FROM run WHERE id <= ?1 ORDER BY id DESC";
        let runs = each(connection, sql, [current], |row| {
            Ok(Started { run: row.get(0)?, wall_us: row.get(1)?, mono_us: row.get(2)?, boot_id: row.get(3)? })
        })?;
        let started_mono_us = runs.first().map_or(0, |run| run.mono_us);
        let mut ages = Self { runs: Vec::new(), current, started_mono_us };
        // How old the start of the later run was when the current one began.
        let mut later_age = 0i64;
        for pair in runs.windows(2) {
            let [later, run] = pair else { continue };
            let last = "SELECT wall_us, mono_us FROM tick WHERE run = ?1 ORDER BY id DESC LIMIT 1";
            let last: Option<(i64, i64)> = connection
                .prepare_cached(last)?
                .query_row([run.run], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            let (last_wall_us, last_mono_us) = last.unwrap_or((run.wall_us, run.mono_us));
            let gap = if run.boot_id.is_some() && run.boot_id == later.boot_id {
                later.mono_us.saturating_sub(last_mono_us)
            } else {
                later.wall_us.saturating_sub(last_wall_us)
            };
            let at_start_us = later_age.saturating_add(gap.max(0));
            ages.runs.push(RunAge { run: run.run, last_mono_us, at_start_us });
            later_age = at_start_us.saturating_add(last_mono_us.saturating_sub(run.mono_us).max(0));
        }
        Ok(ages)
    }

    /// Ticks of this run before this moment of CLOCK_MONOTONIC are older than `limit_us` now.
    pub fn cutoff(&self, run: i64, now_mono_us: i64, limit_us: i64) -> i64 {
        if run >= self.current {
            return now_mono_us.saturating_sub(limit_us);
        }
        let since_start = now_mono_us.saturating_sub(self.started_mono_us).max(0);
        self.runs.iter().find(|age| age.run == run).map_or(i64::MIN, |age| {
            age.last_mono_us
                .saturating_add(age.at_start_us)
                .saturating_add(since_start)
                .saturating_sub(limit_us)
        })
    }
}
