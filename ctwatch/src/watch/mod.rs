//! A live watch: the probe in the kernel, the netns it covers, and one consistent sample per tick.
//! It reads and reports; what the numbers mean is `state`'s business.

mod baseline;
mod census;
mod events;
pub use events::Observed;
mod eviction_matcher;
mod flows;
mod jiffies;
mod netns_tracker;
mod pending_owners;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result};
use ctwatch_common::cause::CAUSES;
use ctwatch_common::classify::Counters;
use ctwatch_common::slot::{KIND_FLOWS, SlotKey};

use crate::conntrack::{module, stat};
use crate::kernel::Kernel;
use crate::kernel::roots::Roots;
use crate::model::{Clock, KernelCounters, NetnsId, NetnsSample, Sample, SlotSample};
use crate::netns::{self, Netns};
use crate::owner::OwnerResolver;
use crate::probe::plan::{Attachment, ProbeOptions, plan};
use crate::probe::sync::Baseline;
use crate::probe::{Probe, offsets};
use baseline::BaselineCounters;
use census::Censuses;
use eviction_matcher::EvictionMatcher;
use jiffies::Jiffies;
use netns_tracker::RESCAN_INTERVAL;
use pending_owners::PendingOwners;
use tokio::io::unix::AsyncFd;

/// How to watch.
#[derive(Clone, Debug)]
pub struct WatchConfig {
    /// Where /proc and /sys are.
    pub roots: Roots,
    /// Which programs, if any (`None`: the kernel's counters only).
    pub probe_options: Option<ProbeOptions>,
    /// For aya-log in the kernel: 0 is off.
    pub log_level: u8,
}

/// What was found when the watch began.
#[derive(Clone, Debug)]
pub struct StartInfo {
    /// What is attached.
    pub attachments: Vec<Attachment>,
    /// What can't be seen here.
    pub notes: Vec<String>,
    /// What the kernel had counted before.
    pub since_boot: KernelCounters,
}

/// What a tick found out besides numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModuleChange {
    /// nf_conntrack was unloaded.
    Unloaded,
    /// It is back, and the programs are attached again.
    Reattached,
}

/// Totals of programs that are gone with the module they watched.
#[derive(Clone, Debug, Default)]
struct EarlierTotals {
    slots: Vec<SlotSample>,
    overflow: [u64; CAUSES],
    lost_events: [u64; CAUSES],
    ambiguous: u64,
}

/// A running watch.
pub struct Watch {
    settings: WatchConfig,
    probe: Option<Probe>,
    module: Option<u64>,
    namespaces: BTreeMap<NetnsId, Netns>,
    baselines: BTreeMap<NetnsId, BaselineCounters>,
    gone: BTreeMap<NetnsId, Netns>,
    /// How many namespaces with this inode number have gone.
    generations: HashMap<u32, u32>,
    /// What a slot of flows held when the netns went whose inode number it bears.
    flow_totals_at_reuse: HashMap<SlotKey, (u64, u64, u64)>,
    evictions: EvictionMatcher,
    pending_owners: PendingOwners,
    earlier: EarlierTotals,
    censuses: Censuses,
    /// The module was loaded again since the last sample.
    restarted: bool,
    clock: Clock,
    /// Only where single losses are shown.
    jiffies: Option<Jiffies>,
    /// Only where someone asks whose packets they were.
    owners: Option<OwnerResolver>,
    last_sample: Instant,
    last_rescan: Instant,
}

impl Watch {
    /// Attaches and takes the baseline. conntrack must be there.
    pub fn start(settings: WatchConfig, kernel: Kernel) -> Result<(Self, StartInfo)> {
        let now = Instant::now();
        let owners = settings
            .probe_options
            .filter(|probe_options| probe_options.owners)
            .map(|_| OwnerResolver::new(&settings.roots));
        let jiffies =
            settings.probe_options.filter(|probe_options| probe_options.detail).map(|_| Jiffies::default());
        let mut watch = Self {
            settings,
            probe: None,
            module: None,
            namespaces: BTreeMap::new(),
            baselines: BTreeMap::new(),
            gone: BTreeMap::new(),
            generations: HashMap::new(),
            flow_totals_at_reuse: HashMap::new(),
            evictions: EvictionMatcher::default(),
            pending_owners: PendingOwners::default(),
            earlier: EarlierTotals::default(),
            censuses: Censuses::default(),
            restarted: false,
            clock: Clock::now(),
            jiffies,
            owners,
            last_sample: now,
            last_rescan: now,
        };
        let start = watch.attach(kernel)?;
        Ok((watch, start))
    }

