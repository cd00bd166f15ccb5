//! CPUs that are offline when a watch begins. Nothing runs on them, so their counters stand still until they come up, and
//! what they stand at is read like everyone else's: only the programs can't note it by themselves.

use std::collections::BTreeMap;

use anyhow::Result;
use ctwatch_common::classify::Counters;

use super::Bases;
use crate::conntrack::stat::{self, Stat};
use crate::kernel::cpus;
use crate::kernel::roots::Roots;
use crate::model::NetnsId;
use crate::netns::Netns;
use crate::probe::Probe;

/// Room for CPUs that go offline while a watch begins.
pub(super) const SPARE_LATE_BASES: u32 = 64;

/// The CPUs of this kernel, and what its counters said before any program was there.
#[derive(Debug, Default)]
pub(super) struct LateCpus {
    /// In the order of a netns's counters.
    possible: Vec<u32>,
    online: Vec<u32>,
    /// Read only where a CPU is offline.
    before: BTreeMap<NetnsId, Stat>,
}

impl LateCpus {
    pub fn look(roots: &Roots, namespaces: &BTreeMap<NetnsId, Netns>) -> Result<Self> {
        let possible = cpus::possible(&roots.sys)?;
        let online = cpus::online(&roots.sys)?;
        let mut before = BTreeMap::new();
        if online.len() < possible.len() {
            before = read(namespaces)?;
        }
        Ok(Self { possible, online, before })
    }

    /// How many counts the programs have to be told.
    pub fn nonzero(&self) -> u32 {
        let offline = |index: &usize| self.possible.get(*index).is_some_and(|cpu| !self.online.contains(cpu));
        let counts = self.before.values().flat_map(|stat| stat.cpus.iter().enumerate());
        let nonzero = counts.filter(|(index, cpu)| offline(index) && **cpu != Counters::default());
        u32::try_from(nonzero.count()).unwrap_or(u32::MAX - SPARE_LATE_BASES)
    }

    /// Fills in the bases of CPUs on which no program could note them, and tells the programs. Returns whether the last
    /// counts of a netns will be those of all CPUs.
    pub fn complete(
        mut self,
        probe: &mut Probe,
        namespaces: &BTreeMap<NetnsId, Netns>,
        bases: &mut BTreeMap<NetnsId, Bases>,
    ) -> Result<bool> {
        if bases.values().flatten().all(Option::is_some) {
            return Ok(true);
        }
        if self.before.is_empty() {
            // A CPU went offline since.
            self.before = read(namespaces)?;
        }
        let mut late = Vec::new();
        for (id, bases) in bases {
            let Some(stat) = self.before.get(id) else { continue };
            for (index, base) in bases.iter_mut().enumerate().filter(|(_, base)| base.is_none()) {
                let (Some(counted), Some(cpu)) = (stat.cpus.get(index), self.possible.get(index)) else {
                    continue;
                };
                *base = Some(*counted);
                if !late.contains(cpu) {
                    late.push(*cpu);
                }
                if *counted != Counters::default() {
                    probe.add_late_base(*id, *cpu, *counted)?;
                }
            }
        }
        Ok(late.into_iter().all(|cpu| probe.note_offset(cpu).is_ok()))
    }
}

fn read(namespaces: &BTreeMap<NetnsId, Netns>) -> Result<BTreeMap<NetnsId, Stat>> {
    let readings = stat::read_all(namespaces.values(), None)?;
    Ok(readings.into_iter().filter_map(|(id, stat)| Some((id, stat.ok()?))).collect())
}
