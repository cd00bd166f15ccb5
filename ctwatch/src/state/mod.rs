//! What ctwatch knows: losses and samples come in, reports go out. Live and replayed data take this one door.
//! Pure: no I/O, no clocks, no drawing.

mod balance;
mod by;
mod containers;
mod filter;
mod flow_model;
mod forecast;
mod given_up;
mod key;
mod namespaces;
pub mod occupancy;
mod packets;
mod rows;
mod settings;
mod step;
pub mod table;
mod tally;
mod trend;
mod unattributed;

use ctwatch_common::Cause;
use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKind;
use jiff::Timestamp;

pub use by::By;
pub use filter::{Filter, PortRange};
pub use settings::StateConfig;

use crate::contract::{
    self, Agreements, Certainty, Counted, End, Event, Occupied, TableStatus, Tick, Unexplained,
};
use crate::model::{
    Backend, CounterSource, FlowSample, Insert, KernelCounters, Loss, NetnsId, Owner, Protocol, Sample,
    SlotSample, is_home_netns,
};
use crate::state::filter::Verdict;
use containers::Containers;
use key::{ClassifiedLoss, Facts, Key};
use namespaces::{Account, Namespaces};
use occupancy::Occupancy;
use rows::RowBuilder;
use tally::{EventTally, SlotTally, Sum, Tallied};
use unattributed::Unattributed;

/// Tables of which the end says who occupied them.
const MOST_OCCUPIED: usize = 256;

/// Everything counted so far.
#[derive(Debug)]
pub struct State {
    settings: StateConfig,
    rows: Rows,
    containers: Containers,
    namespaces: Namespaces,
    occupancy: Occupancy,
    /// Who occupied the tables that mattered at the last sample.
    occupied: Vec<Occupied>,
    /// Measured length of all ticks.
    elapsed_s: f64,
    account: Account,
    /// From the last sample, by cause.
    overflow: [u64; CAUSES],
    lost_events: [u64; CAUSES],
    ambiguous: u64,
    /// Where the kernel's counters were read last.
    counters_from: Option<CounterSource>,
    /// Some losses never come as events.
    is_sampled: bool,
    /// Where there were losses of which a filter or a row needs something unknown.
    unattributed: Unattributed,
}

/// Where rows come from.
#[derive(Debug)]
enum Rows {
    /// The exact counters, where they can answer.
    Slots(SlotTally),
    /// Events, for what needs addresses.
    Events(EventTally),
}

impl State {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(settings: StateConfig) -> Self {
        Self {
            rows: if settings.rows_are_events() {
                Rows::Events(EventTally::new())
            } else {
                Rows::Slots(SlotTally::new())
            },
            settings,
            containers: Containers::default(),
            namespaces: Namespaces::default(),
            occupancy: Occupancy::default(),
            occupied: Vec::new(),
            elapsed_s: 0.0,
            account: Account::default(),
            overflow: [0; CAUSES],
            lost_events: [0; CAUSES],
            ambiguous: 0,
            counters_from: None,
            is_sampled: false,
            unattributed: Unattributed::default(),
        }
    }

    /// Whether [`State::loss`] does anything: if not, events needn't even be decoded.
    #[must_use]
    pub fn wants_events(&self) -> bool {
        self.settings.wants_events()
    }

    /// From here on rows made of events are lower bounds: not every loss comes as one.
    pub const fn mark_sampled(&mut self) {
        self.is_sampled = true;
    }