    fn attach(&mut self, kernel: Kernel) -> Result<StartInfo> {
        self.module = module::loaded(&self.settings.roots);
        self.namespaces = netns::discover()?;
        let mut start =
            StartInfo { attachments: Vec::new(), notes: Vec::new(), since_boot: KernelCounters::default() };
        let mut bases = BTreeMap::new();
        if let Some(probe_options) = self.settings.probe_options {
            let (symbols, btf) = kernel.both()?;
            let mut config = offsets::resolve(btf, symbols)?;
            let plan = plan(symbols, probe_options, &mut config).map_err(anyhow::Error::msg)?;
            drop(kernel);
            let room = (self.namespaces.len() * 4).next_power_of_two().max(256);
            let probe = Probe::attach(&plan, &config, u32::try_from(room)?, self.settings.log_level)?;
            for netns in self.namespaces.values() {
                // A netns that died since it was discovered has nothing to say.
                if let Ok(taken) = probe.register_netns(netns, Baseline::Current) {
                    bases.insert(netns.id, taken.bases);
                }
            }
            anyhow::ensure!(
                !bases.is_empty(),
                "no netns could be synchronised: {}",
                self.why_no_netns(&probe)
            );
            probe.shared.start_watching();
            give_back_memory();
            start.attachments = plan.attachments;
            start.notes = plan.notes;
            self.probe = Some(probe);
        } else {
            for (id, stat) in stat::read_all(self.namespaces.values())? {
                if let Ok(stat) = stat {
                    bases.insert(id, stat.cpus.into_iter().map(Some).collect());
                }
            }
        }
        for (id, base) in bases {
            add_up(&mut start.since_boot, base.iter().flatten());
            match self.baselines.get_mut(&id) {
                Some(baseline) => baseline.restart(base),
                None => drop(self.baselines.insert(id, BaselineCounters::new(base, false))),
            }
        }
        Ok(start)
    }

    fn why_no_netns(&self, probe: &Probe) -> String {
        let mut reasons =
            self.namespaces.values().filter_map(|netns| probe.register_netns(netns, Baseline::Current).err());
        reasons.next().map_or_else(|| "none was found".to_owned(), |error| format!("{error:#}"))
    }

    /// The ring buffer's readiness, while there is one: readable once much is waiting.
    pub fn ring(&self) -> Result<Option<AsyncFd<OwnedFd>>> {
        self.probe.as_ref().map(Probe::ring).transpose()
    }

    /// Follows conntrack when it is unloaded and loaded again.
    pub fn follow_module(&mut self) -> Result<Option<ModuleChange>> {
        let module = module::loaded(&self.settings.roots);
        if module == self.module {
            return Ok(None);
        }
        let was_loaded = self.module.is_some();
        if was_loaded {
            self.keep_totals();
        }
        self.module = module;
        if module.is_none() {
            return Ok(Some(ModuleChange::Unloaded));
        }
        self.censuses.restart();
        self.restarted = true;
        self.attach(Kernel::read(&self.settings.roots))
            .context("attaching again after nf_conntrack was loaded again")?;
        Ok(Some(ModuleChange::Reattached))
    }

    /// Keeps the totals of the programs that die with the module.
    fn keep_totals(&mut self) {
        // The next programs start to tell namespaces of one inode number apart from the beginning.
        self.generations.clear();
        self.flow_totals_at_reuse.clear();
        if let Some(mut probe) = self.probe.take() {
            self.earlier.slots.extend(probe.shared.slots());
            let (lost, overflow, ambiguous) = probe.shared.totals();
            for cause in 0..CAUSES {
                self.earlier.lost_events[cause] += lost[cause];
                self.earlier.overflow[cause] += overflow[cause];
            }
            self.earlier.ambiguous += ambiguous;
        }
    }

