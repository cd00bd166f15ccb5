//! The one who writes a recording: one transaction a tick, so that a killed recorder leaves whole ticks.
//! Knows SQL and nothing of what the numbers mean.

pub(super) mod dictionary;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Transaction, params};

use super::full::{DiskFull, lacks_room};
use super::rebuild::Names;
use super::rows::{Incident, MachineSnapshot, Notice, Run, RunEnd, Setting, StoredListing};
use super::tick::{NetnsTick, Tick};
use super::{Fault, census, event, files, listing, open, run, schema};
use crate::model::{Loss, NetnsId};
use dictionary::Dictionary;

/// So many ticks may be lost with the power: the last one of them waits until the disk has them.
const SYNCED_EVERY: u32 = 8;
/// Pages in the -wal after which it goes into the file: 2 MB.
const CHECKPOINT_PAGES: i64 = 512;
/// The -wal is cut back to this after a reader had held it up.
const WAL_LIMIT: i64 = 4 << 20;

/// How long the end of a run waits for readers.
const READERS_PATIENCE: Duration = Duration::from_millis(500);

/// Everything that goes into one transaction.
#[derive(Debug, Default)]
pub struct Batch {
    /// How the counters moved.
    pub tick: Option<Tick>,
    /// What namespaces are called, as far as that is news.
    pub names: HashMap<NetnsId, Names>,
    /// A sample of the losses of this tick, and whether each is only kept around an incident.
    pub events: Vec<(Loss, bool)>,
    /// Changed settings.
    pub settings: Vec<Setting>,
    /// What was read of the machine.
    pub facts: Vec<MachineSnapshot>,
    /// Tables read entry by entry.
    pub listings: Vec<StoredListing>,
    /// What else is to be said.
    pub notices: Vec<Notice>,
    /// Incidents that began or went on.
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
}

impl Writer {
    /// Whether a recording is there that can go on, or none.
    ///
    /// # Errors
    /// Something else is.
    pub fn check(path: &Path) -> Result<()> {
        if is_new(path)? { Ok(()) } else { open::examine(path) }
    }

    /// Opens a recording, or begins one, and starts a run in it. The caller holds its lock.
    ///
    /// # Errors
    /// It can't be written ([`DiskFull`] where there is no room), or what is there is no recording of this schema. Of a
    /// new one nothing is left then.
    pub fn open(path: &Path, run: &Run) -> Result<Self> {
        let begun = if is_new(path)? {
            make(path, run).and_then(|()| Self::begin(path, run).inspect_err(|_| drop(files::remove(path))))
        } else {
            open::examine(path).and_then(|()| Self::begin(path, run))
        };
        begun.map_err(|error| if lacks_room(&error) { DiskFull::at_the_start(path).into() } else { error })
    }

