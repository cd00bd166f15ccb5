//! From samples, which hold totals, to ticks, which hold how far these moved. Pure.
//! What a tick has no room for stays owed and comes later: totals are never cut.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::{KIND_FLOWS, KIND_LOOPBACK, KIND_UNATTRIBUTED, SlotKey};
use jiff::Timestamp;

use super::tick::{Four, NetnsTick, Presence, Tick};
use crate::model::{Census, KernelCounters, NetnsId, NetnsSample, Sample};

/// Slots a tick may hold in the long run,
const SUSTAINED: usize = 256;
/// and after a quiet time: more than a busy server has, and 300 kB at most.
const BURST: usize = 1 << 14;

/// Remembers what was recorded.
#[derive(Debug)]
pub struct Tracker {
    slots: HashMap<SlotKey, Slot>,
    netns: BTreeMap<NetnsId, Known>,
    overflow: [i64; CAUSES],
    lost_events: [i64; CAUSES],
    ambiguous: i64,
    flows_overflow: i64,
    /// What the last tick had no room for.
    owed: Owed,
    /// Slots that may still be written.
    budget: usize,
    generation: u32,
    /// What the flow slots had come to when this file began, which its censuses must not count again.
    origin: HashMap<(NetnsId, u8, u16), i64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    now: [i64; 3],
    recorded: [i64; 3],
    generation: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    tick: NetnsTick,
    after: Four,
    generation: u32,
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            slots: HashMap::new(),
            netns: BTreeMap::new(),
            overflow: [0; CAUSES],
            lost_events: [0; CAUSES],
            ambiguous: 0,
            flows_overflow: 0,
            owed: Owed::default(),
            budget: BURST,
            generation: 0,
            origin: HashMap::new(),
        }
    }
}

impl Tracker {
    /// What moved since the last tick; as much of it as there is room for.
    pub fn tick(&mut self, sample: &Sample, mono_us: i64) -> Tick {
        let budget = self.budget;
        let tick = self.tick_within(sample, mono_us, budget);
        let used = tick.losses.len() + tick.flows.len();
        self.budget = (budget.saturating_sub(used) + SUSTAINED).min(BURST);
        tick
    }

    /// What is still owed, for the end of a file: a tick of no length.
    pub fn settle(&mut self, time: Timestamp, mono_us: i64) -> Option<Tick> {
        let mut tick = Tick::quiet(time, mono_us, 0);
        self.write_slots(usize::MAX, &mut tick);
        let owed = std::mem::take(&mut self.owed);
        for (cause, owed) in owed.losses.into_iter().enumerate() {
            tick.overflow[cause] = -owed;
            self.overflow[cause] -= owed;
        }
        tick.flows_overflow = -owed.flows;
        self.flows_overflow -= owed.flows;
        (!tick.losses.is_empty() || !tick.flows.is_empty()).then_some(tick)
    }

    /// A new file begins: everything is counted from here. What is known of namespaces is told anew.
    pub fn begin_file(&mut self) {
        for (key, slot) in &self.slots {
            if is_flow(*key) {
                let net = slot.now[0] - slot.now[2] - slot.now[1];
                self.origin.insert((NetnsId::from_packed(key.netns), key.proto, key.port), net);
            }
        }
        self.netns.retain(|_, known| known.tick.presence == Presence::Present);
        for known in self.netns.values_mut() {
            known.tick = NetnsTick::default();
        }
    }