    /// Reads everything: the kernel's counters, ours, the kernel's again.
    pub fn sample(&mut self) -> Result<Sample> {
        self.clock = Clock::now();
        if let Some(probe) = &mut self.probe {
            probe.write_diagnostics();
        }
        let now = Instant::now();
        let interval_s = now.duration_since(self.last_sample).as_secs_f64();
        self.last_sample = now;
        if now.duration_since(self.last_rescan) >= RESCAN_INTERVAL {
            self.rescan_netns();
        }
        let mut before = self.read_counters()?;
        let mut slots = self.slots();
        if slots.iter().any(|slot| !self.baselines.contains_key(&NetnsId::from_packed(slot.key.netns))) {
            // A loss in a netns that came up since the last look.
            self.rescan_netns();
            before = self.read_counters()?;
            slots = self.slots();
        }
        let (lost_events, overflow, ambiguous) = self.totals();
        let after = self.read_counters()?;
        let max = stat::max().ok();
        let netns = self
            .baselines
            .iter()
            .filter_map(|(id, baseline)| {
                let netns = self.namespaces.get(id).or_else(|| self.gone.get(id))?;
                Some(NetnsSample {
                    id: *id,
                    name: netns.name.clone(),
                    container: netns.container.clone(),
                    count: baseline.entries,
                    max,
                    before: before.get(id).copied().unwrap_or_else(|| baseline.total()),
                    after: after.get(id).copied().unwrap_or_else(|| baseline.total()),
                    gone: self.gone.contains_key(id),
                    complete: baseline.complete,
                })
            })
            .collect();
        let flows = self.flows(&slots);
        let time = self.clock.time();
        Ok(Sample { time, interval_s, netns, slots, overflow, lost_events, ambiguous, flows })
    }

    /// Counts losses that the kernel counted but no program saw. For when things are quiet: a loss that is just
    /// being seen would lose its tuple.
    pub fn reconcile(&self) {
        let Some(probe) = &self.probe else { return };
        for netns in self.namespaces.values() {
            // A netns that dies meanwhile takes its counters along.
            let _ = probe.reconcile(netns);
        }
    }

    /// All slots. Those that count flows bear inode numbers: they belong to the netns that has the number now, if any.
    fn slots(&mut self) -> Vec<SlotSample> {
        let mut slots = self.raw_slots();
        if self.generations.is_empty() {
            return slots;
        }
        slots.retain_mut(|slot| {
            if slot.key.kind != KIND_FLOWS {
                return true;
            }
            *slot = self.since_inode_reuse(*slot);
            let id = self.present_id(slot.key.netns);
            slot.key.netns = id.packed();
            self.namespaces.contains_key(&id)
        });
        slots
    }

    fn raw_slots(&mut self) -> Vec<SlotSample> {
        let mut slots = self.earlier.slots.clone();
        if let Some(probe) = &mut self.probe {
            slots.extend(probe.shared.slots());
        }
        slots
    }

    fn totals(&self) -> ([u64; CAUSES], [u64; CAUSES], u64) {
        let mut lost_events = self.earlier.lost_events;
        let mut overflow = self.earlier.overflow;
        let mut ambiguous = self.earlier.ambiguous;
        if let Some(probe) = &self.probe {
            let (more_lost, more_overflow, more_ambiguous) = probe.shared.totals();
            for cause in 0..CAUSES {
                lost_events[cause] += more_lost[cause];
                overflow[cause] += more_overflow[cause];
            }
            ambiguous += more_ambiguous;
        }
        (lost_events, overflow, ambiguous)
    }
}

/// Reading the kernel's types took megabytes that a long watch must not hold on to.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it only returns free pages to the kernel.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn add_up<'a>(total: &mut KernelCounters, cpus: impl Iterator<Item = &'a Counters>) {
    for cpu in cpus {
        total.drop += u64::from(cpu.drop);
        total.early_drop += u64::from(cpu.early_drop);
        total.insert_failed += u64::from(cpu.insert_failed);
        total.chaintoolong += u64::from(cpu.chaintoolong);
    }
}
