//! Writes a recording: one transaction per tick, so that a killed recorder leaves only whole ticks.
//! Knows SQL, and nothing about what the numbers mean.

pub(super) mod dictionary;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rusqlite::types::Null;
use rusqlite::{Connection, OpenFlags, ToSql, Transaction, params};

use super::columns::{
    IncidentColumns, MachineColumns, NoticeColumns, RunEndColumns, SettingColumns, TickCauseColumns,
    TickColumns, TickFlowColumns, TickLossColumns, TickNetnsColumns,
};
use super::full::{DiskFull, lacks_room};
use super::rows::{
    Incident, MachineSnapshot, Names, NetnsSetting, Notice, Run, RunEnd, Setting, StoredListing,
};
use super::rules::{self, StoredRules};
use super::tick::{NetnsTick, Tick};
use super::unfit::Unfit;
use super::{Fault, census, event, files, layout, limits, listing, open, regular, run, schema};
use crate::error::Failure;
use crate::foreign::Shown as _;
use crate::model::{Loss, NetnsId};
use dictionary::Dictionary;

/// How many ticks a power failure may cost: every so many, the recorder waits until they are on disk.
const SYNCED_EVERY: u32 = 8;
/// Pages in the -wal after which it is moved into the database: 2 MB.
const CHECKPOINT_PAGES: i64 = 512;
/// The -wal is truncated to this size after it grew because of a reader.
const WAL_LIMIT: i64 = 4 << 20;
/// How long the end of a run waits for readers.
const READERS_TIMEOUT: Duration = Duration::from_millis(500);

/// Everything written in one transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// How the counters moved.
    pub tick: Option<Tick>,
    /// New or changed names of namespaces.
    pub names: HashMap<NetnsId, Names>,
    /// A sample of the losses in this tick, and whether each is detail, kept only around an incident.
    pub events: Vec<(Loss, bool)>,
    /// Changed settings.
    pub settings: Vec<Setting>,
    /// Machine snapshots.
    pub facts: Vec<MachineSnapshot>,
    /// Tables listed entry by entry.
    pub listings: Vec<StoredListing>,
    /// Rule sets that are new or changed.
    pub rules: Vec<StoredRules>,
    /// Changed settings of other namespaces.
    pub netns_settings: Vec<NetnsSetting>,
    /// Notices.
    pub notices: Vec<Notice>,
    /// Incidents that began, continued or ended.
    pub incidents: Vec<Incident>,
}

/// Writes one run into a recording.
#[derive(Debug)]
pub struct Writer {
    connection: Connection,
    path: PathBuf,
    run: i64,
    next_tick: i64,
    dictionary: Dictionary,
    unsynced: u32,
    is_full: bool,
}

impl Writer {
    /// Checks that there is a recording that can be continued, or no file.
    ///
    /// # Errors
    /// There is something else.
    pub fn check(path: &Path) -> Result<()> {
        if is_new(path)? { Ok(()) } else { open::examine(path) }
    }

    /// Opens or creates a recording, and starts a run in it. The caller holds its lock.
    ///
    /// # Errors
    /// The recording can't be written ([`DiskFull`] if there is no space), or the file is not a recording with this schema.
    /// A new file is removed again.
    pub fn open(path: &Path, run: &Run) -> Result<Self> {
        let begun = if is_new(path)? {
            make(path, run).and_then(|()| Self::begin(path, run).inspect_err(|_| drop(files::remove(path))))
        } else {
            open::examine(path).and_then(|()| Self::begin(path, run))
        };
        begun.map_err(|error| match Unfit::met(path, &error) {
            _ if lacks_room(&error) => DiskFull::at_the_start(path).into(),
            Some(unfit) => Failure::usage(unfit.to_string()).into(),
            None => error,
        })
    }

