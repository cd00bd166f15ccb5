//! What the tables hold: a census now and then, and counted inserts and deletes in between.
//! A census runs beside the watch and never holds it up.

use std::collections::HashMap;

use super::Watch;
use super::census::Moved;
use crate::model::{FlowSample, NetnsId, Protocol, SlotSample};

impl Watch {
    /// Starts counting what the tables hold, if flows are counted: that goes on beside the watch.
    pub fn start_census(&mut self) {
        let mut slots =
            self.probe.as_ref().map_or_else(|| self.earlier.flows(), |probe| probe.shared.flows());
        self.netns.assign(&mut slots);
        let moved = self.moved(&slots);
        self.start_due_censuses(&moved);
    }

    /// Counts again what the tables hold, for someone who begins anew.
    pub fn restart_census(&mut self) {
        self.censuses.restart();
    }

    /// Why tables can't be counted, once.
    pub fn take_census_error(&mut self) -> Option<String> {
        self.censuses.trouble()
    }

    /// What a sample says of flows. `retired` and `slots` are those of the sample.
    pub(super) fn flows(&mut self, retired: &[SlotSample], slots: &[SlotSample]) -> FlowSample {
        self.retired_flows.retain(|id, _| self.netns.namespaces.contains_key(id));
        add_moved(&mut self.retired_flows, retired);
        let moved = self.moved(slots);
        let mut done = self.censuses.collect(net_of, &moved);
        // A netns may have died, and its inode number gone to another one, while its table was read.
        done.retain(|census| self.netns.namespaces.contains_key(&census.netns));
        self.start_due_censuses(&moved);
        FlowSample {
            censuses: done,
            overflow: self.probe.as_ref().map_or(0, |probe| probe.shared.flows_overflow()),
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

    /// Inserts and deletes by netns, those of keys without a slot included.
    fn moved(&self, slots: &[SlotSample]) -> HashMap<NetnsId, Moved> {
        let mut sums = self.retired_flows.clone();
        add_moved(&mut sums, slots);
        sums
    }
}

/// Inserts less deletes per key of this netns, of slots as programs count them.
fn net_of(id: NetnsId, raw: &[SlotSample]) -> HashMap<(Protocol, u16), i64> {
    let mut net = HashMap::new();
    for SlotSample { key, count, deletes, failed } in raw.iter().filter(|slot| slot.key.netns == id.inode()) {
        *net.entry((Protocol(key.proto), key.port)).or_default() +=
            *count as i64 - *failed as i64 - *deletes as i64;
    }
    net
}

/// Adds inserts and deletes by netns.
fn add_moved(sums: &mut HashMap<NetnsId, Moved>, slots: &[SlotSample]) {
    for slot in slots.iter().filter(|slot| slot.counts_flows()) {
        let moved = sums.entry(NetnsId::from_packed(slot.key.netns)).or_default();
        moved.inserts += slot.count.saturating_sub(slot.failed);
        moved.deletes += slot.deletes;
    }
}
