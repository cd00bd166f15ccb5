//! Reading a recording: ticks and events in order, and everything else it contains.
//! Every row is checked against its checksum on the way; [`Recording::verify`] also finds rows that went missing.

mod bounds;
mod ticks;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use jiff::Timestamp;
use rusqlite::{Connection, Row};

use super::columns::{
    INCIDENT, IncidentColumns, MACHINE, MachineColumns, NETNS, NOTICE, NetnsColumns, NoticeColumns, RUN_END,
    RunEndColumns, SETTING, SLOT, SettingColumns, SlotColumns,
};
use super::open::{self, Fault, ReadError, corrupt_row};
use super::rows::{
    EndReason, Incident, MachineSnapshot, Names, NetnsSetting, Notice, Run, RunEnd, Setting, SnapshotReason,
    StoredListing, netns_checksum,
};
use super::rules::{self, StoredRules};
use super::{event, listing, run};
use crate::model::{Loss, NetnsId, WallMono};
pub(super) use ticks::Numbers;
pub use ticks::{Stored, Ticks};

/// A recording open for reading, as it was when it was opened. It may be written to meanwhile.
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
    /// What was watched and how.
    pub run: Run,
    /// The number of its first tick.
    pub first_tick: i64,
    /// How it ended; `None` if it is still running, or the recorder or the host stopped.
    pub end: Option<RunEnd>,
}

/// Selects the slots of a run, each with its netns's number after its own columns.
pub(super) fn slots_of_run() -> String {
    let slot = SlotColumns::of("s");
    format!("SELECT {slot}, n.number FROM slot s JOIN netns n ON n.id = s.netns WHERE n.run = ?1")
}

/// A slot's number in the file and its key, from a row of [`slots_of_run`].
pub(super) fn slot(row: &Row<'_>) -> rusqlite::Result<(i64, SlotKey)> {
    const NETNS_NUMBER: usize = SlotColumns::NAMES.len();
    let loopback = if row.get(SLOT.loopback)? { KIND_LOOPBACK } else { 0 };
    let unattributed = if row.get(SLOT.unattributed)? { KIND_UNATTRIBUTED } else { 0 };
    let cause: Option<u8> = row.get(SLOT.cause)?;
    let key = SlotKey {
        netns: row.get(NETNS_NUMBER)?,
        port: row.get(SLOT.port)?,
        proto: row.get(SLOT.proto)?,
        kind: cause.unwrap_or(KIND_FLOWS) | loopback | unattributed,
    };
    Ok((row.get(SLOT.id)?, key))
}

impl Recording {
    /// Opens a recording.
    ///
    /// # Errors
    /// A [`Fault`]: the file doesn't exist, is not a recording, is newer, or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = open::connect(path)?;
        // A single snapshot, however long reading takes and whatever a recorder does meanwhile.
        let began = connection.execute_batch("BEGIN; SELECT count(*) FROM meta");
        began.map_err(|error| open::fault(path, &error))?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(Self { connection, path: path.to_owned() })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All runs, oldest first.
    ///
    /// # Errors
    /// The file is damaged ([`Fault::Damaged`]). The same goes for the methods below.
    pub fn runs(&self) -> Result<Vec<RecordedRun>> {
        let mut runs = self.all(&run::all(), [], |row| {
            let (id, first_tick, run) = run::read(row)?;
            Ok(RecordedRun { id, run, first_tick, end: None })
        })?;
        for run in &mut runs {
            run.end = self.run_end(run.id)?;
        }
        Ok(runs)
    }

    fn run_end(&self, run: i64) -> Result<Option<RunEnd>> {
        let sql = format!("{} WHERE run = ?1", RunEndColumns::SELECT);
        let mut ends = self.all(&sql, [run], |row| {
            let at = WallMono::from_columns(row.get(RUN_END.ended_us)?, row.get(RUN_END.ended_mono_us)?);
            let reason = EndReason::from_name(&row.get::<_, String>(RUN_END.reason)?);
            let last_tick = row.get(RUN_END.last_tick)?;
            let Some((at, reason)) = at.zip(reason) else { return corrupt_row("the end of run", run) };
            let end = RunEnd { at, reason, last_tick };
            let holds = end.checksum(run) == row.get::<_, u32>(RUN_END.crc)?;
            if holds { Ok(end) } else { corrupt_row("the end of run", run) }
        })?;
        Ok(ends.pop())
    }

