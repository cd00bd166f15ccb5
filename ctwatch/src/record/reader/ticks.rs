//! Ticks in order, a few hundred at a time: memory stays small, and no row is fetched on its own.
//! Within a run tick numbers have no gaps, so a missing tick is noticed.

use std::collections::{HashMap, VecDeque};
use std::ops::{ControlFlow, RangeInclusive};

use anyhow::Result;
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;
use rusqlite::{Connection, Row, params};

use super::{RecordedRun, Recording, slot};
use crate::model::NetnsId;
use crate::record::census;
use crate::record::columns::{
    NETNS, NetnsColumns, SlotColumns, TICK, TICK_CAUSE, TICK_FLOW, TICK_LOSS, TICK_NETNS, TickCauseColumns,
    TickColumns, TickFlowColumns, TickLossColumns, TickNetnsColumns,
};
use crate::record::fault::{ReadError, corrupt_row, too_much};
use crate::record::limits::{self, Totals};
use crate::record::query::{RowSpan, each, for_each, table_of};
use crate::record::tick::{NetnsTick, Presence, Tick};

/// Ticks read at once.
const BATCH: usize = 512;
/// Rows of a table read at once, but for those of a single tick: a downsampled one may have all slots of its run.
const ROWS: usize = 64 << 10;

/// A tick and its position in the recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its number; after downsampling, that of the last tick it stands for.
    pub id: i64,
    /// The number of the first tick it stands for.
    pub first: i64,
    /// 0: as recorded; 1 to 3: downsampled; 4: the sum of dropped ticks.
    pub level: u8,
    /// How the counters moved.
    pub tick: Tick,
}

/// The ticks of one run.
#[derive(Debug)]
pub struct Ticks<'a> {
    recording: &'a Recording,
    numbers: Numbers,
    ready: VecDeque<Stored>,
    /// The first number of the next tick; `None` if unknown.
    expected: Option<i64>,
    /// The number of the last tick; `None` if unknown.
    last: Option<i64>,
    from: i64,
    to: i64,
    /// Ticks that are asked for next.
    limit: usize,
    done: bool,
    totals: Totals,
}

impl<'a> Ticks<'a> {
    pub(super) fn new(
        recording: &'a Recording,
        run: &RecordedRun,
        numbers: RangeInclusive<i64>,
    ) -> Result<Self> {
        let (from, to) = numbers.into_inner();
        let spans = [recording.span("slot", run.id)?, recording.span("netns", run.id)?];
        let numbers = Numbers::of(&recording.connection, run.id, spans);
        let numbers = numbers.map_err(|error| error.into_fault(recording.path()))?;
        let last = run.end.map(|end| end.last_tick).filter(|last| *last <= to);
        Ok(Self {
            recording,
            numbers,
            ready: VecDeque::new(),
            expected: (from <= run.first_tick).then_some(run.first_tick),
            last,
            from: from.max(run.first_tick),
            to: to.min(run.last_possible),
            limit: BATCH,
            done: false,
            totals: Totals::default(),
        })
    }

    fn fill(&mut self) -> Result<()> {
        let Self { recording, numbers, from, to, limit, .. } = &*self;
        let batch = numbers.ticks(&recording.connection, *from, *to, 1..=*limit);
        let batch = batch.map_err(|error| error.into_fault(recording.path()))?;
        self.done = batch.are_last;
        // Rows of ticks that come only next time are read again then: few, if as many ticks are asked for as there was room for.
        self.limit = (2 * batch.ticks.len()).clamp(1, BATCH);
        limits::count_ticks(batch.ticks.len());
        for (stored, crc) in batch.ticks {
            if !self.totals.add(stored.tick.moved(), stored.tick.interval_us) {
                return Err(self.damaged(format!("tick {}: numbers that no counter reaches", stored.id)));
            }
            if self.expected.is_some_and(|expected| expected != stored.first) {
                return Err(self.damaged(format!("ticks before {} are missing", stored.id)));
            }
            if stored.tick.checksum() != crc {
                return Err(self.damaged(format!("tick {}: checksum mismatch", stored.id)));
            }
            self.expected = Some(stored.id + 1);
            self.from = stored.id + 1;
            self.ready.push_back(stored);
        }
        let ended = self.expected.map(|next| next - 1);
        if self.done && self.last.is_some_and(|last| ended.is_some_and(|ended| ended != last)) {
            return Err(self.damaged("the last ticks are missing".to_owned()));
        }
        Ok(())
    }

