//! Keeps a recording small: the oldest ticks are downsampled step by step, and finally merged into one sum.
//! Totals stay exact, incidents keep their detail longest, and freed space is returned to the file system.

mod ages;
mod fold;

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Result;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::Writer;
use super::fault::ReadError;
use super::query::{ANY_ROW, each};
use super::reader::{Numbers, Stored};
use super::rows::{Names, Notice};
use super::rules;
use super::tick::Tick;
use super::writer::dictionary::{Dictionary, GONE};
use super::writer::{Batch, TickRow, insert_tick};
use crate::model::{NetnsId, WallMono};
use ages::Ages;

/// Ticks handled in one step, if they aren't too large: some tens of milliseconds.
const STEP: usize = 600;
/// Ticks that get older than `--keep` wait until the oldest is older by this part of it, and by no more than this: whenever
/// ticks are added to a sum, the whole of it is rewritten.
const SLACK_PART: u32 = 8;
const SLACK: Duration = Duration::from_secs(600);
/// Fewer ticks than this can wait.
const WORTH_A_STEP: usize = 60;
/// The latest ticks stay as they are while anything else can be downsampled.
const SPARED: i64 = 900;
/// Pages returned to the file system in one step: 4 MB.
const PAGES: usize = 1024;
/// Ticks between two checks of the size, which grows slowly.
const CHECK_EVERY: u32 = 8;
/// Steps between two searches for unreferenced owners: each reads all events.
const OWNERS_EVERY: u32 = 32;
/// Ticks between two looks for namespaces and slots that nothing refers to, and for notices beyond the most that are kept.
const NAMES_EVERY: u32 = 1024;
/// So many more namespaces and slots than after the last search make another one worthwhile: it reads all ticks.
const WORTH_A_SEARCH: i64 = 1024;
/// Notices, and changes of settings, that are kept: the latest.
const NOTICES: i64 = 4096;
/// Rule sets take at most this part of the file.
const RULES_SHARE: u64 = 8;
/// Seconds per tick at levels 1 to 3.
const SPANS_S: [i64; 3] = [10, 60, 600];
/// The level of sums.
const SUM: u8 = 4;

/// How large and how old a recording may get.
#[derive(Clone, Copy, Debug)]
pub struct RetentionLimits {
    /// Ticks older than this are merged into a sum, many at a time.
    pub keep: Duration,
    /// Size of the file in bytes.
    pub max_size: u64,
    /// How long detail outside of incidents is kept.
    pub detail: Duration,
}

/// Applies the limits to a recording while it is being written.
#[derive(Debug)]
pub struct Retention {
    limits: RetentionLimits,
    /// Per level: ticks before this one are done.
    cursors: [i64; SUM as usize],
    /// Detail before this tick is done.
    swept: i64,
    /// Ticks since the size was last checked.
    unchecked: u32,
    /// Steps until the next search for unreferenced owners.
    owners_in: u32,
    /// Ticks until the next look for unreferenced names.
    names_in: u32,
    /// Namespaces and slots that the last search left.
    names_left: i64,
    /// More ticks older than `--keep` wait than one step merges.
    summing: bool,
    /// Ticks up to this one can't be merged, as there is more of something than may be held at once.
    unsummed: i64,
    /// What there is too much of for a step, until it is told: only the first is.
    too_much: Option<String>,
    is_told: bool,
    /// Namespaces of the current run whose settings and rules were dropped.
    forgotten: Vec<NetnsId>,
    /// The first notice of the current run that is left, or one before it.
    notices_from: i64,
    ages: Option<Ages>,
    busy: bool,
}

/// Whether a step found anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Done,
    Exhausted,
}

impl Retention {
    /// For a file that was just opened.
    #[must_use]
    pub fn new(limits: RetentionLimits) -> Self {
        Self {
            limits,
            cursors: [0; SUM as usize],
            swept: 0,
            unchecked: 0,
            owners_in: 0,
            names_in: 0,
            names_left: 0,
            summing: false,
            unsummed: 0,
            too_much: None,
            is_told: false,
            forgotten: Vec::new(),
            notices_from: 0,
            ages: None,
            busy: false,
        }
    }