    /// One event. Returns what to show of it, if events are asked for and it passes the filters.
    pub fn loss(&mut self, loss: &Loss) -> Option<Event> {
        if matches!(self.rows, Rows::Slots(_)) && !self.settings.drop_events {
            return None;
        }
        let seen = ClassifiedLoss::from_loss(loss);
        if !self.settings.filter.passes_cause(seen.cause) {
            return None;
        }
        let addresses = loss.packet.tuple.map(|tuple| (tuple.src, tuple.dst));
        let verdict = self.settings.filter.judge(&seen.facts, addresses);
        if verdict == Verdict::Fail {
            return None;
        }
        if let Rows::Events(tally) = &mut self.rows {
            let by = self.settings.by;
            if verdict == Verdict::Pass && seen.has_fields_for(by) {
                let owner = loss.owner.as_deref();
                if by.needs_owners() && is_unattributable(by, owner) {
                    self.unattributed.add(seen.facts.netns, seen.cause);
                }
                match by {
                    By::Process => {
                        tally.add(seen.process_key(owner.and_then(|owner| owner.process.as_ref())))
                    }
                    By::Container => {
                        let name = owner.and_then(|owner| owner.container.as_ref());
                        match name.map_or(Some(0), |name| self.containers.number(name)) {
                            Some(number) => tally.add(seen.container_key(number)),
                            None => tally.add_to_rest(seen.cause),
                        }
                    }
                    _ => tally.add(seen.key(by, loss.packet.tuple.as_ref())),
                }
            } else {
                self.unattributed.add(seen.facts.netns, seen.cause);
                tally.add(seen.unattributed_key());
            }
        }
        self.settings.drop_events.then(|| {
            let sampled = self.namespaces.table_of(seen.facts.netns);
            let certainty = self.certainty(seen.cause);
            Event::Drop(packets::drop_event(loss, &seen, certainty, sampled))
        })
    }

    /// One insert. Returns what to show of it, if inserts are asked for and it passes the filters.
    pub fn insert(&self, insert: &Insert) -> Option<Event> {
        if !self.settings.insert_events {
            return None;
        }
        let addresses = insert.packet.tuple.map(|tuple| (tuple.src, tuple.dst));
        let verdict = self.settings.filter.judge(&Facts::of(&insert.packet), addresses);
        (verdict != Verdict::Fail).then(|| Event::Insert(packets::insert_event(insert)))
    }

    /// One tick's totals. What lost something since the last one makes the rows.
    pub fn sample(&mut self, sample: &Sample) -> Tick {
        self.take(sample, true)
    }

    /// The same for a tick that nobody looks at: what would be costly to say of it, and only of it, is left out.
    pub fn advance(&mut self, sample: &Sample) {
        self.take(sample, false);
    }

    fn take(&mut self, sample: &Sample, is_shown: bool) -> Tick {
        let Sample {
            time,
            mono_us: _,
            interval_s,
            netns,
            counters_from,
            slots,
            retired,
            overflow,
            lost_events,
            ambiguous,
            flows,
        } = sample;
        self.counters_from = counters_from.or(self.counters_from);
        self.elapsed_s += interval_s;
        let overflow_before = std::mem::replace(&mut self.overflow, *overflow);
        self.lost_events = *lost_events;

        // Without counted flows a census says who was there once, not who is.
        let uncounted = FlowSample::default();
        let flows = if self.settings.count_flows { flows } else { &uncounted };
        for slot in retired {
            self.retire_slot(slot);
        }
        self.namespaces.begin_tick();
        self.occupancy.begin_tick(flows);
        for netns in netns {
            self.namespaces.add_sample(netns);
        }
        for slot in slots {
            self.add_slot(slot);
        }
        // Last, so that rows which have slots are known as such.
        for slot in retired {
            self.add_to_rows(slot, SlotTally::retire);
        }
        self.add_overflow_to_cause_rows();

        self.account = self.namespaces.account(overflow, self.settings.backend);
        self.ambiguous = ambiguous + self.account.overcounted;
        let rates = self.settings.count_flows && self.settings.backend == Backend::Kprobe;
        let mut tables = self.namespaces.tables(*interval_s, rates, overflow, self.settings.backend);
        let is_home = |netns| is_home_netns(self.namespaces.name_of(netns));
        self.occupancy.end_tick(*interval_s, flows, is_home);
        for table in tables.iter_mut().filter(|_| is_shown) {
            self.occupancy.describe(table);
        }
        self.occupancy.retain(|netns| tables.iter().any(|table| table.netns == netns && !table.gone));
        let matters = tables.iter().filter_map(|table| occupied(table, &self.namespaces));
        self.occupied = matters.take(MOST_OCCUPIED).collect();
        self.namespaces.end_tick(self.settings.backend);

        let (tallied, rest) = match &mut self.rows {
            Rows::Slots(tally) => tally.close_tick(),
            Rows::Events(tally) => tally.close_tick(),
        };
        let rows = self.shaped(tallied, &rest, &overflow_before);
        self.forget_containers();
        Tick {
            time: *time,
            interval_s: *interval_s,
            tables,
            tables_left_out: None,
            rows,
            counted: Counted(self.account.counted),
            kernel_counters: KernelCounters::from_array(self.account.kernel),
            lost_events: self.lost_events.iter().sum(),
            unexplained: Unexplained::from_array(self.account.unexplained),
            ambiguous: self.ambiguous(),
        }
    }

