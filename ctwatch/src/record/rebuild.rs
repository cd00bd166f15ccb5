//! From ticks back to samples: what was recorded enters `state` by the door that live data take. Pure.
//! Totals count from the beginning of what was fed in.

use std::collections::{BTreeMap, HashMap};

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;

use super::tick::{Four, NetnsTick, Presence, Tick};
use super::track::is_flow;
use crate::model::{FlowSample, KernelCounters, NetnsId, NetnsSample, Sample, SlotSample};

/// What a netns was called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// "host", a name from /run/netns, that of its container, or none.
    pub name: Option<String>,
    /// The container or pod that lived in it.
    pub container: Option<String>,
}

/// Totals of everything fed in.
#[derive(Debug, Default)]
pub struct Rebuild {
    slots: HashMap<SlotKey, [i64; 3]>,
    netns: BTreeMap<NetnsId, (NetnsTick, Four)>,
    overflow: [i64; CAUSES],
    lost_events: [i64; CAUSES],
    ambiguous: i64,
    flows_overflow: i64,
}

impl Rebuild {
    /// Takes in a tick. Feed it all ticks of a run in order, also those that nobody wants to see.
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

    /// The sample that tick came from, if it was the last one fed in.
    #[must_use]
    pub fn sample(&self, tick: &Tick, names: &HashMap<NetnsId, Names>) -> Sample {
        let present = self.netns.iter().filter(|(_, (known, _))| known.presence != Presence::Absent);
        Sample {
            time: tick.time,
            interval_s: tick.interval_us as f64 / 1e6,
            netns: present.map(|(id, (known, after))| netns_sample(*id, known, *after, names)).collect(),
            slots: self.slots(),
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

    /// A watch leaves out the flows of a netns that is gone.
    fn slots(&self) -> Vec<SlotSample> {
        let is_there = |netns: u32| {
            self.netns
                .get(&NetnsId::from_packed(netns))
                .is_none_or(|(known, _)| known.presence == Presence::Present)
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

fn netns_sample(id: NetnsId, tick: &NetnsTick, after: Four, names: &HashMap<NetnsId, Names>) -> NetnsSample {
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
    }
}

/// An array as the kernel's counters.
#[must_use]
pub fn counters(four: Four) -> KernelCounters {
    let [drop, early_drop, insert_failed, chaintoolong] = four.map(unsigned);
    KernelCounters { drop, early_drop, insert_failed, chaintoolong }
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
