//! From samples, which contain totals, to ticks, which contain how far these moved. Pure.
//! What a tick has no room for is deferred to a later one: nothing is ever left out of the totals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::{SlotKey, SlotKind};
use jiff::Timestamp;

use super::tick::{NetnsTick, Presence, Tick};
use crate::model::{
    Census, CounterArray, KernelCounters, NetnsAccess, NetnsId, NetnsSample, Protocol, Sample, SlotSample,
};

/// Slots per tick in the long run.
const SUSTAINED: usize = 256;
/// Slots in a single tick after a quiet time: more than a busy server has, and at most 300 kB.
const BURST: usize = 1 << 14;

/// Keys kept in memory though they have no slot any more, until what moved is written.
const UNWRITTEN: usize = 1 << 15;

/// Remembers what has been recorded, to tell what changed since.
#[derive(Debug)]
pub struct DeltaEncoder {
    slots: HashMap<SlotKey, Slot>,
    netns: BTreeMap<NetnsId, Known>,
    overflow: [i64; CAUSES],
    lost_events: [i64; CAUSES],
    ambiguous: i64,
    flows_overflow: i64,
    /// What the last tick had no room for.
    deferred: Deferred,
    /// What no tick will ever have room for: keys without a slot, when there were too many of them.
    given_up: Deferred,
    most_unwritten: usize,
    /// How many slots may be written now.
    budget: usize,
    generation: u32,
    /// The flow slots' totals when this file began: its censuses must not count them again.
    origin: HashMap<(NetnsId, Protocol, u16), i64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// In slots and retired.
    now: [i64; 3],
    retired: [i64; 3],
    recorded: [i64; 3],
    generation: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    tick: NetnsTick,
    after: CounterArray<i64>,
    generation: u32,
}

impl Default for DeltaEncoder {
    fn default() -> Self {
        Self {
            slots: HashMap::new(),
            netns: BTreeMap::new(),
            overflow: [0; CAUSES],
            lost_events: [0; CAUSES],
            ambiguous: 0,
            flows_overflow: 0,
            deferred: Deferred::default(),
            given_up: Deferred::default(),
            most_unwritten: UNWRITTEN,
            budget: BURST,
            generation: 0,
            origin: HashMap::new(),
        }
    }
}

impl DeltaEncoder {
    /// What changed since the last tick, as far as there is room for it.
    pub fn tick(&mut self, sample: &Sample) -> Tick {
        let budget = self.budget;
        let tick = self.tick_within(sample, budget);
        let used = tick.losses.len() + tick.flows.len();
        self.budget = (budget.saturating_sub(used) + SUSTAINED).min(BURST);
        tick
    }

    /// Everything deferred, for the end of a file: a tick of zero length.
    pub fn flush_deferred(&mut self, time: Timestamp, mono_us: i64) -> Option<Tick> {
        let mut tick = Tick::quiet(time, mono_us, 0);
        self.write_slots(usize::MAX, &mut tick);
        let deferred = std::mem::take(&mut self.deferred);
        for (cause, deferred) in deferred.losses.into_iter().enumerate() {
            tick.overflow[cause] = -deferred;
            self.overflow[cause] -= deferred;
        }
        tick.flows_overflow = -deferred.flows;
        self.flows_overflow -= deferred.flows;
        (!tick.losses.is_empty() || !tick.flows.is_empty()).then_some(tick)
    }

    /// A new file begins: everything counts from here, and all namespaces are described again.
    pub fn begin_file(&mut self) {
        for (key, slot) in &self.slots {
            if is_flow(*key) {
                let net = slot.now[0] - slot.now[2] - slot.now[1];
                self.origin.insert((NetnsId::from_packed(key.netns), Protocol(key.proto), key.port), net);
            }
        }
        self.netns.retain(|_, known| known.tick.presence.is_there());
        for known in self.netns.values_mut() {
            known.tick = NetnsTick::default();
        }
    }

    /// Keeps fewer keys that have no slot.
    #[cfg(test)]
    pub(super) fn keeping(most_unwritten: usize) -> Self {
        Self { most_unwritten, ..Self::default() }
    }

