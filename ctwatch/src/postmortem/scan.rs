//! The one pass over the ticks: everything the postmortem needs of them, in bounded memory.
//! Pure; ticks before the span only keep the occupancy right.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ctwatch_common::Cause;
use ctwatch_common::cause::{CAUSES, Unit};
use ctwatch_common::slot::{SlotKey, SlotKind};
use jiff::Timestamp;

use super::at::At;
use super::model::{Gap, Step};
use super::series::{Point, PortOrNone, Series};
use super::states::States;
use crate::contract::TableStatus;
use crate::model::{Census, CounterArray, FlowOffset, NetnsId, ServicePort, WallMono};
use crate::record::reader::Stored;
use crate::record::tick::{NetnsTick, Presence, Tick};
use crate::state::occupancy;

/// An incident begins at this fill, or with a loss.
const ONSET_FILL: f64 = 0.9;
/// Where the bands of fill levels begin.
pub(super) const BANDS: [f64; 5] = [0.0, 0.5, 0.8, 0.9, 1.0];
/// A pause between two ticks that is worth mention, seconds.
const PAUSE_S: f64 = 0.5;
/// A step of the wall clock that is, seconds.
const STEP_S: f64 = 1.0;
/// A tick of this level is the sum of all older ones: its times are unknown.
const SUM_LEVEL: u8 = 4;
/// Occupants kept of one moment.
pub(super) const OCCUPANTS: usize = 8;

/// Entries by netns and service: inserts less deletes, and what a census says they must be added to.
#[derive(Debug, Default)]
struct Entries {
    net: HashMap<NetnsId, HashMap<ServicePort, i64>>,
    bases: HashMap<NetnsId, HashMap<ServicePort, i64>>,
    /// The last census of each netns.
    states: HashMap<NetnsId, Arc<States>>,
    known: HashMap<NetnsId, bool>,
    overflow: i64,
}

/// The moment that was worst so far.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub at: At,
    pub netns: NetnsId,
    pub count: Option<u32>,
    pub max: Option<u32>,
    pub lost_per_s: f64,
    /// None without a limit, or if something is unknown.
    pub fill: Option<f64>,
    /// Empty if the table hadn't been listed by then.
    pub occupants: Vec<(ServicePort, i64)>,
    pub exact: bool,
    /// The census that is nearest in time.
    pub states: Option<Arc<States>>,
    /// The run it is in.
    pub run: u32,
}

/// One tick with losses, for weighing the sampled events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lossy {
    pub first: i64,
    pub last: i64,
    pub losses: [i64; CAUSES],
}

#[derive(Debug, Default)]
pub(super) struct TickScan {
    netns: BTreeMap<NetnsId, NetnsTick>,
    entries: Entries,
    run: u32,
    before_tick: Option<At>,
    /// What is added to CLOCK_MONOTONIC of this run to get a place on the timeline.
    offset_us: i64,
    pub ticks: u64,
    pub from: Option<At>,
    pub to: Option<At>,
    pub watched_s: f64,
    pub series: Series,
    pub losses: BTreeMap<SlotKey, i64>,
    pub counted: [i64; CAUSES],
    pub without_port: [i64; CAUSES],
    pub lost_events: i64,
    pub ambiguous: i64,
    pub events_seen: u64,
    pub kernel: CounterArray<i64>,
    unexplained_before: CounterArray<i64>,
    unexplained_now: CounterArray<i64>,
    pub unexplained: CounterArray<i64>,
    /// Some netns could not be read, or took its last counts along.
    pub unheard: bool,
    pub lossy: Vec<Lossy>,
    pub first_sign: Option<(Timestamp, Option<f64>)>,
    pub full_at: Option<Timestamp>,
    pub first_loss: Option<(At, f64)>,
    pub last_loss: Option<(At, f64)>,
    /// From when to when the kernel's counters of losses moved.
    pub kernel_loss: Option<(At, At)>,
    /// The first tick lost something: losses may have begun before it.
    pub began_losing: bool,
    /// Something was lost in ticks of which only a sum is left.
    pub untimed_losses: bool,
    pub losing_s: f64,
    pub peak: Option<(Timestamp, NetnsId, u32, u32)>,
    pub worst: Option<Moment>,
    /// The worst moment of each table that lost something or was at least half full.
    pub troubled: BTreeMap<NetnsId, Moment>,
    pub bands: [(f64, i64, i64); BANDS.len()],
    /// Time and losses while no table had a limit, or none was known.
    pub no_fill: (f64, i64, i64),
    /// The most entries of a table without a limit.
    pub unlimited: Option<(Timestamp, NetnsId, u32)>,
    pub before: (HashMap<ServicePort, i64>, f64),
    pub during: (HashMap<ServicePort, i64>, f64),
    pending: (HashMap<ServicePort, i64>, f64),
    pub thinned: u64,
    pub dropped: u64,
    pub gaps: Vec<Gap>,
    pub steps: Vec<Step>,
}

