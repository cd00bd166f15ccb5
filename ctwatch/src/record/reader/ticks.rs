//! Ticks in order, a few hundred at a time: memory stays small, and no row is fetched on its own.
//! Within a run tick numbers have no gaps, so a missing tick is noticed.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;

use anyhow::Result;
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;
use rusqlite::{Connection, Row, params};

use super::{RecordedRun, Recording, RowSpan, each, slot};
use crate::model::NetnsId;
use crate::record::census;
use crate::record::columns::{
    NETNS, NetnsColumns, SlotColumns, TICK, TICK_CAUSE, TICK_FLOW, TICK_LOSS, TICK_NETNS, TickCauseColumns,
    TickColumns, TickFlowColumns, TickLossColumns, TickNetnsColumns,
};
use crate::record::limits::{self, Totals};
use crate::record::open::{ReadError, corrupt_row, too_much};
use crate::record::tick::{NetnsTick, Presence, Tick};

/// Ticks read at once.
const BATCH: usize = 512;

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
            done: false,
            totals: Totals::default(),
        })
    }

    fn fill(&mut self) -> Result<()> {
        let Self { recording, numbers, from, to, .. } = &*self;
        let batch = numbers.ticks(&recording.connection, *from, *to, BATCH);
        let batch = batch.map_err(|error| error.into_fault(recording.path()))?;
        self.done = batch.len() < BATCH;
        limits::count_ticks(batch.len());
        for (stored, crc) in batch {
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
            return too_much("namespaces in a run");
        }
        let of_run: HashMap<i64, NetnsId> = netns.iter().copied().collect();
        let sql = format!("{} WHERE id BETWEEN ?1 AND ?2", SlotColumns::SELECT);
        let mut slots = Vec::new();
        each(connection, &sql, [first, last], |row| {
            slots.extend(slot(row, &of_run)?);
            if slots.len() > limits::SLOTS { too_much("slots in a run") } else { Ok(()) }
        })?;
        Ok(Self { run, slots: Lookup::new(slots), netns: Lookup::new(netns) })
    }

    /// The next ticks with their stored checksums.
    pub fn ticks(
        &self,
        connection: &Connection,
        from: i64,
        to: i64,
        limit: usize,
    ) -> Result<Vec<(Stored, u32)>, ReadError> {
        let sql =
            format!("{} WHERE id BETWEEN ?1 AND ?2 AND +run = ?3 ORDER BY id LIMIT ?4", TickColumns::SELECT);
        let mut batch = each(connection, &sql, params![from, to, self.run, limit as i64], tick)?;
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(batch) };
        let (span, first) = ([first.0.id, last.0.id], first.0.first);
        let within = |select: &str| format!("{select} WHERE tick BETWEEN ?1 AND ?2 ORDER BY tick");
        let mut place = Places::new(&mut batch);
        each(connection, &within(TickNetnsColumns::SELECT), span, |row| {
            let tick = row.get(TICK_NETNS.tick)?;
            let netns = self.netns.get(row.get(TICK_NETNS.netns)?).ok_or_else(|| dangling(tick))?;
            place.tick(tick)?.netns.push(netns_tick(row, netns)?);
            Ok(())
        })?;
        let mut place = Places::new(&mut batch);
        each(connection, &within(TickLossColumns::SELECT), span, |row| {
            let tick = row.get(TICK_LOSS.tick)?;
            let slot = self.slots.get(row.get(TICK_LOSS.slot)?).ok_or_else(|| dangling(tick))?;
            place.tick(tick)?.losses.push((slot, row.get(TICK_LOSS.losses)?));
            Ok(())
        })?;
        let mut place = Places::new(&mut batch);
        each(connection, &within(TickFlowColumns::SELECT), span, |row| {
            let tick = row.get(TICK_FLOW.tick)?;
            let slot = self.slots.get(row.get(TICK_FLOW.slot)?).ok_or_else(|| dangling(tick))?;
            let counts =
                [row.get(TICK_FLOW.inserts)?, row.get(TICK_FLOW.deletes)?, row.get(TICK_FLOW.failed)?];
            place.tick(tick)?.flows.push((slot, counts));
            Ok(())
        })?;
        let mut place = Places::new(&mut batch);
        each(connection, &within(TickCauseColumns::SELECT), span, |row| {
            let (id, cause) = (row.get(TICK_CAUSE.tick)?, usize::from(row.get::<_, u8>(TICK_CAUSE.cause)?));
            let tick = place.tick(id)?;
            if cause >= CAUSES {
                return Err(dangling(id));
            }
            tick.overflow[cause] = row.get(TICK_CAUSE.overflow)?;
            tick.lost_events[cause] = row.get(TICK_CAUSE.lost_events)?;
            Ok(())
        })?;
        let mut place = Places::new(&mut batch);
        for (tick, census) in census::read(connection, first, span[1])? {
            if let Some(tick) = place.at_or_after(tick) {
                tick.censuses.push(census);
            }
        }
        for (Stored { tick, .. }, _) in &mut batch {
            tick.netns.sort_by_key(|netns| netns.id);
            tick.losses.sort_by_key(|(key, _)| *key);
            tick.flows.sort_by_key(|(key, _)| *key);
        }
        Ok(batch)
    }
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

/// Lookup by number in the file. The numbers of one run are close together, and every row needs a lookup.
#[derive(Debug)]
struct Lookup<T> {
    first: i64,
    items: Vec<Option<T>>,
}

impl<T: Copy> Lookup<T> {
    fn new(pairs: Vec<(i64, T)>) -> Self {
        // A number far from the others is damaged: rows that refer to it are dangling.
        let most = 65_536 + 2 * pairs.len();
        let first = pairs.iter().map(|(number, _)| *number).min().unwrap_or(0);
        let mut items = Vec::new();
        for (number, what) in pairs {
            let Some(place) = number.checked_sub(first).and_then(|place| usize::try_from(place).ok()) else {
                continue;
            };
            if place < most {
                items.resize(items.len().max(place + 1), None);
                items[place] = Some(what);
            }
        }
        Self { first, items }
    }

    /// What has this number.
    fn get(&self, number: i64) -> Option<T> {
        self.items.get(usize::try_from(number.checked_sub(self.first)?).ok()?).copied().flatten()
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