    pub(super) fn tick_within(&mut self, sample: &Sample, room: usize) -> Tick {
        let Sample {
            time,
            mono_us,
            interval_s,
            netns,
            counters_from: _,
            slots: _,
            retired: _,
            overflow,
            lost_events,
            ambiguous,
            flows,
        } = sample;
        self.generation = self.generation.wrapping_add(1);
        let mut tick = Tick::quiet(*time, *mono_us, (interval_s * 1e6).round() as i64);
        tick.restarted = flows.restarted;
        tick.netns = self.netns(netns);
        self.take_slots(sample);
        let deferred = self.write_slots(room, &mut tick);
        self.deferred = deferred;
        self.forget_retired();
        for cause in 0..CAUSES {
            let total = overflow[cause] as i64 + self.deferred.losses[cause] + self.given_up.losses[cause];
            tick.overflow[cause] = total - std::mem::replace(&mut self.overflow[cause], total);
            tick.lost_events[cause] = moved(&mut self.lost_events[cause], lost_events[cause]);
        }
        tick.ambiguous = moved(&mut self.ambiguous, *ambiguous);
        let total = flows.overflow as i64 + self.deferred.flows + self.given_up.flows;
        tick.flows_overflow = total - std::mem::replace(&mut self.flows_overflow, total);
        tick.censuses = flows.censuses.iter().map(|census| self.since_origin(census)).collect();
        tick
    }

    fn netns(&mut self, samples: &[NetnsSample]) -> Vec<NetnsTick> {
        let (mut changed, mut was_gone) = (Vec::new(), Vec::new());
        for sample in samples {
            let known = self.netns.entry(sample.id).or_default();
            let after = signed(&sample.after);
            let tick = NetnsTick {
                id: sample.id,
                presence: presence(sample),
                complete: sample.complete,
                count: sample.count,
                peak: sample.count,
                max: sample.max,
                kernel: difference(after, known.after),
                width: difference(after, signed(&sample.before)),
            };
            known.after = after;
            known.generation = self.generation;
            if (NetnsTick { kernel: [0; 4], ..tick }) != (NetnsTick { kernel: [0; 4], ..known.tick })
                || tick.kernel != [0; 4]
            {
                changed.push(tick);
            }
            known.tick = tick;
        }
        for (id, known) in &mut self.netns {
            if known.generation != self.generation && known.tick.presence != Presence::Absent {
                was_gone.extend((known.tick.presence == Presence::Gone).then_some(*id));
                known.tick = NetnsTick { presence: Presence::Absent, kernel: [0; 4], ..known.tick };
                changed.push(NetnsTick { id: *id, ..known.tick });
            }
        }
        // These don't come back; one that only couldn't be read for a while may.
        for id in was_gone {
            self.netns.remove(&id);
        }
        changed.sort_by_key(|netns| netns.id);
        changed
    }

    fn take_slots(&mut self, sample: &Sample) {
        for sample in &sample.slots {
            let slot = self.slots.entry(sample.key).or_default();
            if slot.generation != self.generation {
                slot.generation = self.generation;
                slot.now = slot.retired;
            }
            add(&mut slot.now, sample);
        }
        for retired in &sample.retired {
            let slot = self.slots.entry(retired.key).or_default();
            add(&mut slot.retired, retired);
            if slot.generation == self.generation {
                add(&mut slot.now, retired);
            } else {
                slot.now = slot.retired;
            }
        }
    }