impl TickScan {
    /// A run begins: its counters and tables are its own, and so is its place on the timeline.
    pub fn begin_run(&mut self, offset_us: i64) {
        self.offset_us = offset_us;
        self.netns.clear();
        self.entries = Entries::default();
        self.run += 1;
        self.before_tick = None;
        self.unexplained_before = [0; 4];
        self.unexplained_now = [0; 4];
    }

    /// A run is over.
    pub fn end_run(&mut self) {
        for (sum, (now, before)) in
            self.unexplained.iter_mut().zip(self.unexplained_now.iter().zip(self.unexplained_before))
        {
            *sum += now - before;
        }
    }

    /// A moment of this run.
    pub fn place(&self, at: WallMono) -> At {
        At { time: at.time, place_us: self.offset_us.saturating_add(at.mono_us) }
    }

    fn end_of(&self, tick: &Tick) -> At {
        self.place(WallMono { time: tick.time, mono_us: tick.mono_us })
    }

    /// Takes in a tick.
    pub fn add(&mut self, stored: &Stored, inside: bool) {
        let tick = &stored.tick;
        let end = self.end_of(tick);
        for netns in &tick.netns {
            self.netns.insert(netns.id, *netns);
        }
        self.entries.add(tick, end);
        self.nearest_census(tick);
        if !inside {
            self.unexplained_before = tick.unexplained;
            self.unexplained_now = tick.unexplained;
            self.before_tick = Some(end);
            return;
        }
        self.unexplained_now = tick.unexplained;
        self.clock(stored);
        let losses = self.count(tick);
        let (packets, entries) = by_unit(&losses);
        if packets + entries > 0 {
            self.lossy.push(Lossy { first: stored.first, last: stored.id, losses });
        }
        let fullest = self.fullest(tick);
        self.find_onset(stored, fullest, packets + entries);
        self.band(tick, fullest, packets, entries);
        self.arrivals(tick, packets + entries > 0);
        self.consider(tick);
        self.point(tick, fullest);
    }

    /// Times, gaps and steps.
    fn clock(&mut self, stored: &Stored) {
        let Tick { time, interval_us, .. } = stored.tick;
        let end = self.end_of(&stored.tick);
        let interval_s = interval_us as f64 / 1e6;
        self.thinned += u64::from((1..SUM_LEVEL).contains(&stored.level));
        self.dropped += u64::from(stored.level == SUM_LEVEL);
        if let Some(before) = self.before_tick.filter(|_| stored.level < SUM_LEVEL) {
            let passed = end.since(before);
            if passed - interval_s > PAUSE_S {
                self.gaps.push(Gap { from: before, seconds: passed - interval_s });
            }
            let step = time.duration_since(before.time).as_secs_f64() - passed;
            if step.abs() > STEP_S {
                self.steps.push(Step { time, seconds: step });
            }
        }
        self.before_tick = Some(end);
        self.ticks += 1;
        self.watched_s += interval_s;
        self.from.get_or_insert(end.minus(interval_s));
        self.to = Some(end);
    }

