//! Reading a recording: what it holds besides ticks, and ticks and events in their order.
//! Every row is checked against its checksum on the way; rows that went missing show with [`Recording::verify`].

mod bounds;
mod ticks;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use jiff::Timestamp;
use rusqlite::{Connection, Row};

use super::open::{self, Fault, ReadError, wrong};
use super::rebuild::Names;
use super::rows::{
    EndReason, Incident, MachineSnapshot, Notice, Run, RunEnd, Setting, SnapshotReason, StoredListing,
    netns_checksum,
};
use super::{event, listing, run};
use crate::model::{Loss, NetnsId, WallMono};
pub(super) use ticks::Numbers;
pub use ticks::{Stored, Ticks};

/// A recording that is open for reading, as it was at that moment. Others may be writing it meanwhile.
#[derive(Debug)]
pub struct Recording {
    connection: Connection,
    path: PathBuf,
}

/// A run and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedRun {
    /// Its number in the file.
    pub id: i64,
    /// What was watched, and how.
    pub run: Run,
    /// The number of its first tick.
    pub first_tick: i64,
    /// How it ended; `None`: it goes on, or it was killed.
    pub end: Option<RunEnd>,
}

/// Slots of a run, in the order of [`slot_key`] with their number first.
pub(super) const SLOTS: &str = "SELECT s.id, n.number, s.proto, s.port, s.cause, s.loopback, s.unattributed \
    FROM slot s JOIN netns n ON n.id = s.netns WHERE n.run = ?1";

pub(super) fn slot_key(row: &Row<'_>) -> rusqlite::Result<SlotKey> {
    let loopback = if row.get(5)? { KIND_LOOPBACK } else { 0 };
    let unattributed = if row.get(6)? { KIND_UNATTRIBUTED } else { 0 };
    let cause: Option<u8> = row.get(4)?;
    Ok(SlotKey {
        netns: row.get(1)?,
        port: row.get(3)?,
        proto: row.get(2)?,
        kind: cause.unwrap_or(KIND_FLOWS) | loopback | unattributed,
    })
}

impl Recording {
    /// Opens a recording.
    ///
    /// # Errors
    /// A [`Fault`]: there is none, it is something else, newer, or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = open::connect(path)?;
        // One moment of it, however long reading takes and whatever a recorder does meanwhile.
        let began = connection.execute_batch("BEGIN; SELECT count(*) FROM meta");
        began.map_err(|error| open::fault(path, &error))?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All runs, oldest first.
    ///
    /// # Errors
    /// The file is damaged ([`Fault::Damaged`]); so for all that follow.
    pub fn runs(&self) -> Result<Vec<RecordedRun>> {
        let mut runs = self.all(run::ROWS, [], |row| {
            let (id, first_tick, run) = run::read(row)?;
            Ok(RecordedRun { id, run, first_tick, end: None })
        })?;
        for run in &mut runs {
            run.end = self.run_end(run.id)?;
        }
        Ok(runs)
    }

    fn run_end(&self, run: i64) -> Result<Option<RunEnd>> {
        let sql = "SELECT ended_us, ended_mono_us, reason, last_tick, crc FROM run_end WHERE run = ?1";
        let mut ends = self.all(sql, [run], |row| {
            let at = WallMono::from_columns(row.get(0)?, row.get(1)?);
            let reason = EndReason::from_name(&row.get::<_, String>(2)?);
            let last_tick = row.get(3)?;
            let Some((at, reason)) = at.zip(reason) else { return wrong("the end of run", run) };
            let end = RunEnd { at, reason, last_tick };
            if end.checksum(run) == row.get::<_, u32>(4)? { Ok(end) } else { wrong("the end of run", run) }
        })?;
        Ok(ends.pop())
    }

