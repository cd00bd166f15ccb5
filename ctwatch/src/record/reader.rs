//! Reading a recording: ticks and events in order, and everything else it contains.
//! Every row is checked against its checksum on the way; [`Recording::verify`] also finds rows that went missing.

mod bounds;
mod ticks;

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use rusqlite::{Connection, Row};

use super::columns::{
    INCIDENT, IncidentColumns, MACHINE, MachineColumns, NETNS, NOTICE, NetnsColumns, NoticeColumns, RUN_END,
    RunEndColumns, SETTING, SLOT, SettingColumns,
};
use super::fault::{Fault, ReadError, corrupt_row, fault, too_much};
use super::open;
use super::query::{RowSpan, each, each_of, for_each};
use super::rows::{
    EndReason, Incident, MachineSnapshot, Names, NetnsSetting, Notice, Run, RunEnd, Setting, SnapshotReason,
    StoredListing, netns_checksum,
};
use super::rules::{self, StoredRules};
use super::timeline::Timeline;
use super::{event, limits, listing, run};
use crate::model::{Loss, NetnsId, WallMono};
pub(super) use ticks::Numbers;
pub use ticks::{Stored, Ticks};

/// A recording open for reading, as it was when it was opened. It may be written to meanwhile.
#[derive(Debug)]
pub struct Recording {
    connection: Connection,
    path: PathBuf,
    /// By table: the numbers of each run's rows.
    spans: RefCell<HashMap<&'static str, HashMap<i64, RowSpan>>>,
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
    /// No tick of it has a higher number.
    pub(super) last_possible: i64,
    /// How it ended; `None` if it is still running, or the recorder or the host stopped.
    pub end: Option<RunEnd>,
}

/// A slot's number in the file and its key, if it is of one of these namespaces. Slots are not joined with them by SQLite,
/// which looks at some pages for each.
pub(super) fn slot(row: &Row<'_>, netns: &HashMap<i64, NetnsId>) -> rusqlite::Result<Option<(i64, SlotKey)>> {
    let Some(netns) = netns.get(&row.get(SLOT.netns)?) else { return Ok(None) };
    let loopback = if row.get(SLOT.loopback)? { KIND_LOOPBACK } else { 0 };
    let unattributed = if row.get(SLOT.unattributed)? { KIND_UNATTRIBUTED } else { 0 };
    let cause: Option<u8> = row.get(SLOT.cause)?;
    let key = SlotKey {
        netns: netns.packed(),
        port: row.get(SLOT.port)?,
        proto: row.get(SLOT.proto)?,
        kind: cause.unwrap_or(KIND_FLOWS) | loopback | unattributed,
    };
    Ok(Some((row.get(SLOT.id)?, key)))
}

/// Which of the large things there are, each of which is read by itself: a table's listing, a machine's facts, a rule set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number in the file.
    pub id: i64,
    /// Whose it is; of a machine, which has many, nobody's.
    pub netns: Option<NetnsId>,
    /// When it was taken.
    pub at: WallMono,
    /// Of a listing: it was interrupted. Of a rule set: it was dropped to keep the file small.
    pub is_incomplete: bool,
}