    fn begin(path: &Path, run: &Run) -> Result<Self> {
        let mut connection = connect(path)?;
        // It may be one that somebody else began.
        let size = std::fs::metadata(path).map_or(0, |about| limits::bytes_of(&about));
        limits::watch(&mut connection, size)?;
        layout::examine(&connection).map_err(|error| error.into_fault(path))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
        connection.pragma_update(None, "cache_size", -4096)?;
        connection.set_prepared_statement_cache_capacity(64);
        schema::complete(&connection)?;
        let next_tick = next_tick(&connection)?;
        limits::unwatch(&mut connection)?;
        let id = run::insert(&connection, run, next_tick)
            .with_context(|| format!("writing the start of a run to {}", path.shown()))?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            run: id,
            next_tick,
            dictionary: Dictionary::new(id),
            unsynced: 0,
            is_full: false,
        })
    }

    /// The number of the next tick.
    #[must_use]
    pub const fn next_tick(&self) -> i64 {
        self.next_tick
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run being written.
    #[must_use]
    pub const fn run(&self) -> i64 {
        self.run
    }

    /// Whether there were more slots or namespaces than a run may have.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Writes one tick and what belongs to it, or nothing at all.
    ///
    /// # Errors
    /// The disk is full ([`super::full::is_full`]) or broken.
    pub fn write(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        let due = self.unsynced + 1 >= SYNCED_EVERY;
        if due {
            self.connection.pragma_update(None, "synchronous", "FULL")?;
        }
        let written = self.write_whole(batch);
        if due {
            self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        }
        if written.is_err() {
            self.dictionary.reload(&self.connection)?;
        }
        written?;
        self.is_full |= self.dictionary.take_full();
        self.unsynced = if due { 0 } else { self.unsynced + 1 };
        self.next_tick += i64::from(batch.tick.is_some());
        Ok(())
    }

    fn write_whole(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        let Batch {
            tick,
            names,
            events,
            settings,
            facts,
            listings,
            rules,
            netns_settings,
            notices,
            incidents,
        } = batch;
        let Self { connection, run, next_tick, dictionary, .. } = self;
        let (run, id) = (*run, *next_tick);
        let transaction = connection.transaction()?;
        dictionary.name(&transaction, names)?;
        if let Some(tick) = tick {
            insert_tick(&transaction, &TickRow { id, first: id, run, level: 0 }, tick, dictionary)?;
            for census in &tick.censuses {
                if !dictionary.has_room_for(census.netns) {
                    continue;
                }
                let netns = dictionary.netns(&transaction, census.netns)?;
                census::insert(&transaction, id, netns, census)?;
            }
        }
        for (place, (loss, detail)) in events.iter().enumerate() {
            if !dictionary.has_room_for(event::netns_of(loss)) {
                continue;
            }
            let netns = dictionary.netns(&transaction, event::netns_of(loss))?;
            let owner = loss.owner.as_ref().map(|owner| dictionary.owner(&transaction, owner)).transpose()?;
            event::insert(&transaction, (id, place), *detail, netns, owner, loss)?;
        }
        for one in listings.iter().filter(|one| dictionary.has_room_for(one.netns)).collect::<Vec<_>>() {
            let netns = dictionary.netns(&transaction, one.netns)?;
            listing::insert(&transaction, run, netns, one)?;
        }
        for one in rules.iter().filter(|one| dictionary.has_room_for(one.netns)).collect::<Vec<_>>() {
            let netns = dictionary.netns(&transaction, one.netns)?;
            rules::insert(&transaction, run, netns, one)?;
        }
        for one in netns_settings.iter().filter(|one| dictionary.has_room_for(one.netns)).collect::<Vec<_>>()
        {
            let netns = dictionary.netns(&transaction, one.netns)?;
            rules::insert_setting(&transaction, run, netns, one)?;
        }
        for setting in settings {
            insert_setting(&transaction, run, setting)?;
        }
        for one in facts {
            insert_machine(&transaction, run, one)?;
        }
        for notice in notices {
            insert_notice(&transaction, run, notice)?;
        }
        for incident in incidents {
            put_incident(&transaction, run, incident)?;
        }
        transaction.commit()
    }

    /// Writes how the run ended, and completes the file: no -wal is left, unless somebody is reading an earlier state of
    /// the recording ([`files::wal`]).
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn end(self, end: &RunEnd) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        RunEndColumns::<&dyn ToSql> {
            run: &self.run,
            ended_us: &end.at.time.as_microsecond(),
            ended_mono_us: &end.at.mono_us,
            reason: &end.reason.name(),
            last_tick: &end.last_tick,
            crc: &end.checksum(self.run),
        }
        .insert(&self.connection)?;
        // Closing does this only if nobody else has the file open. What a reader holds up stays in the -wal, and so does
        // what a full disk has no space for.
        self.connection.busy_timeout(READERS_TIMEOUT)?;
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.connection.close().map_err(|(_, error)| error)
    }
}