    fn damaged(&self, what: String) -> anyhow::Error {
        self.recording.damaged(what).into()
    }
}

impl Iterator for Ticks<'_> {
    type Item = Result<Stored>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && !self.done
            && let Err(error) = self.fill()
        {
            self.done = true;
            self.ready.clear();
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}

/// Successive ticks with their stored checksums.
#[derive(Debug)]
pub(in crate::record) struct Batch {
    pub ticks: Vec<(Stored, u32)>,
    /// No tick of those that were asked for comes after them.
    pub are_last: bool,
}

/// The slots and namespaces of one run by their numbers in the file.
#[derive(Debug)]
pub(in crate::record) struct Numbers {
    run: i64,
    slots: Lookup<SlotKey>,
    netns: Lookup<NetnsId>,
}

impl Numbers {
    /// Reads them, of slots and namespaces where they are.
    pub fn of(connection: &Connection, run: i64, spans: [RowSpan; 2]) -> Result<Self, ReadError> {
        let [[first, last], of_netns] = spans;
        // No index on `run` is taken (`+`): each row is looked at once, whatever the file holds.
        let sql = format!(
            "{} WHERE +run = ?1 AND id BETWEEN ?2 AND ?3 LIMIT {}",
            NetnsColumns::SELECT,
            limits::NETNS + 1
        );
        let [first_netns, last_netns] = of_netns;
        let netns = each(connection, &sql, [run, first_netns, last_netns], |row| {
            Ok((row.get(NETNS.id)?, NetnsId::from_packed(row.get(NETNS.number)?)))
        })?;
        if netns.len() > limits::NETNS {
            return too_much("namespaces in a run", limits::NETNS);
        }
        let of_run: HashMap<i64, NetnsId> = netns.iter().copied().collect();
        let sql = format!("{} WHERE id BETWEEN ?1 AND ?2", SlotColumns::SELECT);
        let mut slots = Vec::new();
        each(connection, &sql, [first, last], |row| {
            slots.extend(slot(row, &of_run)?);
            if slots.len() > limits::SLOTS { too_much("slots in a run", limits::SLOTS) } else { Ok(()) }
        })?;
        Ok(Self { run, slots: Lookup::new(slots), netns: Lookup::new(netns) })
    }

