//! Network namespaces come and go while we watch, and a later one may have an earlier one's inode number.
//! Each has a ledger of what the kernel counted; a netns that is gone keeps its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use ctwatch_common::event::LossEvent;
use ctwatch_common::slot::KIND_FLOWS;

use super::Watch;
use super::ledger::BaselineCounters;
use crate::conntrack::module;
use crate::conntrack::stat::{self, Stat};
use crate::model::{KernelCounters, NetnsId};
use crate::netns::{self, Netns};
use crate::probe::sync::Baseline;

/// How often to look for netns nobody has lost a packet in.
pub(super) const LOOK_AROUND: Duration = Duration::from_secs(5);

impl Watch {
    /// A netns is gone, and this is the last that its counters said.
    pub(super) fn bury(&mut self, event: &LossEvent) {
        let id = NetnsId(event.netns);
        let (inode, life) = (id.inode(), id.generation());
        let lives = self.lives.entry(inode).or_default();
        *lives = (*lives).max(life + 1);
        let word = |bytes: &[u8; 16], at: usize| {
            u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight of sixteen bytes"))
        };
        // One that nobody had noticed yet came up while we watched: all it has counted is ours.
        let ledger = self.ledgers.entry(id).or_insert_with(|| BaselineCounters::new(Vec::new(), true));
        ledger.finish(KernelCounters {
            drop: word(&event.src, 0),
            early_drop: word(&event.src, 8),
            insert_failed: word(&event.dst, 0),
            chaintoolong: word(&event.dst, 8),
        });
        for slot in self.raw_slots() {
            if slot.key.kind == KIND_FLOWS && slot.key.netns == inode {
                self.flows_before.insert(slot.key, (slot.count, slot.deletes, slot.failed));
            }
        }
        let unnoticed = || Netns { id, path: PathBuf::new(), name: None, container: None };
        self.gone.insert(id, self.places.remove(&id).unwrap_or_else(unnoticed));
    }

    /// The kernel's counters since the baseline, by netns.
    pub(super) fn read_counters(&mut self) -> Result<BTreeMap<NetnsId, KernelCounters>> {
        if self.module.is_none() {
            return Ok(BTreeMap::new());
        }
        let readings = stat::read_all(self.places.values())?;
        let mut totals = BTreeMap::new();
        for (id, stat) in readings {
            match stat {
                Ok(stat) => drop(totals.insert(id, self.enter_into_ledger(id, &stat))),
                Err(_) => self.lose(id),
            }
        }
        Ok(totals)
    }

    fn enter_into_ledger(&mut self, id: NetnsId, stat: &Stat) -> KernelCounters {
        self.ledgers.entry(id).or_insert_with(|| BaselineCounters::new(Vec::new(), true)).update(stat)
    }

    /// A netns can't be read: unless another process still leads there, it is gone.
    fn lose(&mut self, id: NetnsId) {
        if module::loaded(&self.settings.roots).is_none() {
            return;
        }
        if let Some(place) = self.places.remove(&id) {
            self.gone.insert(id, place);
            self.last_look = Instant::now() - LOOK_AROUND;
        }
    }

    /// Finds new netns and makes them known to the programs.
    pub(super) fn look_around(&mut self) {
        self.last_look = Instant::now();
        let Ok(found) = netns::discover() else { return };
        if let Some(owners) = &mut self.owners {
            owners.places_changed();
        }
        for (id, mut place) in found {
            place.id = self.present_id(id.inode());
            if let Some(known) = self.places.get_mut(&place.id) {
                *known = place;
                continue;
            }
            let taken =
                self.probe.as_ref().and_then(|probe| probe.register_netns(&place, Baseline::Zero).ok());
            if let Some(taken) = &taken {
                // The programs may know already that the netns before it is gone, and have yet to tell.
                place.id = taken.id;
                self.lives.insert(taken.id.inode(), taken.id.generation());
            }
            let id = place.id;
            self.gone.remove(&id);
            let bases = taken.map_or_else(Vec::new, |taken| taken.bases);
            self.ledgers.entry(id).or_insert_with(|| BaselineCounters::new(bases, true));
            self.places.insert(id, place);
        }
    }

    /// The netns that has this inode number now.
    pub(super) fn present_id(&self, inode: u32) -> NetnsId {
        NetnsId::new(inode, self.lives.get(&inode).copied().unwrap_or(0))
    }
}