impl Writer {
    /// For [`super::Retention`], which dropped numbers of namespaces or slots: they may be needed again.
    pub(super) fn reload_dictionary(&mut self) -> rusqlite::Result<()> {
        self.dictionary.reload(&self.connection)
    }

    /// For [`super::Retention`]: owners from this number on may be referenced again.
    pub(super) fn known_owners(&self) -> i64 {
        self.dictionary.known_owners()
    }

    /// For [`super::Retention`]: the path of the file and the connection to it.
    pub(super) fn parts(&mut self) -> (&Path, &mut Connection) {
        (&self.path, &mut self.connection)
    }
}

fn is_new(path: &Path) -> Result<bool> {
    files::is_new(path).map_err(|error| Fault::Unreadable(path.to_owned(), error.to_string()).into())
}

fn connect(path: &Path) -> Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection =
        regular::connect(path, flags, None).with_context(|| format!("opening {}", path.shown()))?;
    limits::distrust(&connection)?;
    Ok(connection)
}

/// Creates a recording without runs. It gets its name once it is complete.
fn make(path: &Path, run: &Run) -> Result<()> {
    let draft = files::draft(path).with_context(|| format!("creating {}", path.shown()))?;
    let laid_out = connect(&draft).and_then(|mut connection| {
        schema::lay_out(&mut connection, run.version.raw(), &Timestamp::now().to_string())?;
        connection.close().map_err(|(_, error)| error.into())
    });
    laid_out
        .and_then(|()| Ok(files::publish(&draft, path)?))
        .inspect_err(|_| drop(files::remove(&draft)))
        .with_context(|| format!("laying out {}", path.shown()))
}

fn next_tick(connection: &Connection) -> Result<i64> {
    let last: Option<i64> = connection.query_row("SELECT max(id) FROM tick", [], |row| row.get(0))?;
    Ok(last.unwrap_or(0) + 1)
}

fn insert_setting(transaction: &Transaction<'_>, run: i64, setting: &Setting) -> rusqlite::Result<()> {
    let Setting { at, name, value, before } = setting;
    SettingColumns::<&dyn ToSql> {
        id: &Null,
        run: &run,
        wall_us: &at.time.as_microsecond(),
        mono_us: &at.mono_us,
        name,
        value,
        before,
        crc: &setting.checksum(run),
    }
    .insert(transaction)
}

fn insert_machine(
    transaction: &Transaction<'_>,
    run: i64,
    snapshot: &MachineSnapshot,
) -> rusqlite::Result<()> {
    let MachineSnapshot { at, reason, json } = snapshot;
    MachineColumns::<&dyn ToSql> {
        id: &Null,
        run: &run,
        reason: &reason.name(),
        wall_us: &at.time.as_microsecond(),
        mono_us: &at.mono_us,
        facts: json,
        crc: &snapshot.checksum(run),
    }
    .insert(transaction)
}

fn insert_notice(transaction: &Transaction<'_>, run: i64, notice: &Notice) -> rusqlite::Result<()> {
    let Notice { at, code, text } = notice;
    NoticeColumns::<&dyn ToSql> {
        id: &Null,
        run: &run,
        wall_us: &at.time.as_microsecond(),
        mono_us: &at.mono_us,
        code,
        text,
        crc: &notice.checksum(run),
    }
    .insert(transaction)
}