    /// The names of a run's namespaces.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn names(&self, run: i64) -> Result<HashMap<NetnsId, Names>> {
        let sql = format!("{} WHERE run = ?1", NetnsColumns::SELECT);
        let names = self.all(&sql, [run], |row| {
            let id = NetnsId::from_packed(row.get(NETNS.number)?);
            let names = Names { name: row.get(NETNS.name)?, container: row.get(NETNS.container)? };
            let (inode, life): (u32, u32) = (row.get(NETNS.inode)?, row.get(NETNS.life)?);
            let holds = netns_checksum(run, id, &names) == row.get::<_, u32>(NETNS.crc)?
                && (id.inode(), id.generation()) == (inode, life);
            if holds { Ok((id, names)) } else { corrupt_row("netns", i64::from(id.packed())) }
        })?;
        Ok(names.into_iter().collect())
    }

    /// The ticks of a run with numbers in this range, oldest first.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn ticks(&self, run: &RecordedRun, numbers: std::ops::RangeInclusive<i64>) -> Result<Ticks<'_>> {
        Ticks::new(self, run, numbers)
    }

    /// The losses recorded individually in this range of ticks, in order, each with its tick's number.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn losses(&self, numbers: std::ops::RangeInclusive<i64>) -> Result<Vec<(i64, Loss)>> {
        let losses = self.all(&event::SELECT, [*numbers.start(), *numbers.end()], event::read)?;
        Ok(losses.into_iter().filter_map(|(tick, _, loss)| Some((tick, loss?))).collect())
    }

    /// The tables listed entry by entry in a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn listings(&self, run: i64) -> Result<Vec<StoredListing>> {
        Ok(listing::read(&self.connection, run).map_err(|error| error.into_fault(&self.path))?)
    }

    /// The rule sets of a run, of each netns in the order they were in force. None where the recorder was one that didn't
    /// keep them.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn rules(&self, run: i64) -> Result<Vec<StoredRules>> {
        Ok(rules::read(&self.connection, run).map_err(|error| error.into_fault(&self.path))?)
    }

    /// The settings of other namespaces than the recorder's when first seen, and every change to them.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn netns_settings(&self, run: i64) -> Result<Vec<NetnsSetting>> {
        Ok(rules::read_settings(&self.connection, run).map_err(|error| error.into_fault(&self.path))?)
    }

    /// The notices of a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn notices(&self, run: i64) -> Result<Vec<Notice>> {
        self.of_run(NoticeColumns::SELECT, run, |row| {
            let id = row.get(NOTICE.id)?;
            let at = WallMono::from_columns(row.get(NOTICE.wall_us)?, row.get(NOTICE.mono_us)?);
            let Some(at) = at else { return corrupt_row("notice", id) };
            let notice = Notice { at, code: row.get(NOTICE.code)?, text: row.get(NOTICE.text)? };
            let holds = notice.checksum(run) == row.get::<_, u32>(NOTICE.crc)?;
            if holds { Ok(notice) } else { corrupt_row("notice", id) }
        })
    }

    /// The settings in a run when first seen, and every change to them.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn settings(&self, run: i64) -> Result<Vec<Setting>> {
        self.of_run(SettingColumns::SELECT, run, |row| {
            let id = row.get(SETTING.id)?;
            let at = WallMono::from_columns(row.get(SETTING.wall_us)?, row.get(SETTING.mono_us)?);
            let Some(at) = at else { return corrupt_row("setting", id) };
            let setting = Setting {
                at,
                name: row.get(SETTING.name)?,
                value: row.get(SETTING.value)?,
                before: row.get(SETTING.before)?,
            };
            let holds = setting.checksum(run) == row.get::<_, u32>(SETTING.crc)?;
            if holds { Ok(setting) } else { corrupt_row("setting", id) }
        })
    }

    /// The machine snapshots of a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn machines(&self, run: i64) -> Result<Vec<MachineSnapshot>> {
        self.of_run(MachineColumns::SELECT, run, |row| {
            let id = row.get(MACHINE.id)?;
            let at = WallMono::from_columns(row.get(MACHINE.wall_us)?, row.get(MACHINE.mono_us)?);
            let reason = SnapshotReason::from_name(&row.get::<_, String>(MACHINE.reason)?);
            let Some((at, reason)) = at.zip(reason) else { return corrupt_row("machine", id) };
            let snapshot = MachineSnapshot { at, occasion: reason, json: row.get(MACHINE.facts)? };
            let holds = snapshot.checksum(run) == row.get::<_, u32>(MACHINE.crc)?;
            if holds { Ok(snapshot) } else { corrupt_row("machine", id) }
        })
    }

    /// The incidents of a run, with their numbers.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn incidents(&self, run: i64) -> Result<Vec<(i64, Incident)>> {
        self.of_run(IncidentColumns::SELECT, run, |row| {
            let id: i64 = row.get(INCIDENT.id)?;
            let at = WallMono::from_columns(row.get(INCIDENT.wall_us)?, row.get(INCIDENT.mono_us)?);
            let Some(at) = at else { return corrupt_row("incident", id) };
            let ceased: Option<i64> = row.get(INCIDENT.ceased_us)?;
            let incident = Incident {
                at,
                condition: row.get(INCIDENT.condition)?,
                tick: row.get(INCIDENT.tick)?,
                measured: row.get(INCIDENT.measured)?,
                detail_from: row.get(INCIDENT.detail_from)?,
                detail_to: row.get(INCIDENT.detail_to)?,
                ceased: ceased.and_then(|us| Timestamp::from_microsecond(us).ok()),
            };
            let holds = incident.checksum(run) == row.get::<_, u32>(INCIDENT.crc)?;
            if holds { Ok((id, incident)) } else { corrupt_row("incident", id) }
        })
    }

    /// Checks everything: SQLite's structures and every checksum.
    ///
    /// # Errors
    /// The first fault found.
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
            self.rules(run.id)?;
            self.netns_settings(run.id)?;
            self.machines(run.id)?;
            self.incidents(run.id)?;
            for tick in self.ticks(&run, i64::MIN..=i64::MAX)? {
                let tick = tick?;
                self.losses(tick.first..=tick.id)?;
            }
        }
        Ok(())
    }

    /// The rows of a run, in the order they were written.
    fn of_run<T>(
        &self,
        select: &str,
        run: i64,
        read: impl FnMut(&Row<'_>) -> Result<T, ReadError>,
    ) -> Result<Vec<T>> {
        self.all(&format!("{select} WHERE run = ?1 ORDER BY id"), [run], read)
    }

    fn all<T, P: rusqlite::Params>(
        &self,
        sql: &str,
        parameters: P,
        read: impl FnMut(&Row<'_>) -> Result<T, ReadError>,
    ) -> Result<Vec<T>> {
        Ok(each(&self.connection, sql, parameters, read).map_err(|error| error.into_fault(&self.path))?)
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