impl Recording {
    /// Opens a recording.
    ///
    /// # Errors
    /// A [`Fault`]: the file doesn't exist, is not a recording, is newer, or is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = open::connect(path)?;
        // A single snapshot, however long reading takes and whatever a recorder does meanwhile.
        let began = connection.execute_batch("BEGIN; SELECT 1 FROM meta LIMIT 1");
        began.map_err(|error| fault(path, &error))?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(Self { connection, path: path.to_owned(), spans: RefCell::default() })
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
            Ok(RecordedRun { id, run, first_tick, last_possible: i64::MAX, end: None })
        })?;
        if runs.len() > limits::RUNS {
            let much: Result<(), _> = too_much("runs", limits::RUNS);
            much.map_err(|error| error.into_fault(&self.path))?;
        }
        // Ticks are numbered through all runs.
        for next in (1..runs.len()).rev() {
            let Some(last) = runs[next].first_tick.checked_sub(1) else { continue };
            if last < runs[next - 1].first_tick - 1 {
                return Err(self.damaged("the ticks of its runs are not in order").into());
            }
            runs[next - 1].last_possible = last;
        }
        for run in &mut runs {
            run.end = self.run_end(run.id)?;
        }
        Ok(runs)
    }

    /// Where its runs are on one line of time.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn timeline(&self) -> Result<Timeline> {
        Ok(Timeline::read(&self.connection, i64::MAX).map_err(|error| error.into_fault(&self.path))?)
    }

    fn run_end(&self, run: i64) -> Result<Option<RunEnd>> {
        let sql = format!("{} WHERE run = ?1", RunEndColumns::SELECT);
        let mut ends = self.all(&sql, [run], |row| {
            let at = WallMono::from_columns(row.get(RUN_END.ended_us)?, row.get(RUN_END.ended_mono_us)?);
            let reason = EndReason::from_name(&row.get::<_, String>(RUN_END.reason)?);
            let last_tick = row.get(RUN_END.last_tick)?;
            let Some((at, reason)) = at.zip(reason) else { return corrupt_row("the end of run", run) };
            let end = RunEnd { at, reason, last_tick };
            let holds = end.checksum(run) == row.get::<_, u32>(RUN_END.crc)? && limits::is_tick(last_tick);
            if holds { Ok(end) } else { corrupt_row("the end of run", run) }
        })?;
        Ok(ends.pop())
    }

    /// The names of a run's namespaces.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn names(&self, run: i64) -> Result<HashMap<NetnsId, Names>> {
        let names = self.of_run(NetnsColumns::SELECT, "netns", run, |row| {
            let id = NetnsId::from_packed(row.get(NETNS.number)?);
            let names = Names { name: row.get(NETNS.name)?, container: row.get(NETNS.container)? };
            let (inode, life): (u32, u32) = (row.get(NETNS.inode)?, row.get(NETNS.life)?);
            let holds = netns_checksum(run, id, &names) == row.get::<_, u32>(NETNS.crc)?
                && [&names.name, &names.container].into_iter().all(|name| limits::is_name(name.as_ref()))
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
        let losses = self.all(self.select_losses()?, [*numbers.start(), *numbers.end()], event::read)?;
        Ok(losses.into_iter().filter_map(|(tick, _, loss)| Some((tick, loss?))).collect())
    }

    fn select_losses(&self) -> Result<&'static str> {
        Ok(event::selecting(&self.connection).map_err(|error| fault(&self.path, &error))?)
    }

    /// As [`Recording::losses`], one by one.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn each_loss(
        &self,
        numbers: std::ops::RangeInclusive<i64>,
        mut take: impl FnMut(&Loss),
    ) -> Result<()> {
        let (sql, span) = (self.select_losses()?, [*numbers.start(), *numbers.end()]);
        let read = for_each(&self.connection, sql, span, limits::TEXT, |row, _| {
            if let (_, _, Some(loss)) = event::read(row)? {
                take(&loss);
            }
            Ok(ControlFlow::Continue(()))
        });
        Ok(read.map_err(|error| error.into_fault(&self.path))?)
    }

    /// Which tables were listed in a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn listing_heads(&self, run: i64) -> Result<Vec<Head>> {
        self.heads("listing", "interrupted", run)
    }

    /// Which rule sets a run has, of each netns in the order they were in force.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn rules_heads(&self, run: i64) -> Result<Vec<Head>> {
        self.heads("rules", "rules IS NULL", run)
    }

    /// Which snapshots of the machine a run has.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn machine_heads(&self, run: i64) -> Result<Vec<Head>> {
        self.heads("machine", "0", run)
    }

    fn heads(&self, table: &'static str, is_incomplete: &str, run: i64) -> Result<Vec<Head>> {
        let [first, last] = self.span(table, run)?;
        if first > last {
            return Ok(Vec::new());
        }
        let netns =
            if table == "machine" { "NULL" } else { "(SELECT number FROM netns n WHERE n.id = one.netns)" };
        let sql = format!(
            "SELECT id, {netns} AS netns_number, wall_us, mono_us, {is_incomplete} AS is_incomplete FROM {table} one \
             WHERE run = ?1 AND id BETWEEN ?2 AND ?3 ORDER BY id"
        );
        self.all(&sql, [run, first, last], |row| {
            let id = row.get("id")?;
            let Some(at) = WallMono::from_columns(row.get("wall_us")?, row.get("mono_us")?) else {
                return corrupt_row(table, id);
            };
            let netns = row.get::<_, Option<u32>>("netns_number")?.map(NetnsId::from_packed);
            Ok(Head { id, netns, at, is_incomplete: row.get("is_incomplete")? })
        })
    }

    /// A table's listing.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn listing(&self, run: i64, head: &Head) -> Result<StoredListing> {
        let found = listing::read(&self.connection, run, [head.id; 2]);
        self.one(found, "listing", head)
    }

    /// A rule set.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn rule_set(&self, run: i64, head: &Head) -> Result<StoredRules> {
        let found = rules::read(&self.connection, run, [head.id; 2]);
        self.one(found, "rules", head)
    }

    /// A snapshot of the machine.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn machine(&self, run: i64, head: &Head) -> Result<MachineSnapshot> {
        let found = machine(&self.connection, run, [head.id; 2]);
        self.one(found, "machine", head)
    }

    fn one<T>(&self, found: Result<Vec<T>, ReadError>, table: &str, head: &Head) -> Result<T> {
        let found = found.map_err(|error| error.into_fault(&self.path))?.pop();
        found.ok_or_else(|| self.damaged(format!("{table} {} can't be read", head.id)).into())
    }

    /// The tables listed entry by entry in a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn listings(&self, run: i64) -> Result<Vec<StoredListing>> {
        let found = listing::read(&self.connection, run, self.span("listing", run)?);
        Ok(found.map_err(|error| error.into_fault(&self.path))?)
    }

    /// The rule sets of a run, of each netns in the order they were in force. None where the recorder was one that didn't
    /// keep them.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn rules(&self, run: i64) -> Result<Vec<StoredRules>> {
        let found = rules::read(&self.connection, run, self.span("rules", run)?);
        Ok(found.map_err(|error| error.into_fault(&self.path))?)
    }

    /// The settings of other namespaces than the recorder's when first seen, and every change to them.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn netns_settings(&self, run: i64) -> Result<Vec<NetnsSetting>> {
        let found = rules::read_settings(&self.connection, run, self.span("netns_setting", run)?);
        Ok(found.map_err(|error| error.into_fault(&self.path))?)
    }

    /// The notices of a run.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn notices(&self, run: i64) -> Result<Vec<Notice>> {
        self.of_run(NoticeColumns::SELECT, "notice", run, |row| {
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
        self.of_run(SettingColumns::SELECT, "setting", run, |row| {
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
        Ok(machine(&self.connection, run, self.span("machine", run)?)
            .map_err(|error| error.into_fault(&self.path))?)
    }

    /// The incidents of a run, with their numbers.
    ///
    /// # Errors
    /// See [`Recording::runs`].
    pub fn incidents(&self, run: i64) -> Result<Vec<(i64, Incident)>> {
        self.of_run(IncidentColumns::SELECT, "incident", run, |row| {
            let id: i64 = row.get(INCIDENT.id)?;
            let at = WallMono::from_columns(row.get(INCIDENT.wall_us)?, row.get(INCIDENT.mono_us)?);
            let Some(at) = at else { return corrupt_row("incident", id) };
            let ceased: Option<i64> = row.get(INCIDENT.ceased_us)?;
            let ticks = [INCIDENT.tick, INCIDENT.detail_from, INCIDENT.detail_to];
            for tick in ticks {
                if !limits::is_tick(row.get(tick)?) {
                    return corrupt_row("incident", id);
                }
            }
            let incident = Incident {
                at,
                condition: row.get(INCIDENT.condition)?,
                tick: row.get(INCIDENT.tick)?,
                measured: row.get(INCIDENT.measured)?,
                detail_from: row.get(INCIDENT.detail_from)?,
                detail_to: row.get(INCIDENT.detail_to)?,
                ceased: ceased.and_then(limits::time),
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
            for head in self.listing_heads(run.id)? {
                self.listing(run.id, &head)?;
            }
            self.notices(run.id)?;
            self.settings(run.id)?;
            for head in self.rules_heads(run.id)? {
                self.rule_set(run.id, &head)?;
            }
            self.netns_settings(run.id)?;
            for head in self.machine_heads(run.id)? {
                self.machine(run.id, &head)?;
            }
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
        table: &'static str,
        run: i64,
        read: impl FnMut(&Row<'_>) -> Result<T, ReadError>,
    ) -> Result<Vec<T>> {
        let sql = format!("{select} WHERE +run = ?1 AND id BETWEEN ?2 AND ?3 ORDER BY id");
        let [first, last] = self.span(table, run)?;
        self.all(&sql, [run, first, last], read)
    }

    /// Where the rows of a run are in one of the tables whose rows have a number and a run; slots have a netns of a run.
    pub(super) fn span(&self, table: &'static str, run: i64) -> Result<RowSpan> {
        const NONE: RowSpan = [0, -1];
        let mut spans = self.spans.borrow_mut();
        let known = match spans.entry(table) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => {
                let found = self.read_spans(table).map_err(|error| error.into_fault(&self.path))?;
                free.insert(found)
            }
        };
        Ok(known.get(&run).copied().unwrap_or(NONE))
    }

    fn read_spans(&self, table: &str) -> Result<HashMap<i64, RowSpan>, ReadError> {
        let mut spans: HashMap<i64, RowSpan> = HashMap::new();
        // Whose each netns is: slots have no run of their own.
        let mut runs = HashMap::new();
        let sql = match table {
            "slot" => {
                let of_netns = each(&self.connection, "SELECT id, run FROM netns", [], |row| {
                    Ok((row.get::<_, i64>("id")?, row.get::<_, i64>("run")?))
                })?;
                runs.extend(of_netns);
                "SELECT id, netns AS of FROM slot".to_owned()
            }
            // A file from before they were thought of has none.
            "rules" | "netns_setting" if !rules::has_table(&self.connection, table)? => return Ok(spans),
            _ => format!("SELECT id, run AS of FROM {table}"),
        };
        let mut statement = self.connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, mut run): (i64, i64) = (row.get("id")?, row.get("of")?);
            if table == "slot" {
                let Some(of_netns) = runs.get(&run) else { continue };
                run = *of_netns;
            }
            let [first, last] = spans.entry(run).or_insert([id, id]);
            (*first, *last) = ((*first).min(id), (*last).max(id));
            if spans.len() > limits::RUNS {
                return too_much("runs", limits::RUNS);
            }
        }
        Ok(spans)
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

/// Reads snapshots of the machine.
fn machine(
    connection: &Connection,
    run: i64,
    [first, last]: RowSpan,
) -> Result<Vec<MachineSnapshot>, ReadError> {
    let sql = format!("{} WHERE run = ?1 AND id BETWEEN ?2 AND ?3 ORDER BY id", MachineColumns::SELECT);
    each_of(connection, &sql, [run, first, last], limits::FACTS, |row| {
        let id = row.get(MACHINE.id)?;
        let at = WallMono::from_columns(row.get(MACHINE.wall_us)?, row.get(MACHINE.mono_us)?);
        let reason = SnapshotReason::from_name(&row.get::<_, String>(MACHINE.reason)?);
        let Some((at, reason)) = at.zip(reason) else { return corrupt_row("machine", id) };
        let snapshot = MachineSnapshot { at, reason, json: row.get(MACHINE.facts)? };
        let holds = snapshot.checksum(run) == row.get::<_, u32>(MACHINE.crc)?;
        if holds { Ok(snapshot) } else { corrupt_row("machine", id) }
    })
}