    /// The next ticks: as many as there is room for at once, but so many at least and at most.
    pub fn ticks(
        &self,
        connection: &Connection,
        from: i64,
        to: i64,
        many: RangeInclusive<usize>,
    ) -> Result<Batch, ReadError> {
        let (least, limit) = many.into_inner();
        let sql =
            format!("{} WHERE id BETWEEN ?1 AND ?2 AND +run = ?3 ORDER BY id LIMIT ?4", TickColumns::SELECT);
        let mut batch = each(connection, &sql, params![from, to, self.run, limit as i64], tick)?;
        let mut are_last = batch.len() < limit;
        let Some(first) = batch.first().map(|(stored, _)| stored.first) else {
            return Ok(Batch { ticks: batch, are_last });
        };
        are_last &= !fill(connection, &mut batch, least, TickNetnsColumns::SELECT, |row, place| {
            let tick = row.get(TICK_NETNS.tick)?;
            let netns = self.netns.get(row.get(TICK_NETNS.netns)?).ok_or_else(|| dangling(tick))?;
            place.tick(tick)?.netns.push(netns_tick(row, netns)?);
            Ok(())
        })?;
        are_last &= !fill(connection, &mut batch, least, TickLossColumns::SELECT, |row, place| {
            let tick = row.get(TICK_LOSS.tick)?;
            let slot = self.slots.get(row.get(TICK_LOSS.slot)?).ok_or_else(|| dangling(tick))?;
            place.tick(tick)?.losses.push((slot, row.get(TICK_LOSS.losses)?));
            Ok(())
        })?;
        are_last &= !fill(connection, &mut batch, least, TickFlowColumns::SELECT, |row, place| {
            let tick = row.get(TICK_FLOW.tick)?;
            let slot = self.slots.get(row.get(TICK_FLOW.slot)?).ok_or_else(|| dangling(tick))?;
            let counts =
                [row.get(TICK_FLOW.inserts)?, row.get(TICK_FLOW.deletes)?, row.get(TICK_FLOW.failed)?];
            place.tick(tick)?.flows.push((slot, counts));
            Ok(())
        })?;
        are_last &= !fill(connection, &mut batch, least, TickCauseColumns::SELECT, |row, place| {
            let (id, cause) = (row.get(TICK_CAUSE.tick)?, usize::from(row.get::<_, u8>(TICK_CAUSE.cause)?));
            let tick = place.tick(id)?;
            if cause >= CAUSES {
                return Err(dangling(id));
            }
            tick.overflow[cause] = row.get(TICK_CAUSE.overflow)?;
            tick.lost_events[cause] = row.get(TICK_CAUSE.lost_events)?;
            Ok(())
        })?;
        let read_anyway = batch[least.clamp(1, batch.len()) - 1].0.id;
        let (censuses, missing_from) = census::read(connection, first, span(&batch)[1], read_anyway)?;
        let mut place = Places::new(&mut batch);
        for (tick, census) in censuses {
            if let Some(tick) = place.at_or_after(tick) {
                tick.censuses.push(census);
            }
        }
        if let Some(tick) = missing_from {
            place.at_or_after(tick);
            let whole = place.at;
            are_last &= whole >= batch.len();
            batch.truncate(whole);
        }
        for (Stored { tick, .. }, _) in &mut batch {
            tick.netns.sort_by_key(|netns| netns.id);
            tick.losses.sort_by_key(|(key, _)| *key);
            tick.flows.sort_by_key(|(key, _)| *key);
        }
        Ok(Batch { ticks: batch, are_last })
    }
}

/// From the first to the last of them.
fn span(batch: &[(Stored, u32)]) -> RowSpan {
    let id = |one: Option<&(Stored, u32)>| one.map_or(0, |(stored, _)| stored.id);
    [id(batch.first()), id(batch.last())]
}