    /// Does one step after a tick, if one is due. `now_us` is by CLOCK_MONOTONIC.
    ///
    /// # Errors
    /// The file can't be written or is damaged.
    pub fn step(&mut self, writer: &mut Writer, now_us: i64) -> Result<()> {
        self.unchecked += 1;
        self.names_in = self.names_in.saturating_sub(1);
        if !self.busy && self.unchecked < CHECK_EVERY {
            return Ok(());
        }
        self.unchecked = 0;
        let run = writer.run();
        let known_owners = writer.known_owners();
        let (path, connection) = writer.parts();
        let done = self.try_step(connection, run, known_owners, now_us);
        let forgotten = self.unless_too_much(done).map_err(|error| match error {
            ReadError::Sql(error) => anyhow::Error::from(error),
            ReadError::Corrupt(_) | ReadError::TooMuch(_) | ReadError::Stopped => {
                error.into_fault(path).into()
            }
        })?;
        if forgotten.unwrap_or(true) {
            writer.reload_dictionary()?;
        }
        if let Some(what) = self.too_much.take().filter(|_| !std::mem::replace(&mut self.is_told, true)) {
            let text = format!(
                "a part of this recording can't be made smaller (at once that takes {what}): it may grow beyond --max-size and \
                 stay longer than --keep. Nothing is lost; a new file (SIGHUP) starts afresh"
            );
            let notice = Notice { at: WallMono::now(), code: "not_thinned".into(), text: text.into() };
            writer.write(&Batch { notices: vec![notice], ..Batch::default() })?;
        }
        Ok(())
    }

    /// The namespaces whose settings and rules were dropped since this was last asked.
    pub(super) fn take_forgotten(&mut self) -> Vec<NetnsId> {
        std::mem::take(&mut self.forgotten)
    }

    /// What readers are allowed is no reason for a recorder to end: it leaves such a step out, and says so.
    fn unless_too_much<T>(&mut self, done: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
        match done {
            Ok(done) => Ok(Some(done)),
            Err(error) => match error.limit() {
                Some(what) => {
                    self.too_much = Some(what);
                    Ok(None)
                }
                None => Err(error),
            },
        }
    }

    fn try_step(
        &mut self,
        connection: &mut Connection,
        run: i64,
        known_owners: i64,
        now_us: i64,
    ) -> Result<bool, ReadError> {
        let ages = match self.ages.take() {
            Some(ages) => ages,
            None => Ages::read(connection, run)?,
        };
        self.sweep_detail(connection, &ages, now_us)?;
        let keep = Keep::new(&ages, self.limits.keep, now_us);
        let mut worked = self.sum_up_old(connection, &keep)? == Step::Done;
        worked |= drop_old_run(connection, run, &keep)?;
        worked |= self.drop_old_notices(connection, run, &keep)?;
        let forgotten = self.forget_names(connection, run)?;
        worked |= rules::shrink(connection, self.limits.max_size / RULES_SHARE)?;
        if size(connection)? > self.limits.max_size {
            worked |=
                self.drop_owners(connection, known_owners)? || self.shrink(connection, run)? == Step::Done;
        }
        self.busy = worked;
        self.ages = Some(ages);
        give_back(connection)?;
        Ok(forgotten)
    }