    /// Sums; returns the tick's losses by cause.
    fn count(&mut self, tick: &Tick) -> [i64; CAUSES] {
        let mut losses = tick.overflow;
        for (key, count) in &tick.losses {
            *self.losses.entry(*key).or_default() += count;
            if let Some(SlotKind::Loss { cause, .. }) = key.decode() {
                losses[cause as usize] += count;
            }
        }
        for (sum, more) in self.counted.iter_mut().zip(losses) {
            *sum += more;
        }
        for (sum, more) in self.without_port.iter_mut().zip(tick.overflow) {
            *sum += more;
        }
        for netns in &tick.netns {
            self.unheard |= match netns.presence {
                Presence::Unreadable => true,
                Presence::Gone => !netns.complete,
                Presence::Present | Presence::Absent => false,
            };
            for (sum, more) in self.kernel.iter_mut().zip(netns.kernel) {
                *sum += more;
            }
        }
        self.lost_events += tick.lost_events.iter().sum::<i64>();
        self.ambiguous += tick.ambiguous;
        self.events_seen += tick.events_seen;
        losses
    }

    /// The fullest table of this tick: its entries at their most, and its limit.
    fn fullest(&self, tick: &Tick) -> Option<(NetnsId, u32, u32)> {
        let of = |netns: &NetnsTick| {
            // The peak is that of the tick it was recorded in.
            let is_new = tick.netns.iter().any(|one| one.id == netns.id);
            let count = if is_new { netns.peak.or(netns.count) } else { netns.count };
            let max = netns.max.filter(|max| *max > 0)?;
            (netns.presence == Presence::Present).then_some((netns.id, count?, max))
        };
        let part = |(_, count, max): &(NetnsId, u32, u32)| f64::from(*count) / f64::from(*max);
        self.netns.values().filter_map(of).max_by(|a, b| part(a).total_cmp(&part(b)))
    }

    /// When the table began to be a problem, when it was full, and when something was lost.
    fn find_onset(&mut self, stored: &Stored, fullest: Option<(NetnsId, u32, u32)>, lost: i64) {
        let tick = &stored.tick;
        let end = self.end_of(tick);
        let interval_s = tick.interval_us as f64 / 1e6;
        let fill = fullest.map(|(_, count, max)| f64::from(count) / f64::from(max));
        for netns in self.netns.values().filter(|netns| netns.max == Some(0)) {
            let is_most = |count: &u32| self.unlimited.is_none_or(|(_, _, most)| *count > most);
            if let Some(count) = netns.count.filter(is_most) {
                self.unlimited = Some((tick.time, netns.id, count));
            }
        }
        if let Some((netns, count, max)) = fullest {
            let best = self.peak.map(|(_, _, count, max)| f64::from(count) / f64::from(max));
            if best.is_none_or(|best| fill.is_some_and(|fill| fill > best)) {
                self.peak = Some((tick.time, netns, count, max));
            }
        }
        if self.first_sign.is_none() && (lost > 0 || fill.is_some_and(|fill| fill >= ONSET_FILL)) {
            self.first_sign = Some((tick.time, fill));
        }
        if self.full_at.is_none() && fill.is_some_and(|fill| fill >= 1.0) {
            self.full_at = Some(tick.time);
        }
        if lost > 0 {
            self.began_losing |= self.ticks == 1;
            self.untimed_losses |= stored.level == SUM_LEVEL;
            self.first_loss.get_or_insert((end, interval_s));
            self.last_loss = Some((end, interval_s));
            self.losing_s += interval_s;
        }
        if tick.netns.iter().any(|netns| netns.kernel.iter().any(|counter| *counter > 0)) {
            let (first, _) = self.kernel_loss.unwrap_or((end.minus(interval_s), end));
            self.kernel_loss = Some((first, end));
        }
    }