    /// The totals as of the last sample.
    #[must_use]
    pub fn end(&self, time: Timestamp) -> End {
        let (tallied, rest) = match &self.rows {
            Rows::Slots(tally) => tally.totals(),
            Rows::Events(tally) => tally.totals(),
        };
        let unexplained = Unexplained::from_array(self.account.unexplained);
        End {
            time,
            duration_s: self.elapsed_s,
            counted: Counted(self.account.counted),
            kernel_counters: KernelCounters::from_array(self.account.kernel),
            lost_events: self.lost_events.iter().sum(),
            unexplained,
            rows: self.shaped(tallied, &rest, &[0; CAUSES]),
            ambiguous: self.ambiguous(),
            netns_gone: self.account.gone,
            netns_not_readable: self.account.unreadable,
            agreement: Agreements::new(&unexplained, self.account.unheard),
            kernel_counters_from: self.counters_from,
            overflow: Counted(self.overflow).any(),
            summed_up: Counted(rest.map(|sum| sum.total)).any(),
            occupied: self.occupied.clone(),
            unwritten_lines: 0,
        }
    }

    /// Containers come and go: the names of those whose rows are summed up make room for others.
    fn forget_containers(&mut self) {
        let Self { rows: Rows::Events(tally), containers, .. } = self else { return };
        if containers.is_crowded() {
            tally.keep(containers::LIMIT / 2);
            containers.retain(tally.keys().map(|key| key.fields().container()));
        }
    }

    fn add_slot(&mut self, slot: &SlotSample) {
        let netns = NetnsId::from_packed(slot.key.netns);
        match slot.key.decode() {
            Some(SlotKind::Flows) => {
                let (inserts, deletes) = moved(slot);
                self.namespaces.add_flows(netns, inserts, deletes);
                if self.settings.count_flows {
                    self.occupancy.add(netns, Protocol(slot.key.proto), slot.key.port, inserts, deletes);
                }
            }
            Some(SlotKind::Loss { cause, .. }) => {
                self.namespaces.add_losses(netns, cause, slot.count);
                self.add_to_rows(slot, SlotTally::add);
            }
            // A cause from a newer object than this program: nothing sensible can be said about it.
            None => {}
        }
    }

    /// Before the tick begins: what no slot holds any more is part of the totals from now on.
    fn retire_slot(&mut self, slot: &SlotSample) {
        let netns = NetnsId::from_packed(slot.key.netns);
        match slot.key.decode() {
            Some(SlotKind::Flows) => {
                let (inserts, deletes) = moved(slot);
                self.namespaces.retire_flows(netns, inserts, deletes);
                if self.settings.count_flows {
                    self.occupancy.retire(netns, Protocol(slot.key.proto), slot.key.port, inserts, deletes);
                }
            }
            Some(SlotKind::Loss { cause, .. }) => self.namespaces.retire_losses(netns, cause, slot.count),
            None => {}
        }
    }

    /// Adds losses to the row they belong to.
    fn add_to_rows(&mut self, slot: &SlotSample, add: impl FnOnce(&mut SlotTally, Key, u64)) {
        let Some(seen) = ClassifiedLoss::from_slot(slot.key) else { return };
        let count = slot.count;
        let Rows::Slots(tally) = &mut self.rows else {
            // Counted without an event: it may belong to any row.
            if seen.facts.port.is_none() && count > 0 {
                self.unattributed.add(seen.facts.netns, seen.cause);
            }
            return;
        };
        let StateConfig { by, filter, .. } = &self.settings;
        if !filter.passes_cause(seen.cause) {
            return;
        }
        match filter.judge(&seen.facts, None) {
            Verdict::Fail => {}
            Verdict::Pass if seen.has_fields_for(*by) => add(tally, seen.key(*by, None), count),
            Verdict::Pass | Verdict::Unknown => {
                if count > 0 {
                    self.unattributed.add(seen.facts.netns, seen.cause);
                }
                add(tally, seen.unattributed_key(), count);
            }
        }
    }

