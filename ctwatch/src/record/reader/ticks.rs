//! Ticks in their order, some hundreds at a time: memory stays small, and no row is looked up alone.
//! Within a run their numbers have no gap, so that one that got lost shows.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use anyhow::Result;
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::{RecordedRun, Recording, SLOTS, each, slot_key};
use crate::model::NetnsId;
use crate::record::census;
use crate::record::open::ReadError;
use crate::record::tick::{NetnsTick, Presence, Tick};

/// Ticks read at once.
const BATCH: usize = 512;

/// A tick and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Its number; of a thinned one, that of the last it stands for.
    pub id: i64,
    /// The number of the first it stands for.
    pub first: i64,
    /// 0: as recorded; 1 to 3: thinned; 4: the sum of what was dropped.
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
    /// The number the next tick must begin with; `None`: any.
    expected: Option<i64>,
    /// The number the last one must have; `None`: any.
    last: Option<i64>,
    from: i64,
    to: i64,
    done: bool,
}

impl<'a> Ticks<'a> {
    pub(super) fn new(
        recording: &'a Recording,
        run: &RecordedRun,
        numbers: RangeInclusive<i64>,
    ) -> Result<Self> {
        let (from, to) = numbers.into_inner();
        let numbers = Numbers::of(&recording.connection, run.id);
        let numbers = numbers.map_err(|trouble| trouble.of(recording.path()))?;
        let last = run.end.map(|end| end.last_tick).filter(|last| *last <= to);
        Ok(Self {
            recording,
            numbers,
            ready: VecDeque::new(),
            expected: (from <= run.first_tick).then_some(run.first_tick),
            last,
            from,
            to,
            done: false,
        })
    }