    fn band(&mut self, tick: &Tick, fullest: Option<(NetnsId, u32, u32)>, packets: i64, entries: i64) {
        let band = |(_, count, max)| {
            let fill = f64::from(count) / f64::from(max);
            BANDS.iter().rposition(|from| fill >= *from).unwrap_or(0)
        };
        let (seconds, of_packets, of_entries) = match fullest.map(band) {
            Some(band) => &mut self.bands[band],
            None => &mut self.no_fill,
        };
        *seconds += tick.interval_us as f64 / 1e6;
        *of_packets += packets;
        *of_entries += entries;
    }

    fn arrivals(&mut self, tick: &Tick, loses: bool) {
        let seconds = tick.interval_us as f64 / 1e6;
        let inserted = tick
            .flows
            .iter()
            .map(|(key, [inserts, _, failed])| (ServicePort::of_slot(*key), inserts - failed));
        let sums = match (self.first_sign.is_none(), self.first_loss.is_some()) {
            (true, _) => &mut self.before,
            (false, true) => &mut self.pending,
            (false, false) => return,
        };
        for (port, count) in inserted {
            *sums.0.entry(port).or_default() += count;
        }
        sums.1 += seconds;
        if loses {
            let (pending, seconds) = std::mem::take(&mut self.pending);
            for (port, count) in pending {
                *self.during.0.entry(port).or_default() += count;
            }
            self.during.1 += seconds;
        }
    }

    /// The worst moment: where most was lost per second, else where the table was fullest.
    fn consider(&mut self, tick: &Tick) {
        let seconds = (tick.interval_us as f64 / 1e6).max(1e-3);
        let mut lost: BTreeMap<NetnsId, i64> = BTreeMap::new();
        for (key, count) in &tick.losses {
            *lost.entry(NetnsId::from_packed(key.netns)).or_default() += count;
        }
        for netns in &tick.netns {
            lost.entry(netns.id).or_default();
        }
        for (id, lost) in lost {
            let known = self.netns.get(&id).copied().unwrap_or_default();
            let (count, max) = (known.count, known.max);
            let of = |(count, max): (u32, u32)| (max > 0).then(|| f64::from(count) / f64::from(max));
            let fill = count.zip(max).and_then(of);
            let lost_per_s = lost as f64 / seconds;
            // Without a limit that with most entries.
            let now = (lost_per_s, fill, count);
            let is_worse = |worst: Option<&Moment>| {
                worst.is_none_or(|worst| now > (worst.lost_per_s, worst.fill, worst.count))
            };
            let is_troubled = lost > 0 || fill.is_some_and(|fill| fill >= TableStatus::FILLING);
            let is_worst = is_worse(self.worst.as_ref());
            let is_worst_of_its_own = is_troubled && is_worse(self.troubled.get(&id));
            if is_worst || is_worst_of_its_own {
                let quiet = !tick.flows.iter().any(|(key, _)| key.netns == id.packed());
                let (occupants, exact) = self.entries.of(id, count, quiet);
                let at = self.end_of(tick);
                let states = self.entries.states.get(&id).map(Arc::clone);
                let run = self.run;
                let moment =
                    Moment { at, netns: id, count, max, lost_per_s, fill, occupants, exact, states, run };
                if is_worst_of_its_own {
                    self.troubled.insert(id, moment.clone());
                }
                if is_worst {
                    self.worst = Some(moment);
                }
            }
        }
    }

    /// A census after the worst moment may be nearer to it than the last one before.
    fn nearest_census(&mut self, tick: &Tick) {
        let run = self.run;
        for census in &tick.censuses {
            let Some(later) = self.entries.states.get(&census.netns) else { continue };
            let worst = self.worst.as_mut().filter(|worst| worst.netns == census.netns);
            let moments = worst.into_iter().chain(self.troubled.get_mut(&census.netns));
            for moment in moments.filter(|moment| moment.run == run) {
                let known = moment.states.as_ref().map(|known| known.distance_s(moment.at));
                if known.is_none_or(|known| later.distance_s(moment.at) < known) {
                    moment.states = Some(Arc::clone(later));
                }
            }
        }
    }

