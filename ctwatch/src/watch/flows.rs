//! What the tables hold: a census now and then, and counted inserts and deletes in between.
//! A census runs beside the watch and never holds it up.

use std::collections::HashMap;

use super::Watch;
use super::census::Moved;
use crate::model::{FlowSample, NetnsId, SlotSample};
use crate::probe::Probe;

impl Watch {
    /// Starts counting what the tables hold, if flows are counted: that goes on beside the watch.
    pub fn start_census(&mut self) {
        let slots = self.slots();
        self.start_due_censuses(&moved(&slots));
    }

    /// Counts again what the tables hold, for someone who begins anew.
    pub fn restart_census(&mut self) {
        self.censuses.restart();
    }

    /// Why tables can't be counted, once.
    pub fn take_census_error(&mut self) -> Option<String> {
        self.censuses.trouble()
    }

    pub(super) fn flows(&mut self, slots: &[SlotSample]) -> FlowSample {
        let moved = moved(slots);
        let mut censuses = std::mem::take(&mut self.censuses);
        let mut done = censuses.collect(|id, raw| self.net_of(id, raw), &moved);
        self.censuses = censuses;
        // A netns may have died, and its inode number gone to another one, while its table was read.
        done.retain(|census| self.netns.namespaces.contains_key(&census.netns));
        self.start_due_censuses(&moved);
        let overflow = |probe: &Probe| probe.shared.control().flows_overflow.iter().sum();
        FlowSample {
            censuses: done,
            overflow: self.probe.as_ref().map_or(0, overflow),
            restarted: std::mem::take(&mut self.restarted),
        }
    }

    fn start_due_censuses(&mut self, moved: &HashMap<NetnsId, Moved>) {
        let Self { probe: Some(probe), censuses, netns, config, .. } = self else { return };
        if config.probe_options.is_some_and(|probe_options| probe_options.flows) {
            let entries = |id| netns.entries(id);
            censuses.start_due(&netns.namespaces, || probe.shared.flow_reader(), moved, entries);
        }
    }

    /// Inserts less deletes per key, of slots read in the present probe: in the terms of [`Watch::slots`].
    fn net_of(&self, id: NetnsId, raw: &[SlotSample]) -> HashMap<(u8, u16), i64> {
        let mut net = HashMap::new();
        for slot in raw.iter().chain(&self.earlier.slots) {
            if !slot.counts_flows() || slot.key.netns != id.inode() {
                continue;
            }
            let SlotSample { key, count, deletes, failed } = self.netns.since_inode_reuse(*slot);
            *net.entry((key.proto, key.port)).or_default() += count as i64 - failed as i64 - deletes as i64;
        }
        net
    }
}

/// Inserts and deletes by netns.
fn moved(slots: &[SlotSample]) -> HashMap<NetnsId, Moved> {
    let mut sums: HashMap<NetnsId, Moved> = HashMap::new();
    for slot in slots.iter().filter(|slot| slot.counts_flows()) {
        let moved = sums.entry(NetnsId::from_packed(slot.key.netns)).or_default();
        moved.inserts += slot.count.saturating_sub(slot.failed);
        moved.deletes += slot.deletes;
    }
    sums
}