    fn begin(path: &Path, run: &Run) -> Result<Self> {
        let connection = connect(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
        connection.pragma_update(None, "cache_size", -4096)?;
        connection.set_prepared_statement_cache_capacity(32);
        let next_tick = next_tick(&connection)?;
        let id = run::insert(&connection, run, next_tick)
            .with_context(|| format!("writing the start of a run to {}", path.display()))?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            run: id,
            next_tick,
            dictionary: Dictionary::new(id),
            unsynced: 0,
        })
    }

    /// The number the next tick will have.
    #[must_use]
    pub const fn next_tick(&self) -> i64 {
        self.next_tick
    }

    /// Where it writes.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The run that is being written.
    #[must_use]
    pub const fn run(&self) -> i64 {
        self.run
    }

    /// Writes one tick and what belongs to it, or nothing of it.
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
            self.dictionary = Dictionary::load(&self.connection, self.run)?;
        }
        written?;
        self.unsynced = if due { 0 } else { self.unsynced + 1 };
        self.next_tick += i64::from(batch.tick.is_some());
        Ok(())
    }

    fn write_whole(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        let Batch { tick, names, events, settings, facts, listings, notices, incidents } = batch;
        let Self { connection, run, next_tick, dictionary, .. } = self;
        let (run, id) = (*run, *next_tick);
        let transaction = connection.transaction()?;
        dictionary.name(&transaction, names)?;
        if let Some(tick) = tick {
            insert_tick(&transaction, &TickRow { id, first: id, run, level: 0 }, tick, dictionary)?;
            for census in &tick.censuses {
                let netns = dictionary.netns(&transaction, census.netns)?;
                census::insert(&transaction, id, netns, census)?;
            }
        }
        for (place, (loss, detail)) in events.iter().enumerate() {
            let netns = dictionary.netns(&transaction, event::netns_of(loss))?;
            let owner = loss.owner.as_ref().map(|owner| dictionary.owner(&transaction, owner)).transpose()?;
            event::insert(&transaction, (id, place), *detail, netns, owner, loss)?;
        }
        for one in listings {
            let netns = dictionary.netns(&transaction, one.netns)?;
            listing::insert(&transaction, run, netns, one)?;
        }
        for setting in settings {
            insert_setting(&transaction, run, setting)?;
        }
        for one in facts {
            insert_facts(&transaction, run, one)?;
        }
        for notice in notices {
            insert_notice(&transaction, run, notice)?;
        }
        for incident in incidents {
            put_incident(&transaction, run, incident)?;
        }
        transaction.commit()
    }

    /// Writes how the run ended, and makes the file whole: nothing is left beside it, unless somebody is reading a state
    /// of it that lies back ([`files::wal`]).
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub fn end(self, end: &RunEnd) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.execute(
            "INSERT OR REPLACE INTO run_end VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                self.run,
                end.at.time.as_microsecond(),
                end.at.mono_us,
                end.reason.name(),
                end.last_tick,
                end.checksum(self.run)
            ],
        )?;
        // Closing does this only where nobody else has the file open. What a reader holds up stays in the -wal, and so
        // does what has no room on a full disk.
        self.connection.busy_timeout(READERS_PATIENCE)?;
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.connection.close().map_err(|(_, error)| error)
    }
}

impl Writer {
    /// For thinning: owners from this number on may be named again.
    pub(super) fn known_owners(&self) -> i64 {
        self.dictionary.known_owners()
    }

    /// For thinning: where the file is, and the connection to it.
    pub(super) fn parts(&mut self) -> (&Path, &mut Connection) {
        (&self.path, &mut self.connection)
    }
}

fn is_new(path: &Path) -> Result<bool> {
    files::is_new(path).map_err(|error| Fault::Unreadable(path.to_owned(), error.to_string()).into())
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(path, flags).with_context(|| format!("opening {}", path.display()))?;
    schema::distrust(&connection)?;
    Ok(connection)
}

/// Makes a recording without runs. It has its name once it is whole.
fn make(path: &Path, run: &Run) -> Result<()> {
    let draft = files::draft(path).with_context(|| format!("creating {}", path.display()))?;
    let laid_out = connect(&draft).and_then(|mut connection| {
        schema::lay_out(&mut connection, &run.version, &Timestamp::now().to_string())?;
        connection.close().map_err(|(_, error)| error.into())
    });
    laid_out
        .and_then(|()| Ok(files::publish(&draft, path)?))
        .inspect_err(|_| drop(files::remove(&draft)))
        .with_context(|| format!("laying out {}", path.display()))
}

fn next_tick(connection: &Connection) -> Result<i64> {
    let last: Option<i64> = connection.query_row("SELECT max(id) FROM tick", [], |row| row.get(0))?;
    Ok(last.unwrap_or(0) + 1)
}

fn insert_setting(transaction: &Transaction<'_>, run: i64, setting: &Setting) -> rusqlite::Result<()> {
    let Setting { at, name, value, before } = setting;
    transaction
        .prepare_cached(
            "INSERT INTO setting (run, wall_us, mono_us, name, value, before, crc) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            run,
            at.time.as_microsecond(),
            at.mono_us,
            name,
            value,
            before,
            setting.checksum(run)
        ])?;
    Ok(())
}

fn insert_facts(transaction: &Transaction<'_>, run: i64, facts: &MachineSnapshot) -> rusqlite::Result<()> {
    let MachineSnapshot { at, occasion, json } = facts;
    transaction.execute(
        "INSERT INTO machine (run, reason, wall_us, mono_us, facts, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![run, occasion.name(), at.time.as_microsecond(), at.mono_us, json, facts.checksum(run)],
    )?;
    Ok(())
}