    fn point(&mut self, tick: &Tick, fullest: Option<(NetnsId, u32, u32)>) {
        let mut point = Point::new(self.end_of(tick));
        point.seconds = tick.interval_us as f64 / 1e6;
        point.fill = fullest.map(|(_, count, max)| f64::from(count) / f64::from(max));
        for (key, count) in &tick.losses {
            let Some(SlotKind::Loss { cause, attributed, .. }) = key.decode() else { continue };
            if cause == Cause::Invalid {
                continue;
            }
            *point
                .losses_of(cause)
                .entry(PortOrNone(attributed.then(|| ServicePort::of_slot(*key))))
                .or_default() += count;
        }
        for cause in Cause::ALL {
            let count = tick.overflow[cause as usize];
            if count != 0 && cause != Cause::Invalid {
                *point.losses_of(cause).entry(PortOrNone(None)).or_default() += count;
            }
        }
        for (key, [inserts, _, failed]) in &tick.flows {
            *point.arrived.entry(PortOrNone(Some(ServicePort::of_slot(*key)))).or_default() +=
                inserts - failed;
        }
        if self.series.closes()
            && let Some((netns, ..)) = fullest
        {
            let (occupants, _) = self.entries.of(netns, None, false);
            point.entries =
                occupants.into_iter().map(|(port, entries)| (PortOrNone(Some(port)), entries)).collect();
        }
        self.series.add(point);
    }
}

impl Entries {
    fn add(&mut self, tick: &Tick, at: At) {
        if tick.restarted {
            *self = Self::default();
        }
        for (key, [inserts, deletes, failed]) in &tick.flows {
            let of_netns = self.net.entry(NetnsId::from_packed(key.netns)).or_default();
            *of_netns.entry(ServicePort::of_slot(*key)).or_default() += inserts - failed - deletes;
        }
        self.overflow += tick.flows_overflow;
        for census in &tick.censuses {
            self.census(census, at);
        }
    }

    fn census(&mut self, census: &Census, at: At) {
        if census.replaces_offsets {
            let base = |base: &FlowOffset| (ServicePort { proto: base.proto, port: base.port }, base.entries);
            self.bases.insert(census.netns, census.bases.iter().map(base).collect());
            self.known.insert(census.netns, census.exact);
        }
        self.states.insert(census.netns, Arc::new(States::of_census(census, at)));
    }

    /// The services with most entries of a netns, and whether that is exact. Nothing is known before its first census.
    fn of(&self, netns: NetnsId, count: Option<u32>, quiet: bool) -> (Vec<(ServicePort, i64)>, bool) {
        let Some(exact) = self.known.get(&netns) else { return (Vec::new(), false) };
        let mut sums: HashMap<ServicePort, i64> = HashMap::new();
        let both = [&self.net, &self.bases].into_iter().filter_map(|of| of.get(&netns)).flatten();
        for (port, entries) in both {
            *sums.entry(*port).or_default() += entries;
        }
        let mut most: Vec<(ServicePort, i64)> =
            sums.into_iter().filter(|(_, entries)| *entries > 0).collect();
        let all: i64 = most.iter().map(|(_, entries)| entries).sum();
        let exact = *exact && self.overflow == 0 && occupancy::agrees(all.unsigned_abs(), count, quiet);
        most.sort_unstable_by_key(|(port, entries)| (Reverse(*entries), *port));
        most.truncate(OCCUPANTS);
        (most, exact)
    }
}

/// Packets and entries lost.
fn by_unit(losses: &[i64; CAUSES]) -> (i64, i64) {
    let sum = |unit: Unit| {
        Cause::ALL
            .into_iter()
            // A packet that passes untracked isn't lost.
            .filter(|cause| cause.unit() == unit && *cause != Cause::Invalid)
            .map(|cause| losses[cause as usize])
            .sum()
    };
    (sum(Unit::Packets), sum(Unit::Entries))
}