    /// Whether overflow has a row of its own: not if rows and filters ask for nothing but the cause.
    fn overflow_is_a_cause_row(&self) -> bool {
        self.settings.by == By::Cause && self.settings.filter.is_by_cause_only()
    }

    fn add_overflow_to_cause_rows(&mut self) {
        if !self.overflow_is_a_cause_row() {
            return;
        }
        let Rows::Slots(tally) = &mut self.rows else { return };
        for cause in Cause::ALL {
            let count = self.overflow[cause as usize];
            if count > 0 && self.settings.filter.passes_cause(cause) {
                let facts =
                    Facts { netns: NetnsId::default(), proto: None, port: None, loopback: None, zone: None };
                tally.add(ClassifiedLoss { cause, facts }.key(By::Cause, None), count);
            }
        }
    }

    fn shaped(
        &self,
        tallied: Vec<Tallied>,
        rest: &[Sum; CAUSES],
        overflow_before: &[u64; CAUSES],
    ) -> Vec<contract::Row> {
        let by_events = matches!(self.rows, Rows::Events(_));
        let separate_overflow = !by_events && !self.overflow_is_a_cause_row();
        let mut overflow = [Sum::default(); CAUSES];
        let mut incomplete = [false; CAUSES];
        let mut sampled = [false; CAUSES];
        for cause in Cause::ALL {
            let index = cause as usize;
            let total = self.overflow[index];
            if separate_overflow && self.settings.filter.passes_cause(cause) {
                overflow[index] = Sum { losses: total.saturating_sub(overflow_before[index]), total };
            }
            sampled[index] = (by_events && (self.is_sampled || self.lost_events[index] > 0))
                || (cause == Cause::TableFull && self.account.overcounted > 0);
            // Any row may lack those without a slot: its key may have found one before or since.
            incomplete[index] |= sampled[index] || (separate_overflow && total > 0);
        }
        let StateConfig { by, top, backend, .. } = self.settings;
        RowBuilder {
            by,
            top,
            backend,
            incomplete,
            sampled,
            unattributed: &self.unattributed,
            containers: &self.containers,
            namespaces: &self.namespaces,
        }
        .rows(tallied, rest, &overflow)
    }

    fn certainty(&self, cause: Cause) -> Certainty {
        rows::certainty(self.settings.backend, cause)
    }

    fn ambiguous(&self) -> Option<u64> {
        (self.settings.backend == Backend::Tracepoint || self.ambiguous > 0).then_some(self.ambiguous)
    }
}

/// Inserts that lasted, and deletes.
const fn moved(slot: &SlotSample) -> (u64, u64) {
    (slot.count.saturating_sub(slot.failed), slot.deletes)
}

/// Whether a loss without an owner may belong to a row that has one.
fn is_unattributable(by: By, owner: Option<&Owner>) -> bool {
    let Some(owner) = owner else { return true };
    let named = if by == By::Process { owner.process.is_some() } else { owner.container.is_some() };
    owner.unattributable && !named
}

/// For the end of the run: who occupies a table, if it matters and that is known.
fn occupied(table: &TableStatus, namespaces: &Namespaces) -> Option<Occupied> {
    let matters =
        table.fill.is_some_and(|fill| fill >= TableStatus::FILLING) || namespaces.lost_something(table.netns);
    let (occupants, exact) = table.occupants.clone().zip(table.occupancy_exact)?;
    (matters && !table.gone).then(|| Occupied {
        netns: table.netns,
        name: table.name.clone(),
        occupants,
        occupancy_exact: exact,
    })
}

#[cfg(test)]
mod tests;