    pub(super) fn tick_within(&mut self, sample: &Sample, mono_us: i64, room: usize) -> Tick {
        let Sample { time, interval_s, netns, slots: _, overflow, lost_events, ambiguous, flows } = sample;
        self.generation = self.generation.wrapping_add(1);
        let mut tick = Tick::quiet(*time, mono_us, (interval_s * 1e6).round() as i64);
        tick.restarted = flows.restarted;
        tick.netns = self.netns(netns);
        self.take_slots(sample);
        let owed = self.write_slots(room, &mut tick);
        self.owed = owed;
        for cause in 0..CAUSES {
            let total = overflow[cause] as i64 + owed.losses[cause];
            tick.overflow[cause] = total - std::mem::replace(&mut self.overflow[cause], total);
            tick.lost_events[cause] = moved(&mut self.lost_events[cause], lost_events[cause]);
        }
        tick.ambiguous = moved(&mut self.ambiguous, *ambiguous);
        let total = flows.overflow as i64 + owed.flows;
        tick.flows_overflow = total - std::mem::replace(&mut self.flows_overflow, total);
        tick.censuses = flows.censuses.iter().map(|census| self.since_origin(census)).collect();
        tick
    }

    fn netns(&mut self, samples: &[NetnsSample]) -> Vec<NetnsTick> {
        let mut changed = Vec::new();
        for sample in samples {
            let known = self.netns.entry(sample.id).or_default();
            let after = four(&sample.after);
            let tick = NetnsTick {
                id: sample.id,
                presence: if sample.gone { Presence::Gone } else { Presence::Present },
                complete: sample.complete,
                count: sample.count,
                peak: sample.count,
                max: sample.max,
                kernel: difference(after, known.after),
                width: difference(after, four(&sample.before)),
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
                known.tick = NetnsTick { presence: Presence::Absent, kernel: [0; 4], ..known.tick };
                changed.push(NetnsTick { id: *id, ..known.tick });
            }
        }
        changed.sort_by_key(|netns| netns.id);
        changed
    }

    fn take_slots(&mut self, sample: &Sample) {
        for sample in &sample.slots {
            let slot = self.slots.entry(sample.key).or_default();
            if slot.generation != self.generation {
                slot.generation = self.generation;
                slot.now = [0; 3];
            }
            for (sum, more) in slot.now.iter_mut().zip([sample.count, sample.deletes, sample.failed]) {
                *sum += more.cast_signed();
            }
        }
    }

    /// Adds the slots that moved; returns what found no room.
    fn write_slots(&mut self, room: usize, tick: &mut Tick) -> Owed {
        let mut changed: Vec<(SlotKey, [i64; 3])> = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.now != slot.recorded)
            .map(|(key, slot)| (*key, difference(slot.now, slot.recorded)))
            .collect();
        let mut owed = Owed::default();
        if changed.len() > room {
            changed.select_nth_unstable_by_key(room, |(key, by)| Reverse(weight(*key, by)));
            for (key, by) in changed.drain(room..) {
                owed.add(key, &by);
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
        owed
    }

    /// A census whose bases count from the beginning of this file.
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
struct Owed {
    losses: [i64; CAUSES],
    flows: i64,
}

impl Owed {
    fn add(&mut self, key: SlotKey, by: &[i64; 3]) {
        if is_flow(key) {
            self.flows += by.iter().sum::<i64>();
        } else {
            self.losses[usize::from(cause_of(key)) % CAUSES] += by[0];
        }
    }
}

/// Losses go before flows, and many before few.
fn weight(key: SlotKey, by: &[i64; 3]) -> (bool, i64) {
    (!is_flow(key), by.iter().map(|by| by.abs()).sum())
}

/// The number of the cause a slot counts.
pub(super) const fn cause_of(key: SlotKey) -> u8 {
    key.kind & !(KIND_LOOPBACK | KIND_UNATTRIBUTED)
}

/// Whether a slot counts inserts and deletes.
pub(super) const fn is_flow(key: SlotKey) -> bool {
    cause_of(key) == KIND_FLOWS
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

/// The kernel's counters as an array.
pub(super) fn four(counters: &KernelCounters) -> Four {
    let KernelCounters { drop, early_drop, insert_failed, chaintoolong } = *counters;
    [drop, early_drop, insert_failed, chaintoolong].map(u64::cast_signed)
}