    /// Drops detail that no incident claimed in time.
    fn sweep_detail(&mut self, connection: &Connection, ages: &Ages, now_us: i64) -> Result<(), ReadError> {
        let detail_us = micros(self.limits.detail);
        let mut statement = connection
            .prepare_cached("SELECT id, run, mono_us FROM tick WHERE id >= ?1 ORDER BY id LIMIT 600")?;
        let mut rows = statement.query([self.swept])?;
        let mut to = None;
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>("mono_us")? >= ages.cutoff(row.get("run")?, now_us, detail_us) {
                break;
            }
            to = Some(row.get::<_, i64>("id")?);
        }
        let Some(to) = to else { return Ok(()) };
        connection
            .prepare_cached(
                "DELETE FROM event WHERE tick BETWEEN ?1 AND ?2 AND detail AND NOT EXISTS \
                 (SELECT 1 FROM incident i WHERE event.tick BETWEEN i.detail_from AND i.detail_to)",
            )?
            .execute([self.swept, to])?;
        drop_zones(connection, [self.swept, to])?;
        self.swept = to + 1;
        Ok(())
    }

    /// Drops owners whose events are gone. Those from `known` on may be referenced again.
    fn drop_owners(&mut self, connection: &Connection, known: i64) -> Result<bool, ReadError> {
        let due = self.owners_in == 0;
        self.owners_in = if due { OWNERS_EVERY } else { self.owners_in - 1 };
        if !due {
            return Ok(false);
        }
        let dropped = connection.execute(
            "DELETE FROM owner WHERE id < ?1 AND id NOT IN (SELECT owner FROM event WHERE owner IS NOT NULL)",
            [known],
        )?;
        Ok(dropped > 0)
    }

    /// Drops namespaces and slots that nothing refers to any more, and notices that are too many. Returns whether numbers
    /// were dropped that the writer may know.
    fn forget_names(&mut self, connection: &mut Connection, run: i64) -> Result<bool, ReadError> {
        if self.names_in > 0 {
            return Ok(false);
        }
        self.names_in = NAMES_EVERY;
        for sql in [
            "DELETE FROM notice WHERE id <= (SELECT id FROM notice ORDER BY id DESC LIMIT 1 OFFSET ?1)",
            // The first reading of each stays.
            "DELETE FROM setting WHERE before IS NOT NULL AND id <= (SELECT id FROM setting ORDER BY id DESC LIMIT 1 OFFSET ?1)",
        ] {
            connection.prepare_cached(sql)?.execute([NOTICES])?;
        }
        let names: i64 = connection
            .prepare_cached(
                "SELECT (SELECT count(*) FROM slot) + (SELECT count(*) FROM netns WHERE run = ?1)",
            )?
            .query_row([run], |row| row.get(0))?;
        if names < self.names_left + WORTH_A_SEARCH {
            return Ok(false);
        }
        let transaction = connection.transaction()?;
        let mut dropped = transaction.execute(
            "DELETE FROM slot WHERE id NOT IN (SELECT slot FROM tick_loss UNION SELECT slot FROM tick_flow)",
            [],
        )?;
        // One that is there has a row in a tick, or in a sum. Settings and rules of one that isn't say nothing any more.
        let of_none = "NOT IN (SELECT netns FROM tick_netns UNION SELECT netns FROM slot UNION SELECT netns FROM event \
             UNION SELECT netns FROM census UNION SELECT netns FROM listing)";
        let with_settings = format!(
            "SELECT number FROM netns WHERE run = ?1 AND id {of_none} AND id IN (SELECT netns FROM netns_setting)"
        );
        let forgotten = each(&transaction, &with_settings, [run], |row| Ok(row.get::<_, u32>(0)?))?;
        for table in ["netns_setting", "rules"] {
            transaction.execute(&format!("DELETE FROM {table} WHERE netns {of_none}"), [])?;
        }
        dropped += transaction.execute(&format!("DELETE FROM netns WHERE id {of_none}"), [])?;
        transaction.commit()?;
        self.forgotten.extend(forgotten.into_iter().map(NetnsId::from_packed));
        self.names_left = names.saturating_sub_unsigned(dropped as u64);
        Ok(dropped > 0)
    }

    /// Merges what is older than `--keep`, except around incidents.
    fn sum_up_old(&mut self, connection: &mut Connection, keep: &Keep<'_>) -> Result<Step, ReadError> {
        let oldest = "SELECT id, run, mono_us FROM tick WHERE level < 4 AND id > ?1 AND NOT EXISTS \
             (SELECT 1 FROM incident i WHERE tick.id >= i.detail_from AND tick.first <= i.detail_to) ORDER BY id LIMIT 1";
        // Sums come before everything else: this search is short.
        let found = connection
            .prepare_cached(oldest)?
            .query_row([self.unsummed], |row| {
                Ok((row.get::<_, i64>("id")?, row.get::<_, i64>("run")?, row.get::<_, i64>("mono_us")?))
            })
            .optional()?;
        let due = found.filter(|(_, run, mono_us)| self.summing || keep.is_due(*run, *mono_us));
        let Some((from, run, _)) = due else {
            self.summing = false;
            return Ok(Step::Exhausted);
        };
        let mut statement = connection
            .prepare_cached("SELECT id, run, mono_us FROM tick WHERE id >= ?1 ORDER BY id LIMIT ?2")?;
        let mut rows = statement.query([from, STEP as i64])?;
        let (mut to, mut ticks) = (None, 0);
        while let Some(row) = rows.next()? {
            if row.get::<_, i64>("run")? != run || !keep.is_older(run, row.get("mono_us")?) {
                break;
            }
            to = Some(row.get("id")?);
            ticks += 1;
        }
        drop(rows);
        drop(statement);
        self.summing = ticks == STEP;
        let Some(to) = to else { return Ok(Step::Exhausted) };
        let done = self.downsample(connection, run, from, to, SUM);
        match self.unless_too_much(done)? {
            Some(reached) => self.summing |= reached < to,
            None => self.unsummed = to,
        }
        Ok(Step::Done)
    }

    /// Drops notices of the current run that are older than `--keep`, as its ticks are by then.
    fn drop_old_notices(
        &mut self,
        connection: &Connection,
        run: i64,
        keep: &Keep<'_>,
    ) -> Result<bool, ReadError> {
        let sql = "SELECT id, mono_us FROM notice WHERE id >= ?1 AND run = ?2 ORDER BY id LIMIT 600";
        let oldest = "SELECT id, mono_us FROM notice WHERE id >= ?1 AND run = ?2 ORDER BY id LIMIT 1";
        let row = |row: &Row<'_>| Ok((row.get::<_, i64>("id")?, row.get::<_, i64>("mono_us")?));
        let first = connection.prepare_cached(oldest)?.query_row([self.notices_from, run], row).optional()?;
        let Some((first, _)) = first.filter(|(id, mono_us)| {
            self.notices_from = *id;
            keep.is_due(run, *mono_us)
        }) else {
            return Ok(false);
        };
        let notices = each(connection, sql, [first, run], |of| Ok(row(of)?))?;
        let old = notices.into_iter().take_while(|(_, mono_us)| keep.is_older(run, *mono_us));
        let Some((last, _)) = old.last() else { return Ok(false) };
        let sql = "DELETE FROM notice WHERE id BETWEEN ?1 AND ?2 AND run = ?3";
        connection.prepare_cached(sql)?.execute([first, last, run])?;
        Ok(true)
    }

    /// One step towards a smaller file: downsample ticks, oldest first; then merge them; then release the oldest incident.
    fn shrink(&mut self, connection: &mut Connection, current: i64) -> Result<Step, ReadError> {
        let last: i64 = connection.query_row("SELECT ifnull(max(id), 0) FROM tick", [], |row| row.get(0))?;
        for spared in [SPARED, SPARED / 15] {
            for level in 0..SUM {
                let sql = "SELECT id, run FROM tick WHERE id > ?1 AND id <= ?2 AND level = ?3 AND NOT EXISTS \
                     (SELECT 1 FROM incident i WHERE tick.id >= i.detail_from AND tick.first <= i.detail_to) \
                     ORDER BY id LIMIT ?4";
                let limits = params![self.cursors[usize::from(level)], last - spared, level, STEP as i64];
                let ids = each(connection, sql, limits, |row| {
                    Ok((row.get::<_, i64>("id")?, row.get::<_, i64>("run")?))
                })?;
                // A few are not worth a step, and would leave fragments.
                let Some((from, run)) = ids.first().copied().filter(|_| ids.len() >= WORTH_A_STEP) else {
                    continue;
                };
                let to = ids.iter().take_while(|(_, of)| *of == run).last().map_or(from, |(id, _)| *id);
                let done = self.downsample(connection, run, from, to, level + 1);
                self.cursors[usize::from(level)] = self.unless_too_much(done)?.unwrap_or(to);
                return Ok(Step::Done);
            }
            if self.release_oldest_incident(connection, current)? {
                return Ok(Step::Done);
            }
        }
        Ok(Step::Exhausted)
    }

    fn release_oldest_incident(&mut self, connection: &Connection, current: i64) -> Result<bool, ReadError> {
        let sql = "DELETE FROM incident WHERE id = (SELECT id FROM incident WHERE ceased_us IS NOT NULL OR run <> ?1 \
             ORDER BY id LIMIT 1) RETURNING run";
        let run: Option<i64> = connection.query_row(sql, [current], |row| row.get(0)).optional()?;
        let Some(run) = run else { return Ok(false) };
        drop_snapshots(connection, run)?;
        self.cursors = [0; SUM as usize];
        self.swept = 0;
        Ok(true)
    }

    /// Downsamples the ticks in this range, except those around incidents. Returns how far it got: a group that may be
    /// incomplete is left for the next step.
    fn downsample(
        &self,
        connection: &mut Connection,
        run: i64,
        from: i64,
        to: i64,
        level: u8,
    ) -> Result<i64, ReadError> {
        let incidents = each(connection, "SELECT detail_from, detail_to FROM incident", [], |row| {
            Ok((row.get::<_, i64>("detail_from")?, row.get::<_, i64>("detail_to")?))
        })?;
        let claimed =
            |tick: &Stored| incidents.iter().any(|(from, to)| tick.id >= *from && tick.first <= *to);
        let numbers = Numbers::of(connection, run, [ANY_ROW; 2])?;
        // A sum is extended, not followed by another one.
        let from = if level == SUM { sum_before(connection, run, from)?.unwrap_or(from) } else { from };
        // A sum alone would be written again as it is.
        let least = if level == SUM { 2 } else { 1 };
        let batch = numbers.ticks(connection, from, to, least..=STEP + 1)?;
        let mut ticks = Vec::new();
        for (tick, crc) in batch.ticks {
            if tick.tick.checksum() != crc {
                return super::fault::corrupt_row("tick", tick.id);
            }
            ticks.push(tick);
        }
        if level < SUM {
            let goes_on = |two: &[Stored]| belongs(&two[0], &two[1], level);
            let whole = ticks.windows(2).rposition(|two| !goes_on(two)).map_or(0, |last| last + 1);
            // A group larger than what is read at once becomes several ticks.
            let is_part = whole == 0 && !batch.are_last;
            if !is_part {
                ticks.truncate(whole.max(1));
            }
        }
        let reached = ticks.last().map_or(to, |tick| tick.id);
        let transaction = connection.transaction()?;
        let mut dictionary = Dictionary::load(&transaction, run)?;
        let mut group: Vec<Stored> = Vec::new();
        for tick in ticks {
            let stays = claimed(&tick) || tick.level > level;
            if stays || group.last().is_some_and(|last| !belongs(last, &tick, level)) {
                replace(&transaction, run, &mut group, level, &mut dictionary)?;
            }
            if !stays {
                group.push(tick);
            }
        }
        replace(&transaction, run, &mut group, level, &mut dictionary)?;
        transaction.commit()?;
        Ok(reached)
    }
}