/// Inserts an incident, or updates the one with the same condition and tick.
fn put_incident(transaction: &Transaction<'_>, run: i64, incident: &Incident) -> rusqlite::Result<()> {
    let Incident { condition, tick, at, measured, detail_from, detail_to, ceased } = incident;
    let ceased = ceased.map(|ceased| ceased.as_microsecond());
    let crc = incident.checksum(run);
    let known = transaction.execute(
        "UPDATE incident SET detail_to = ?4, ceased_us = ?5, crc = ?6 WHERE run = ?1 AND condition = ?2 AND tick = ?3",
        params![run, condition, tick, detail_to, ceased, crc],
    )?;
    if known > 0 {
        return Ok(());
    }
    IncidentColumns::<&dyn ToSql> {
        id: &Null,
        run: &run,
        condition,
        tick,
        wall_us: &at.time.as_microsecond(),
        mono_us: &at.mono_us,
        measured,
        detail_from,
        detail_to,
        ceased_us: &ceased,
        crc: &crc,
    }
    .insert(transaction)
}

/// The position of a tick in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TickRow {
    pub id: i64,
    pub first: i64,
    pub run: i64,
    pub level: u8,
}

/// Writes a tick without its censuses, which are kept independently.
pub(super) fn insert_tick(
    transaction: &Transaction<'_>,
    place: &TickRow,
    tick: &Tick,
    dictionary: &mut Dictionary,
) -> rusqlite::Result<()> {
    let TickRow { id, first, run, level } = *place;
    let tick = &*dictionary.fit(tick);
    let [drop, early_drop, insert_failed, chaintoolong] = tick.unexplained;
    TickColumns::<&dyn ToSql> {
        id: &id,
        first: &first,
        run: &run,
        level: &level,
        wall_us: &tick.time.as_microsecond(),
        mono_us: &tick.mono_us,
        interval_us: &tick.interval_us,
        restarted: &tick.restarted,
        ambiguous: &tick.ambiguous,
        flows_overflow: &tick.flows_overflow,
        unexplained_drop: &drop,
        unexplained_early_drop: &early_drop,
        unexplained_insert_failed: &insert_failed,
        unexplained_chaintoolong: &chaintoolong,
        events_seen: &tick.events_seen.cast_signed(),
        crc: &tick.checksum(),
    }
    .insert(transaction)?;
    let mut statement = TickNetnsColumns::statement(transaction)?;
    for one in &tick.netns {
        let NetnsTick { id: number, presence, complete, count, peak, max, kernel, width } = one;
        let [drop, early_drop, insert_failed, chaintoolong] = kernel;
        TickNetnsColumns::<&dyn ToSql> {
            tick: &id,
            netns: &dictionary.netns(transaction, *number)?,
            presence: &(*presence as i64),
            complete,
            count,
            peak: &if peak == count { None } else { *peak },
            max,
            drops: drop,
            early_drop,
            insert_failed,
            chaintoolong,
            drops_width: &width[0],
            early_drop_width: &width[1],
            insert_failed_width: &width[2],
            chaintoolong_width: &width[3],
        }
        .write(&mut statement)?;
    }
    let mut statement = TickLossColumns::statement(transaction)?;
    for (key, losses) in &tick.losses {
        let slot = dictionary.slot(transaction, *key)?;
        TickLossColumns::<&dyn ToSql> { tick: &id, slot: &slot, losses }.write(&mut statement)?;
    }
    let mut statement = TickFlowColumns::statement(transaction)?;
    for (key, [inserts, deletes, failed]) in &tick.flows {
        let slot = dictionary.slot(transaction, *key)?;
        TickFlowColumns::<&dyn ToSql> { tick: &id, slot: &slot, inserts, deletes, failed }
            .write(&mut statement)?;
    }
    let mut statement = TickCauseColumns::statement(transaction)?;
    for (cause, (overflow, lost_events)) in tick.overflow.iter().zip(&tick.lost_events).enumerate() {
        if (*overflow, *lost_events) != (0, 0) {
            TickCauseColumns::<&dyn ToSql> { tick: &id, cause: &(cause as i64), overflow, lost_events }
                .write(&mut statement)?;
        }
    }
    Ok(())
}