    /// What the namespaces of a run are called.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn names(&self, run: i64) -> Result<HashMap<NetnsId, Names>> {
        let sql = "SELECT number, name, container, crc, inode, life FROM netns WHERE run = ?1";
        let names = self.all(sql, [run], |row| {
            let (id, names) =
                (NetnsId::from_packed(row.get(0)?), Names { name: row.get(1)?, container: row.get(2)? });
            let (inode, life): (u32, u32) = (row.get(4)?, row.get(5)?);
            let holds = netns_checksum(run, id, &names) == row.get::<_, u32>(3)?
                && (id.inode(), id.generation()) == (inode, life);
            if holds { Ok((id, names)) } else { wrong("netns", i64::from(id.packed())) }
        })?;
        Ok(names.into_iter().collect())
    }

    /// The ticks of a run whose numbers are in this range, oldest first.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn ticks(&self, run: &RecordedRun, numbers: std::ops::RangeInclusive<i64>) -> Result<Ticks<'_>> {
        Ticks::new(self, run, numbers)
    }

    /// The kept losses of the ticks in this range, in the order they came, with their tick's number.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn losses(&self, numbers: std::ops::RangeInclusive<i64>) -> Result<Vec<(i64, Loss)>> {
        let losses = self.all(event::SELECT, [*numbers.start(), *numbers.end()], event::read)?;
        Ok(losses.into_iter().filter_map(|(tick, _, loss)| Some((tick, loss?))).collect())
    }

    /// The tables of a run that were read entry by entry.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn listings(&self, run: i64) -> Result<Vec<StoredListing>> {
        Ok(listing::read(&self.connection, run).map_err(|trouble| trouble.of(&self.path))?)
    }

    /// What was said in a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn notices(&self, run: i64) -> Result<Vec<Notice>> {
        let sql = "SELECT wall_us, mono_us, code, text, crc, id FROM notice WHERE run = ?1 ORDER BY id";
        self.all(sql, [run], |row| {
            let Some(at) = WallMono::from_columns(row.get(0)?, row.get(1)?) else {
                return wrong("notice", row.get(5)?);
            };
            let notice = Notice { at, code: row.get(2)?, text: row.get(3)? };
            if notice.checksum(run) == row.get::<_, u32>(4)? {
                Ok(notice)
            } else {
                wrong("notice", row.get(5)?)
            }
        })
    }

    /// The settings of a run as they were first seen, and every change of them.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn settings(&self, run: i64) -> Result<Vec<Setting>> {
        let sql =
            "SELECT wall_us, mono_us, name, value, before, crc, id FROM setting WHERE run = ?1 ORDER BY id";
        self.all(sql, [run], |row| {
            let Some(at) = WallMono::from_columns(row.get(0)?, row.get(1)?) else {
                return wrong("setting", row.get(6)?);
            };
            let setting = Setting { at, name: row.get(2)?, value: row.get(3)?, before: row.get(4)? };
            let holds = setting.checksum(run) == row.get::<_, u32>(5)?;
            if holds { Ok(setting) } else { wrong("setting", row.get(6)?) }
        })
    }

    /// What was read of the machine in a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn machines(&self, run: i64) -> Result<Vec<MachineSnapshot>> {
        let sql = "SELECT wall_us, mono_us, reason, facts, crc, id FROM machine WHERE run = ?1 ORDER BY id";
        self.all(sql, [run], |row| {
            let at = WallMono::from_columns(row.get(0)?, row.get(1)?);
            let occasion = SnapshotReason::from_name(&row.get::<_, String>(2)?);
            let Some((at, occasion)) = at.zip(occasion) else { return wrong("machine", row.get(5)?) };
            let facts = MachineSnapshot { at, occasion, json: row.get(3)? };
            if facts.checksum(run) == row.get::<_, u32>(4)? {
                Ok(facts)
            } else {
                wrong("machine", row.get(5)?)
            }
        })
    }

    /// The incidents of a run, with their numbers.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn incidents(&self, run: i64) -> Result<Vec<(i64, Incident)>> {
        let sql = "SELECT wall_us, mono_us, condition, tick, measured, detail_from, detail_to, ceased_us, crc, id \
             FROM incident WHERE run = ?1 ORDER BY id";
        self.all(sql, [run], |row| {
            let id: i64 = row.get(9)?;
            let Some(at) = WallMono::from_columns(row.get(0)?, row.get(1)?) else {
                return wrong("incident", id);
            };
            let incident = Incident {
                at,
                condition: row.get(2)?,
                tick: row.get(3)?,
                measured: row.get(4)?,
                detail_from: row.get(5)?,
                detail_to: row.get(6)?,
                ceased: row.get::<_, Option<i64>>(7)?.and_then(|us| Timestamp::from_microsecond(us).ok()),
            };
            let holds = incident.checksum(run) == row.get::<_, u32>(8)?;
            if holds { Ok((id, incident)) } else { wrong("incident", id) }
        })
    }

    /// Checks everything: SQLite's structure, and every checksum.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<()> {
        let verdicts = self.all("PRAGMA integrity_check(1)", [], |row| Ok(row.get::<_, String>(0)?))?;
        if let Some(verdict) = verdicts.first().filter(|verdict| *verdict != "ok") {
            return Err(self.damaged(verdict.clone()).into());
        }
        for run in self.runs()? {
            self.names(run.id)?;
            self.listings(run.id)?;
            self.notices(run.id)?;
            self.settings(run.id)?;
            self.machines(run.id)?;
            self.incidents(run.id)?;
            for tick in self.ticks(&run, i64::MIN..=i64::MAX)? {
                let tick = tick?;
                self.losses(tick.first..=tick.id)?;
            }
        }
        Ok(())
    }

    fn all<T, P: rusqlite::Params>(
        &self,
        sql: &str,
        parameters: P,
        read: impl FnMut(&Row<'_>) -> Result<T, ReadError>,
    ) -> Result<Vec<T>> {
        Ok(each(&self.connection, sql, parameters, read).map_err(|trouble| trouble.of(&self.path))?)
    }

    fn damaged(&self, what: impl Into<String>) -> Fault {
        Fault::Damaged(self.path.clone(), what.into())
    }
}

/// Every row of a query.
pub(super) fn each<T, P: rusqlite::Params>(
    connection: &Connection,
    sql: &str,
    parameters: P,
    mut read: impl FnMut(&Row<'_>) -> Result<T, ReadError>,
) -> Result<Vec<T>, ReadError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(read(row)?);
    }
    Ok(found)
}