    /// Forgets keys that have no slot and whose counts are written. Of the others only so many are kept.
    fn forget_retired(&mut self) {
        let generation = self.generation;
        let has_no_slot = |slot: &Slot| slot.generation != generation && slot.now == slot.retired;
        self.slots.retain(|_, slot| !(has_no_slot(slot) && slot.now == slot.recorded));
        let unwritten = self.slots.values().filter(|slot| has_no_slot(slot)).count();
        if unwritten <= self.most_unwritten {
            return;
        }
        let mut smallest: Vec<(SlotKey, [i64; 3])> = self
            .slots
            .iter()
            .filter(|(_, slot)| has_no_slot(slot))
            .map(|(key, slot)| (*key, difference(slot.now, slot.recorded)))
            .collect();
        // Room for a while, so that this isn't done in every tick.
        let too_many = unwritten - self.most_unwritten / 2;
        smallest.select_nth_unstable_by_key(too_many - 1, |(key, by)| weight(*key, by));
        for (key, by) in &smallest[..too_many] {
            self.given_up.add(*key, by);
            self.deferred.remove(*key, by);
            self.slots.remove(key);
        }
        self.slots.shrink_to(4 * self.most_unwritten);
    }

    /// Adds the slots that changed; returns what there was no room for.
    fn write_slots(&mut self, room: usize, tick: &mut Tick) -> Deferred {
        let mut changed: Vec<(SlotKey, [i64; 3])> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.now != slot.recorded)
            .map(|(key, slot)| (*key, difference(slot.now, slot.recorded)))
            .collect();
        let mut deferred = Deferred::default();
        if changed.len() > room {
            changed.select_nth_unstable_by_key(room, |(key, by)| Reverse(weight(*key, by)));
            for (key, by) in changed.drain(room..) {
                deferred.add(key, &by);
            }
        }
        changed.sort_unstable_by_key(|(key, _)| *key);
        for (key, by) in changed {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.recorded = slot.now;
            }
            if is_flow(key) {
                tick.flows.push((key, by));
            } else {
                tick.losses.push((key, by[0]));
            }
        }
        deferred
    }

    /// The census with offsets relative to the beginning of this file.
    fn since_origin(&self, census: &Census) -> Census {
        let mut census = census.clone();
        for base in &mut census.bases {
            base.entries += self.origin.get(&(census.netns, base.proto, base.port)).copied().unwrap_or(0);
        }
        census
    }
}

/// What a tick had no room for.
#[derive(Clone, Copy, Debug, Default)]
struct Deferred {
    losses: [i64; CAUSES],
    flows: i64,
}

impl Deferred {
    fn add(&mut self, key: SlotKey, by: &[i64; 3]) {
        match key.decode() {
            Some(SlotKind::Flows) => self.flows += by.iter().sum::<i64>(),
            Some(SlotKind::Loss { cause, .. }) => self.losses[cause as usize] += by[0],
            // No program counts such a kind; the slot itself is written once there is room.
            None => {}
        }
    }

    fn remove(&mut self, key: SlotKey, by: &[i64; 3]) {
        self.add(key, &by.map(i64::wrapping_neg));
    }
}

fn add(sum: &mut [i64; 3], slot: &SlotSample) {
    for (sum, more) in sum.iter_mut().zip([slot.count, slot.deletes, slot.failed]) {
        *sum += more.cast_signed();
    }
}

/// Losses take precedence over flows, and many over few.
fn weight(key: SlotKey, by: &[i64; 3]) -> (bool, i64) {
    (!is_flow(key), by.iter().map(|by| by.abs()).sum())
}

/// Whether a slot counts inserts and deletes.
pub(super) fn is_flow(key: SlotKey) -> bool {
    key.decode() == Some(SlotKind::Flows)
}

fn moved(before: &mut i64, now: u64) -> i64 {
    let now = now.cast_signed();
    now - std::mem::replace(before, now)
}

fn difference<const N: usize>(now: [i64; N], before: [i64; N]) -> [i64; N] {
    let mut by = now;
    for (by, before) in by.iter_mut().zip(before) {
        *by -= before;
    }
    by
}

fn signed(counters: &KernelCounters) -> CounterArray<i64> {
    counters.as_array().map(u64::cast_signed)
}
fn presence(sample: &NetnsSample) -> Presence {
    match (sample.gone, sample.access) {
        (true, _) => Presence::Gone,
        (false, NetnsAccess::Readable) => Presence::Present,
        (false, NetnsAccess::Unreadable) => Presence::Unreadable,
    }
}
