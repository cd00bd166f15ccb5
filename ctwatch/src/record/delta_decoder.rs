//! From ticks back to samples: what was recorded enters `state` the way live data do. Pure.
//! Totals count from the first tick fed in.

use std::collections::{BTreeMap, HashMap};

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;

use super::delta_encoder::is_flow;
use super::rows::Names;
use super::tick::{NetnsTick, Presence, Tick};
use crate::model::{
    CounterArray, FlowSample, KernelCounters, NetnsAccess, NetnsId, NetnsSample, Sample, SlotSample,
};

/// Totals of everything fed in.
#[derive(Debug, Default)]
pub struct DeltaDecoder {
    slots: HashMap<SlotKey, [i64; 3]>,
    netns: BTreeMap<NetnsId, (NetnsTick, CounterArray<i64>)>,
    overflow: [i64; CAUSES],
    lost_events: [i64; CAUSES],
    ambiguous: i64,
    flows_overflow: i64,
}

impl DeltaDecoder {
    /// Adds a tick. Feed it all ticks of a run in order, including those not to be shown.
    pub fn add(&mut self, tick: &Tick) {
        for netns in &tick.netns {
            let (known, after) = self.netns.entry(netns.id).or_default();
            *known = *netns;
            add(after, &netns.kernel);
        }
        for (key, count) in &tick.losses {
            self.slots.entry(*key).or_default()[0] += count;
        }
        for (key, counts) in &tick.flows {
            add(self.slots.entry(*key).or_default(), counts);
        }
        add(&mut self.overflow, &tick.overflow);
        add(&mut self.lost_events, &tick.lost_events);
        self.ambiguous += tick.ambiguous;
        self.flows_overflow += tick.flows_overflow;
    }

    /// The sample the last tick fed in was made from.
    #[must_use]
    pub fn sample(&self, tick: &Tick, names: &HashMap<NetnsId, Names>) -> Sample {
        let present = self.netns.iter().filter(|(_, (known, _))| known.presence != Presence::Absent);
        Sample {
            counters_from: None,
            time: tick.time,
            mono_us: tick.mono_us,
            interval_s: tick.interval_us as f64 / 1e6,
            netns: present.map(|(id, (known, after))| netns_sample(*id, known, *after, names)).collect(),
            slots: self.slots(),
            retired: Vec::new(),
            overflow: self.overflow.map(unsigned),
            lost_events: self.lost_events.map(unsigned),
            ambiguous: unsigned(self.ambiguous),
            flows: FlowSample {
                censuses: tick.censuses.clone(),
                overflow: unsigned(self.flows_overflow),
                restarted: tick.restarted,
            },
        }
    }

    /// Without the flows of namespaces that are gone, as in a live sample.
    fn slots(&self) -> Vec<SlotSample> {
        let is_there = |netns: u32| {
            self.netns.get(&NetnsId::from_packed(netns)).is_none_or(|(known, _)| known.presence.is_there())
        };
        let slots = self.slots.iter().filter(|(key, _)| !is_flow(**key) || is_there(key.netns));
        slots
            .map(|(key, counts)| {
                let [count, deletes, failed] = counts.map(unsigned);
                SlotSample { key: *key, count, deletes, failed }
            })
            .collect()
    }
}

fn netns_sample(
    id: NetnsId,
    tick: &NetnsTick,
    after: CounterArray<i64>,
    names: &HashMap<NetnsId, Names>,
) -> NetnsSample {
    let Names { name, container } = names.get(&id).cloned().unwrap_or_default();
    let mut before = after;
    for (before, width) in before.iter_mut().zip(tick.width) {
        *before -= width;
    }
    NetnsSample {
        id,
        name,
        container,
        count: tick.count,
        max: tick.max,
        before: counters(before),
        after: counters(after),
        gone: tick.presence == Presence::Gone,
        complete: tick.complete,
        access: match tick.presence {
            Presence::Unreadable => NetnsAccess::Unreadable,
            Presence::Present | Presence::Gone | Presence::Absent => NetnsAccess::Readable,
        },
    }
}

fn counters(array: CounterArray<i64>) -> KernelCounters {
    KernelCounters::from_array(array.map(unsigned))
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn add<const N: usize>(sum: &mut [i64; N], more: &[i64; N]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

#[cfg(test)]
mod tests;