fn insert_notice(transaction: &Transaction<'_>, run: i64, notice: &Notice) -> rusqlite::Result<()> {
    let Notice { at, code, text } = notice;
    transaction.execute(
        "INSERT INTO notice (run, wall_us, mono_us, code, text, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![run, at.time.as_microsecond(), at.mono_us, code, text, notice.checksum(run)],
    )?;
    Ok(())
}

/// One that is known by its condition and tick is brought up to date.
fn put_incident(transaction: &Transaction<'_>, run: i64, incident: &Incident) -> rusqlite::Result<()> {
    let Incident { condition, tick, at, measured, detail_from, detail_to, ceased } = incident;
    let ceased = ceased.map(|ceased| ceased.as_microsecond());
    let crc = incident.checksum(run);
    let known = transaction.execute(
        "UPDATE incident SET detail_to = ?4, ceased_us = ?5, crc = ?6 WHERE run = ?1 AND condition = ?2 AND tick = ?3",
        params![run, condition, tick, detail_to, ceased, crc],
    )?;
    if known == 0 {
        let (wall_us, mono_us) = (at.time.as_microsecond(), at.mono_us);
        transaction.execute(
            "INSERT INTO incident (run, condition, tick, wall_us, mono_us, measured, detail_from, detail_to, ceased_us, \
             crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![run, condition, tick, wall_us, mono_us, measured, detail_from, detail_to, ceased, crc],
        )?;
    }
    Ok(())
}

/// Where a tick is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TickRow {
    pub id: i64,
    pub first: i64,
    pub run: i64,
    pub level: u8,
}

/// Writes a tick without its censuses, which have a life of their own.
pub(super) fn insert_tick(
    transaction: &Transaction<'_>,
    place: &TickRow,
    tick: &Tick,
    dictionary: &mut Dictionary,
) -> rusqlite::Result<()> {
    let TickRow { id, first, run, level } = *place;
    let [drop, early_drop, insert_failed, chaintoolong] = tick.unexplained;
    transaction
        .prepare_cached(
            "INSERT INTO tick VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
        )?
        .execute(params![
            id,
            first,
            run,
            level,
            tick.time.as_microsecond(),
            tick.mono_us,
            tick.interval_us,
            tick.restarted,
            tick.ambiguous,
            tick.flows_overflow,
            drop,
            early_drop,
            insert_failed,
            chaintoolong,
            tick.events_seen.cast_signed(),
            tick.checksum(),
        ])?;
    let mut statement = transaction.prepare_cached(
        "INSERT INTO tick_netns VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
    )?;
    for one in &tick.netns {
        let NetnsTick { id: number, presence, complete, count, peak, max, kernel, width } = one;
        let peak = if peak == count { None } else { *peak };
        let ([a, b, c, d], [e, f, g, h]) = (kernel, width);
        let netns = dictionary.netns(transaction, *number)?;
        let presence = *presence as i64;
        statement
            .execute(params![id, netns, presence, complete, count, peak, max, a, b, c, d, e, f, g, h])?;
    }
    let mut statement = transaction.prepare_cached("INSERT INTO tick_loss VALUES (?1, ?2, ?3)")?;
    for (key, losses) in &tick.losses {
        let slot = dictionary.slot(transaction, *key)?;
        statement.execute(params![id, slot, losses])?;
    }
    let mut statement = transaction.prepare_cached("INSERT INTO tick_flow VALUES (?1, ?2, ?3, ?4, ?5)")?;
    for (key, [inserts, deletes, failed]) in &tick.flows {
        let slot = dictionary.slot(transaction, *key)?;
        statement.execute(params![id, slot, inserts, deletes, failed])?;
    }
    let mut statement = transaction.prepare_cached("INSERT INTO tick_cause VALUES (?1, ?2, ?3, ?4)")?;
    for (cause, (overflow, lost)) in tick.overflow.iter().zip(&tick.lost_events).enumerate() {
        if (*overflow, *lost) != (0, 0) {
            statement.execute(params![id, cause as i64, overflow, lost])?;
        }
    }
    Ok(())
}