    fn fill(&mut self) -> Result<()> {
        let Self { recording, numbers, from, to, .. } = &*self;
        let batch = numbers.ticks(&recording.connection, *from, *to, BATCH);
        let batch = batch.map_err(|trouble| trouble.of(recording.path()))?;
        self.done = batch.len() < BATCH;
        for (stored, crc) in batch {
            if self.expected.is_some_and(|expected| expected != stored.first) {
                return Err(self.damaged(format!("ticks before {} are missing", stored.id)));
            }
            if stored.tick.checksum() != crc {
                return Err(self.damaged(format!("tick {}: its checksum is another one", stored.id)));
            }
            self.expected = Some(stored.id + 1);
            self.from = stored.id + 1;
            self.ready.push_back(stored);
        }
        let ended = self.expected.map(|next| next - 1);
        if self.done && self.last.is_some_and(|last| ended.is_some_and(|ended| ended != last)) {
            return Err(self.damaged("its last ticks are missing".to_owned()));
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

/// What the numbers of one run stand for.
#[derive(Debug)]
pub(in crate::record) struct Numbers {
    run: i64,
    slots: Named<SlotKey>,
    netns: Named<NetnsId>,
}

impl Numbers {
    /// Reads them.
    pub fn of(connection: &Connection, run: i64) -> Result<Self, ReadError> {
        let slots = each(connection, SLOTS, [run], |row| Ok((row.get(0)?, slot_key(row)?)))?;
        let sql = "SELECT id, number FROM netns WHERE run = ?1";
        let netns = each(connection, sql, [run], |row| Ok((row.get(0)?, NetnsId::from_packed(row.get(1)?))))?;
        Ok(Self { run, slots: Named::of(slots), netns: Named::of(netns) })
    }

    /// The next ticks with their checksums.
    pub fn ticks(
        &self,
        connection: &Connection,
        from: i64,
        to: i64,
        limit: usize,
    ) -> Result<Vec<(Stored, u32)>, ReadError> {
        let sql = "SELECT id, first, level, wall_us, mono_us, interval_us, restarted, ambiguous, flows_overflow, \
             unexplained_drop, unexplained_early_drop, unexplained_insert_failed, unexplained_chaintoolong, \
             events_seen, crc FROM tick WHERE id BETWEEN ?1 AND ?2 AND run = ?3 ORDER BY id LIMIT ?4";
        let mut batch = each(connection, sql, params![from, to, self.run, limit as i64], tick)?;
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else { return Ok(batch) };
        let (span, first) = ([first.0.id, last.0.id], first.0.first);
        let mut place = Places::new(&mut batch);
        let sql = "SELECT * FROM tick_netns WHERE tick BETWEEN ?1 AND ?2 ORDER BY tick";
        each(connection, sql, span, |row| {
            let netns = self.netns.named_by(row)?;
            place.of(row)?.netns.push(netns_tick(row, netns)?);
            Ok(())
        })?;
        let mut place = Places::new(&mut batch);
        let sql = "SELECT * FROM tick_loss WHERE tick BETWEEN ?1 AND ?2 ORDER BY tick";
        each(connection, sql, span, |row| {
            place.of(row)?.losses.push((self.slots.named_by(row)?, row.get(2)?));
            Ok(())
        })?;
        let mut place = Places::new(&mut batch);
        let sql = "SELECT * FROM tick_flow WHERE tick BETWEEN ?1 AND ?2 ORDER BY tick";
        each(connection, sql, span, |row| {
            let counts = [row.get(2)?, row.get(3)?, row.get(4)?];
            place.of(row)?.flows.push((self.slots.named_by(row)?, counts));
            Ok(())
        })?;
        let mut place = Places::new(&mut batch);
        let sql = "SELECT * FROM tick_cause WHERE tick BETWEEN ?1 AND ?2 ORDER BY tick";
        each(connection, sql, span, |row| {
            let (cause, tick) = (usize::from(row.get::<_, u8>(1)?), place.of(row)?);
            if cause >= CAUSES {
                return astray(row);
            }
            (tick.overflow[cause], tick.lost_events[cause]) = (row.get(2)?, row.get(3)?);
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

/// Finds the ticks of rows that come in their order.
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

    /// The tick whose number a row begins with.
    fn of(&mut self, row: &Row<'_>) -> Result<&mut Tick, ReadError> {
        let id = row.get(0)?;
        if self.at_or_after(id).is_none() || self.batch[self.at].0.id != id {
            return astray(row);
        }
        Ok(&mut self.batch[self.at].0.tick)
    }
}

/// What numbers stand for. Those of one run lie close together, and are looked up for every row.
#[derive(Debug)]
struct Named<T> {
    first: i64,
    of: Vec<Option<T>>,
}

impl<T: Copy> Named<T> {
    fn of(pairs: Vec<(i64, T)>) -> Self {
        // A number far away from the others is a damaged one: what names it is astray.
        let most = 65_536 + 16 * pairs.len();
        let first = pairs.iter().map(|(number, _)| *number).min().unwrap_or(0);
        let mut of = Vec::new();
        for (number, what) in pairs {
            let Ok(place) = usize::try_from(number - first) else { continue };
            if place < most {
                of.resize(of.len().max(place + 1), None);
                of[place] = Some(what);
            }
        }
        Self { first, of }
    }

    /// What the number in a row's second column stands for.
    fn named_by(&self, row: &Row<'_>) -> Result<T, ReadError> {
        let place = usize::try_from(row.get::<_, i64>(1)? - self.first).ok();
        place.and_then(|place| self.of.get(place).copied().flatten()).map_or_else(|| astray(row), Ok)
    }
}

fn astray<T>(row: &Row<'_>) -> Result<T, ReadError> {
    Err(ReadError::Wrong(format!("a row of tick {} names what isn't there", row.get::<_, i64>(0)?)))
}

fn tick(row: &Row<'_>) -> Result<(Stored, u32), ReadError> {
    let id = row.get(0)?;
    let Ok(time) = Timestamp::from_microsecond(row.get(3)?) else { return astray(row) };
    let tick = Tick {
        restarted: row.get(6)?,
        ambiguous: row.get(7)?,
        flows_overflow: row.get(8)?,
        unexplained: [row.get(9)?, row.get(10)?, row.get(11)?, row.get(12)?],
        events_seen: row.get::<_, i64>(13)?.cast_unsigned(),
        ..Tick::quiet(time, row.get(4)?, row.get(5)?)
    };
    Ok((Stored { id, first: row.get(1)?, level: row.get(2)?, tick }, row.get(14)?))
}

fn netns_tick(row: &Row<'_>, id: NetnsId) -> Result<NetnsTick, ReadError> {
    let Some(presence) = Presence::from_number(row.get(2)?) else { return astray(row) };
    let count = row.get(4)?;
    Ok(NetnsTick {
        id,
        presence,
        complete: row.get(3)?,
        count,
        peak: row.get::<_, Option<u32>>(5)?.or(count),
        max: row.get(6)?,
        kernel: [row.get(7)?, row.get(8)?, row.get(9)?, row.get(10)?],
        width: [row.get(11)?, row.get(12)?, row.get(13)?, row.get(14)?],
    })
}