/// Reads the rows that a table has of these ticks. Of ticks that there is no room for it leaves nothing in the batch; whether
/// there were any.
fn fill(
    connection: &Connection,
    batch: &mut Vec<(Stored, u32)>,
    least: usize,
    select: &str,
    mut read: impl FnMut(&Row<'_>, &mut Places<'_>) -> Result<(), ReadError>,
) -> Result<bool, ReadError> {
    let (span, before) = (span(batch), batch.len());
    let (mut place, mut rows, mut whole) = (Places::new(batch), 0, before);
    let sql = format!("{select} WHERE tick BETWEEN ?1 AND ?2 ORDER BY tick");
    for_each(connection, &sql, span, limits::TEXT, |row, _| {
        let was_at = place.at;
        read(row, &mut place)?;
        rows += 1;
        // The first row of a tick.
        if rows > ROWS && place.at > was_at && place.at >= least {
            whole = place.at;
            return Ok(ControlFlow::Break(()));
        }
        if rows > ROWS + least * limits::SLOTS {
            return too_much(&format!("rows of {} in one tick", table_of(select)), limits::SLOTS);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    batch.truncate(whole);
    Ok(whole < before)
}

/// Finds the ticks of rows that come in tick order.
struct Places<'a> {
    batch: &'a mut [(Stored, u32)],
    at: usize,
}

impl<'a> Places<'a> {
    fn new(batch: &'a mut [(Stored, u32)]) -> Self {
        Self { batch, at: 0 }
    }

    /// The first tick with this number or a later one.
    fn at_or_after(&mut self, id: i64) -> Option<&mut Tick> {
        while self.batch.get(self.at)?.0.id < id {
            self.at += 1;
        }
        self.batch.get_mut(self.at).map(|(stored, _)| &mut stored.tick)
    }

    /// The tick with this number.
    fn tick(&mut self, id: i64) -> Result<&mut Tick, ReadError> {
        if self.at_or_after(id).is_none() || self.batch[self.at].0.id != id {
            return Err(dangling(id));
        }
        Ok(&mut self.batch[self.at].0.tick)
    }
}

/// Lookup by number in the file. Each new name gets the highest number so far and one, and those of what came and went are
/// dropped: the numbers of a long run may be as far from each other as they like.
#[derive(Debug)]
struct Lookup<T> {
    by_number: Vec<(i64, T)>,
}

impl<T: Copy> Lookup<T> {
    fn new(mut pairs: Vec<(i64, T)>) -> Self {
        pairs.sort_by_key(|(number, _)| *number);
        Self { by_number: pairs }
    }

    /// What has this number.
    fn get(&self, number: i64) -> Option<T> {
        let place = self.by_number.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.by_number[place].1)
    }
}

/// The error for a row of this tick that refers to something missing.
fn dangling(tick: i64) -> ReadError {
    ReadError::Corrupt(format!("a row of tick {tick} refers to something that does not exist"))
}

fn tick(row: &Row<'_>) -> Result<(Stored, u32), ReadError> {
    let id = row.get(TICK.id)?;
    let (wall_us, mono_us, first) = (row.get(TICK.wall_us)?, row.get(TICK.mono_us)?, row.get(TICK.first)?);
    let Some(time) = limits::time(wall_us).filter(|_| limits::is_clock(mono_us)) else {
        return corrupt_row("tick", id);
    };
    let events_seen: i64 = row.get(TICK.events_seen)?;
    if !limits::is_tick(first) || !limits::is_tick(id) || first > id || events_seen < 0 {
        return corrupt_row("tick", id);
    }
    let tick = Tick {
        restarted: row.get(TICK.restarted)?,
        ambiguous: row.get(TICK.ambiguous)?,
        flows_overflow: row.get(TICK.flows_overflow)?,
        unexplained: [
            row.get(TICK.unexplained_drop)?,
            row.get(TICK.unexplained_early_drop)?,
            row.get(TICK.unexplained_insert_failed)?,
            row.get(TICK.unexplained_chaintoolong)?,
        ],
        events_seen: events_seen.cast_unsigned(),
        ..Tick::quiet(time, mono_us, row.get(TICK.interval_us)?)
    };
    Ok((Stored { id, first, level: row.get(TICK.level)?, tick }, row.get(TICK.crc)?))
}

fn netns_tick(row: &Row<'_>, id: NetnsId) -> Result<NetnsTick, ReadError> {
    let Some(presence) = Presence::from_number(row.get(TICK_NETNS.presence)?) else {
        return Err(dangling(row.get(TICK_NETNS.tick)?));
    };
    let count = row.get(TICK_NETNS.count)?;
    Ok(NetnsTick {
        id,
        presence,
        complete: row.get(TICK_NETNS.complete)?,
        count,
        peak: row.get::<_, Option<u32>>(TICK_NETNS.peak)?.or(count),
        max: row.get(TICK_NETNS.max)?,
        kernel: [
            row.get(TICK_NETNS.drops)?,
            row.get(TICK_NETNS.early_drop)?,
            row.get(TICK_NETNS.insert_failed)?,
            row.get(TICK_NETNS.chaintoolong)?,
        ],
        width: [
            row.get(TICK_NETNS.drops_width)?,
            row.get(TICK_NETNS.early_drop_width)?,
            row.get(TICK_NETNS.insert_failed_width)?,
            row.get(TICK_NETNS.chaintoolong_width)?,
        ],
    })
}
