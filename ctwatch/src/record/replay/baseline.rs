//! Makes totals count from the start of a span, by subtracting what had been counted before.
//! Flows are left alone, since censuses are tied to their totals. Pure.

use std::collections::HashMap;

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;

use crate::model::{KernelCounters, NetnsId, Sample};
use crate::record::delta_encoder::is_flow;

/// What had been counted when the span began.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    is_set: bool,
    losses: HashMap<SlotKey, u64>,
    kernel: HashMap<NetnsId, KernelCounters>,
    overflow: [u64; CAUSES],
    lost_events: [u64; CAUSES],
    ambiguous: u64,
}

impl Baseline {
    /// Whether the span has begun.
    pub const fn is_set(&self) -> bool {
        self.is_set
    }

    /// The span begins.
    pub const fn set(&mut self) {
        self.is_set = true;
    }

    /// Remembers the totals of a sample from before the span, and removes its losses.
    pub fn take(&mut self, sample: &mut Sample) {
        self.losses.clear();
        self.losses
            .extend(sample.slots.iter().filter(|slot| !is_flow(slot.key)).map(|slot| (slot.key, slot.count)));
        for netns in &sample.netns {
            self.kernel.insert(netns.id, netns.after);
        }
        (self.overflow, self.lost_events) = (sample.overflow, sample.lost_events);
        self.ambiguous = sample.ambiguous;
        sample.slots.retain(|slot| is_flow(slot.key));
        for netns in &mut sample.netns {
            (netns.before, netns.after) = Default::default();
        }
        (sample.overflow, sample.lost_events, sample.ambiguous) = ([0; CAUSES], [0; CAUSES], 0);
    }

    /// Makes the totals of a sample in the span count from the span's start.
    pub fn subtract(&self, sample: &mut Sample) {
        for slot in sample.slots.iter_mut().filter(|slot| !is_flow(slot.key)) {
            slot.count = slot.count.saturating_sub(self.losses.get(&slot.key).copied().unwrap_or(0));
        }
        for netns in &mut sample.netns {
            if let Some(known) = self.kernel.get(&netns.id) {
                netns.before = less(netns.before, known);
                netns.after = less(netns.after, known);
            }
        }
        for cause in 0..CAUSES {
            sample.overflow[cause] = sample.overflow[cause].saturating_sub(self.overflow[cause]);
            sample.lost_events[cause] = sample.lost_events[cause].saturating_sub(self.lost_events[cause]);
        }
        sample.ambiguous = sample.ambiguous.saturating_sub(self.ambiguous);
    }
}

fn less(counters: KernelCounters, by: &KernelCounters) -> KernelCounters {
    let KernelCounters { drop, early_drop, insert_failed, chaintoolong } = counters;
    KernelCounters {
        drop: drop.saturating_sub(by.drop),
        early_drop: early_drop.saturating_sub(by.early_drop),
        insert_failed: insert_failed.saturating_sub(by.insert_failed),
        chaintoolong: chaintoolong.saturating_sub(by.chaintoolong),
    }
}