/// What is older than `--keep` by now.
struct Keep<'a> {
    ages: &'a Ages,
    now_us: i64,
    keep_us: i64,
    slack_us: i64,
}

impl<'a> Keep<'a> {
    fn new(ages: &'a Ages, keep: Duration, now_us: i64) -> Self {
        let slack = (keep / SLACK_PART).min(SLACK);
        Self { ages, now_us, keep_us: micros(keep), slack_us: micros(slack) }
    }

    fn is_older(&self, run: i64, mono_us: i64) -> bool {
        mono_us < self.ages.cutoff(run, self.now_us, self.keep_us)
    }

    /// Whether it is older by so much that it is time to merge or drop all that is older.
    fn is_due(&self, run: i64, mono_us: i64) -> bool {
        mono_us < self.ages.cutoff(run, self.now_us, self.keep_us.saturating_add(self.slack_us))
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// Drops snapshots taken by triggers, or in trouble, before the first incident of a run that is left.
fn drop_snapshots(connection: &Connection, run: i64) -> Result<(), ReadError> {
    let before = "run = ?1 AND reason IN ('trigger', 'changed') AND mono_us < \
         (SELECT ifnull(min(mono_us), 9223372036854775807) FROM incident WHERE run = ?1)";
    for sql in [
        format!("DELETE FROM listing_phase WHERE listing IN (SELECT id FROM listing WHERE {before})"),
        format!("DELETE FROM listing WHERE {before}"),
        format!("DELETE FROM machine WHERE {before}"),
    ] {
        connection.execute(&sql, [run])?;
    }
    Ok(())
}

/// Whether two successive ticks are merged at this level.
fn belongs(last: &Stored, next: &Stored, level: u8) -> bool {
    let Some(span) = SPANS_S.get(usize::from(level) - 1) else { return next.first == last.id + 1 };
    let slot = |tick: &Tick| (tick.mono_us - 1).div_euclid(span * 1_000_000);
    next.first == last.id + 1 && slot(&last.tick) == slot(&next.tick)
}

/// The number of the sum directly before a tick, if there is one.
fn sum_before(connection: &Connection, run: i64, from: i64) -> Result<Option<i64>, ReadError> {
    let sql = "SELECT id FROM tick WHERE run = ?1 AND level = 4 AND id = (SELECT first - 1 FROM tick WHERE id = ?2)";
    Ok(connection.prepare_cached(sql)?.query_row([run, from], |row| row.get(0)).optional()?)
}

/// Replaces several ticks by one.
fn replace(
    transaction: &Transaction<'_>,
    run: i64,
    group: &mut Vec<Stored>,
    level: u8,
    dictionary: &mut Dictionary,
) -> Result<(), ReadError> {
    let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(()) };
    let place = TickRow { id: last.id, first: first.first, run, level };
    let (from, to) = (first.id, last.id);
    for table in ["tick_netns", "tick_loss", "tick_flow", "tick_cause"] {
        let sql = format!("DELETE FROM {table} WHERE tick BETWEEN ?1 AND ?2");
        transaction.prepare_cached(&sql)?.execute([from, to])?;
    }
    transaction.prepare_cached("DELETE FROM tick WHERE id BETWEEN ?1 AND ?2")?.execute([from, to])?;
    if let Some(mut sum) = Tick::sum(group.drain(..).map(|stored| stored.tick).collect()) {
        if level == SUM {
            let gone = fold::fold(&mut sum);
            let gone = gone.into_iter().map(|netns| dictionary.netns(transaction, netns));
            drop_censuses_of(transaction, &place, &gone.collect::<Result<_, _>>()?)?;
            if sum.netns.iter().any(|netns| netns.id == GONE) {
                let names = Names { name: Some("gone".into()), container: None };
                dictionary.name(transaction, &[(GONE, names)].into())?;
            }
        }
        insert_tick(transaction, &place, &sum, dictionary)?;
    }
    drop_samples(transaction, &place)?;
    drop_censuses(transaction, &place)
}

/// The coarser a tick, the fewer individual losses it keeps.
fn drop_samples(transaction: &Transaction<'_>, place: &TickRow) -> Result<(), ReadError> {
    let which = match place.level {
        1 => "place > 1",
        2 => "place > 0",
        3 => "place > 0 OR tick % 10 <> 0",
        _ => "1",
    };
    let sql = format!("DELETE FROM event WHERE tick BETWEEN ?1 AND ?2 AND ({which})");
    transaction.prepare_cached(&sql)?.execute([place.first, place.id])?;
    Ok(drop_zones(transaction, [place.first, place.id])?)
}

/// Drops the zones of losses that are dropped, in this range of ticks.
fn drop_zones(connection: &Connection, ticks: [i64; 2]) -> rusqlite::Result<()> {
    let sql = "DELETE FROM event_zone WHERE tick BETWEEN ?1 AND ?2 AND NOT EXISTS \
               (SELECT 1 FROM event e WHERE e.tick = event_zone.tick AND e.place = event_zone.place)";
    connection.prepare_cached(sql)?.execute(ticks).map(drop)
}

/// Drops what was in the tables of namespaces that are gone.
fn drop_censuses_of(
    transaction: &Transaction<'_>,
    place: &TickRow,
    gone: &HashSet<i64>,
) -> Result<(), ReadError> {
    if gone.is_empty() {
        return Ok(());
    }
    let sql = "SELECT id, netns FROM census WHERE tick BETWEEN ?1 AND ?2";
    let there = each(transaction, sql, [place.first, place.id], |row| {
        Ok((row.get::<_, i64>("id")?, row.get("netns")?))
    })?;
    let old = there.into_iter().filter(|(_, netns)| gone.contains(netns));
    old.map(|(id, _)| id).try_for_each(|id| drop_census(transaction, id))
}

fn drop_census(transaction: &Transaction<'_>, id: i64) -> Result<(), ReadError> {
    for table in ["census_key", "census_detail"] {
        let sql = format!("DELETE FROM {table} WHERE census = ?1");
        transaction.prepare_cached(&sql)?.execute([id])?;
    }
    transaction.prepare_cached("DELETE FROM census WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Keeps, for each netns, the last census and the last one that set flow offsets: these apply to what follows.
fn drop_censuses(transaction: &Transaction<'_>, place: &TickRow) -> Result<(), ReadError> {
    let gone = each(
        transaction,
        "SELECT id FROM census c WHERE tick BETWEEN ?1 AND ?2 \
         AND EXISTS (SELECT 1 FROM census l WHERE l.netns = c.netns AND l.tick BETWEEN ?1 AND ?2 AND l.id > c.id) \
         AND (NOT c.rebase OR EXISTS (SELECT 1 FROM census l WHERE l.netns = c.netns AND l.rebase \
           AND l.tick BETWEEN ?1 AND ?2 AND l.id > c.id))",
        [place.first, place.id],
        |row| Ok(row.get::<_, i64>(0)?),
    )?;
    gone.into_iter().try_for_each(|id| drop_census(transaction, id))
}

/// Drops a run of which only sums older than `--keep` are left.
fn drop_old_run(connection: &mut Connection, current: i64, keep: &Keep<'_>) -> Result<bool, ReadError> {
    let Some(run) = old_run(connection, current, keep)? else { return Ok(false) };
    let transaction = connection.transaction()?;
    let ticks = "(SELECT id FROM tick WHERE run = ?1)";
    let netns = "(SELECT id FROM netns WHERE run = ?1)";
    let mut statements: Vec<String> = ["tick_netns", "tick_loss", "tick_flow", "tick_cause"]
        .map(|table| format!("DELETE FROM {table} WHERE tick IN {ticks}"))
        .into();
    for table in ["census_key", "census_detail"] {
        statements.push(format!(
            "DELETE FROM {table} WHERE census IN (SELECT id FROM census WHERE netns IN {netns})"
        ));
    }
    statements.push(
        "DELETE FROM listing_phase WHERE listing IN (SELECT id FROM listing WHERE run = ?1)".to_owned(),
    );
    statements.push(format!(
        "DELETE FROM event_zone WHERE (tick, place) IN (SELECT tick, place FROM event WHERE netns IN {netns})"
    ));
    for table in ["census", "event", "slot"] {
        statements.push(format!("DELETE FROM {table} WHERE netns IN {netns}"));
    }
    for table in [
        "listing",
        "setting",
        "netns_setting",
        "rules",
        "machine",
        "notice",
        "incident",
        "run_end",
        "tick",
        "netns",
    ] {
        statements.push(format!("DELETE FROM {table} WHERE run = ?1"));
    }
    statements.push("DELETE FROM run WHERE id = ?1".to_owned());
    for statement in statements {
        transaction.execute(&statement, [run])?;
    }
    transaction.commit()?;
    Ok(true)
}

/// The oldest run that is over, of which only sums older than `--keep` are left.
fn old_run(connection: &Connection, current: i64, keep: &Keep<'_>) -> Result<Option<i64>, ReadError> {
    // Ticks are numbered through all runs.
    let mut runs = connection.prepare_cached(
        "SELECT id, started_mono_us, first_tick, \
         (SELECT n.first_tick FROM run n WHERE n.id > r.id ORDER BY n.id LIMIT 1) - 1 AS last_tick \
         FROM run r WHERE id < ?1 ORDER BY id",
    )?;
    let mut last = connection.prepare_cached(
        "SELECT mono_us FROM tick WHERE id BETWEEN ?1 AND ?2 AND +run = ?3 ORDER BY id DESC LIMIT 1",
    )?;
    let mut detail = connection.prepare_cached(
        "SELECT 1 FROM tick WHERE id BETWEEN ?1 AND ?2 AND +run = ?3 AND level < 4 ORDER BY id LIMIT 1",
    )?;
    let mut runs = runs.query([current])?;
    while let Some(row) = runs.next()? {
        let (run, started_us): (i64, i64) = (row.get("id")?, row.get("started_mono_us")?);
        let ticks = [row.get("first_tick")?, row.get("last_tick")?, run];
        // Where each of its sums ends is kept by the last one.
        let last_us: Option<i64> = last.query_row(ticks, |row| row.get(0)).optional()?;
        if !keep.is_older(run, last_us.unwrap_or(started_us).max(started_us)) {
            // Those that come after it are younger.
            return Ok(None);
        }
        if !detail.exists(ticks)? {
            return Ok(Some(run));
        }
    }
    Ok(None)
}

/// Bytes in use.
fn size(connection: &Connection) -> Result<u64, ReadError> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = number("page_count")? - number("freelist_count")?;
    Ok((pages * number("page_size")?).cast_unsigned())
}

/// Returns free pages to the file system. The pragma frees one per row fetched.
fn give_back(connection: &Connection) -> Result<(), ReadError> {
    let mut statement = connection.prepare_cached("PRAGMA incremental_vacuum")?;
    let mut rows = statement.query([])?;
    for _ in 0..PAGES {
        if rows.next()?.is_none() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::schema;

    #[test]
    fn the_zone_of_a_loss_goes_with_it() {
        let connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        connection.execute_batch(schema::TABLES).unwrap();
        connection.execute_batch(schema::LATER).unwrap();
        let columns = "(tick, place, detail, wall_us, at_ns, netns, cause, flags, proto, family, sport, dport, icmp, hook, \
                       ifindex, length, count, max, sender_pid, sender_cgroup, reply_sport, reply_dport, status, \
                       tcp_state, jiffies_left, crc)";
        let zeroes = vec!["0"; 24].join(", ");
        for place in [0, 1] {
            connection
                .execute(&format!("INSERT INTO event {columns} VALUES (7, {place}, {zeroes})"), [])
                .unwrap();
        }
        for (tick, place) in [(7, 0), (7, 1), (9, 0)] {
            connection.execute("INSERT INTO event_zone VALUES (?1, ?2, 2, 0, 0)", [tick, place]).unwrap();
        }
        connection.execute("DELETE FROM event WHERE place = 1", []).unwrap();
        drop_zones(&connection, [1, 8]).unwrap();
        let mut statement = connection.prepare("SELECT tick, place FROM event_zone ORDER BY tick").unwrap();
        let left = statement.query_map([], |row| Ok((row.get("tick")?, row.get("place")?))).unwrap();
        let left: Vec<(i64, i64)> = left.map(Result::unwrap).collect();
        // That of a tick that wasn't looked at stays until it is.
        assert_eq!(left, [(7, 0), (9, 0)]);
    }
}
