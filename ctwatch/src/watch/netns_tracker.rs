//! Network namespaces come and go while we watch, and a later one may have an earlier one's inode number.
//! Each has a baseline of what the kernel counted; a netns that is gone keeps its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use ctwatch_common::slot::KIND_FLOWS;

use super::Watch;
use super::baseline::BaselineCounters;
use crate::conntrack::module;
use crate::conntrack::stat::{self, Stat};
use crate::model::{KernelCounters, NetnsId};
use crate::netns::{self, Netns};
use crate::probe::sync::Baseline;

/// How often to look for netns nobody has lost a packet in.
pub(super) const RESCAN_INTERVAL: Duration = Duration::from_secs(5);

impl Watch {
    /// A netns is gone, and this is the last that its counters said.
    pub(super) fn retire(&mut self, id: NetnsId, counters: KernelCounters) {
        let inode = id.inode();
        let generation = self.generations.entry(inode).or_default();
        *generation = (*generation).max(id.generation() + 1);
        // One that nobody had noticed yet came up while we watched: all it has counted is ours.
        let baseline = self.baselines.entry(id).or_insert_with(|| BaselineCounters::new(Vec::new(), true));
        baseline.finish(counters);
        for slot in self.raw_slots() {
            if slot.key.kind == KIND_FLOWS && slot.key.netns == inode {
                self.flow_totals_at_reuse.insert(slot.key, (slot.count, slot.deletes, slot.failed));
            }
        }
        let unnoticed = || Netns { id, path: PathBuf::new(), name: None, container: None };
        self.gone.insert(id, self.namespaces.remove(&id).unwrap_or_else(unnoticed));
    }

    /// The kernel's counters since the baseline, by netns.
    pub(super) fn read_counters(&mut self) -> Result<BTreeMap<NetnsId, KernelCounters>> {
        if self.module.is_none() {
            return Ok(BTreeMap::new());
        }
        let readings = stat::read_all(self.namespaces.values())?;
        let mut totals = BTreeMap::new();
        for (id, stat) in readings {
            match stat {
                Ok(stat) => drop(totals.insert(id, self.accumulate(id, &stat))),
                Err(_) => self.mark_unreadable(id),
            }
        }
        Ok(totals)
    }

    fn accumulate(&mut self, id: NetnsId, stat: &Stat) -> KernelCounters {
        self.baselines.entry(id).or_insert_with(|| BaselineCounters::new(Vec::new(), true)).update(stat)
    }

    /// A netns can't be read: unless another process still leads there, it is gone.
    fn mark_unreadable(&mut self, id: NetnsId) {
        if module::loaded(&self.settings.roots).is_none() {
            return;
        }
        if let Some(netns) = self.namespaces.remove(&id) {
            self.gone.insert(id, netns);
            self.last_rescan = Instant::now() - RESCAN_INTERVAL;
        }
    }

    /// Finds new netns and makes them known to the programs.
    pub(super) fn rescan_netns(&mut self) {
        self.last_rescan = Instant::now();
        let Ok(found) = netns::discover() else { return };
        if let Some(owners) = &mut self.owners {
            owners.namespaces_changed();
        }
        for (id, mut netns) in found {
            netns.id = self.present_id(id.inode());
            if let Some(known) = self.namespaces.get_mut(&netns.id) {
                *known = netns;
                continue;
            }
            let taken =
                self.probe.as_ref().and_then(|probe| probe.register_netns(&netns, Baseline::Zero).ok());
            if let Some(taken) = &taken {
                // The programs may know already that the netns before it is gone, and have yet to tell.
                netns.id = taken.id;
                self.generations.insert(taken.id.inode(), taken.id.generation());
            }
            let id = netns.id;
            self.gone.remove(&id);
            let bases = taken.map_or_else(Vec::new, |taken| taken.bases);
            self.baselines.entry(id).or_insert_with(|| BaselineCounters::new(bases, true));
            self.namespaces.insert(id, netns);
        }
    }

    /// The netns that has this inode number now.
    pub(super) fn present_id(&self, inode: u32) -> NetnsId {
        NetnsId::new(inode, self.generations.get(&inode).copied().unwrap_or(0))
    }
}
