//! A live watch: the probe in the kernel, the netns it covers, and one consistent sample per tick.
//! It reads and reports; what the numbers mean is `state`'s business.

mod baseline;
mod census;
mod doors;
mod eviction_matcher;
mod flows;
mod jiffies;
mod late_cpus;
mod losses;
mod netns_tracker;
mod pending_owners;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ctwatch_common::cause::CAUSES;
use ctwatch_common::classify::Counters;
use ctwatch_common::config::Config;

use crate::conntrack::{module, stat};
use crate::kernel::Kernel;
use crate::kernel::release::release_number;
use crate::kernel::roots::Roots;
use crate::kernel::symbols::Symbols;
use crate::memory;
use crate::model::{Clock, CounterSource, KernelCounters, Loss, NetnsId, Sample, SlotSample};
use crate::probe::doors::{self as places, Loaded};
use crate::probe::object::{Loader, MapSizes};
use crate::probe::plan::{Attachment, MissingHook, Plan, ProbeOptions, RawTpReentrancy, plan};
use crate::probe::refusal::HookRefused;
use crate::probe::room::NetnsRoom;
use crate::probe::shared::{FlowTotals, Taken};
use crate::probe::sync::Baseline;
use crate::probe::{Probe, offsets, shapes};
use census::{Censuses, Moved};
use late_cpus::{LateCpus, SPARE_LATE_BASES};
use losses::LossPipeline;
pub use losses::Observed;
use netns_tracker::{NetnsTracker, Totals};
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
    /// What can't be attached, and what that costs.
    pub missing: Vec<MissingHook>,
    /// What can't be seen here.
    pub notes: Vec<String>,
    /// What the kernel had counted before.
    pub since_boot: KernelCounters,
    /// Where its counters are read; `None` if they can't be read in any netns.
    pub counters_from: Option<CounterSource>,
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
    /// Losses, until the next sample takes them.
    losses: Vec<SlotSample>,
    /// Flows, until other programs carry on with them.
    flows: FlowTotals,
    overflow: [u64; CAUSES],
    lost_events: [u64; CAUSES],
    ambiguous: u64,
}

/// A running watch.
pub struct Watch {
    config: WatchConfig,
    probe: Option<Probe>,
    module: Option<u64>,
    /// The modules of which the programs know where they free packets.
    doors: Loaded,
    netns: NetnsTracker,
    losses: LossPipeline,
    censuses: Censuses,
    earlier: EarlierTotals,
    /// Inserts and deletes of flows whose keys were retired.
    retired_flows: HashMap<NetnsId, Moved>,
    /// The module was loaded again since the last sample.
    restarted: bool,
    last_sample: Instant,
    crowding_told: bool,
    unnumbered_told: bool,
    too_many_told: bool,
}

/// What each CPU had counted in a netns when its watch began; `None` for a CPU that was offline.
type Bases = Vec<Option<Counters>>;

impl Watch {
    /// Attaches and takes the baseline. conntrack must be there.
    pub fn start(config: WatchConfig, kernel: Kernel, loader: Option<Loader>) -> Result<(Self, StartInfo)> {
        let mut watch = Self {
            losses: LossPipeline::new(&config.roots, config.probe_options),
            config,
            probe: None,
            module: None,
            doors: Loaded::default(),
            netns: NetnsTracker::default(),
            censuses: Censuses::default(),
            earlier: EarlierTotals::default(),
            retired_flows: HashMap::new(),
            restarted: false,
            last_sample: Instant::now(),
            crowding_told: false,
            unnumbered_told: false,
            too_many_told: false,
        };
        let start = watch.attach(kernel, loader)?;
        Ok((watch, start))
    }

    fn attach(&mut self, kernel: Kernel, loader: Option<Loader>) -> Result<StartInfo> {
        self.module = module::loaded(&self.config.roots);
        self.netns.discover_all()?;
        let mut start = StartInfo {
            attachments: Vec::new(),
            missing: Vec::new(),
            notes: Vec::new(),
            since_boot: KernelCounters::default(),
            counters_from: None,
        };
        let bases = match self.config.probe_options {
            Some(options) => self.attach_programs(options, kernel, loader, &mut start)?,
            None => {
                self.netns.numbers_generations = true;
                self.present_counters()?
            }
        };
        for (id, bases) in bases {
            add_up(&mut start.since_boot, bases.iter().flatten());
            self.netns.begin(id, bases);
        }
        self.read_counters()?;
        start.counters_from = self.netns.counters_from;
        Ok(start)
    }

    /// Loads and attaches the programs; what each netns's counters stood at in that instant is the baseline.
    fn attach_programs(
        &mut self,
        options: ProbeOptions,
        kernel: Kernel,
        mut loader: Option<Loader>,
        start: &mut StartInfo,
    ) -> Result<BTreeMap<NetnsId, Bases>> {
        let namespaces = &self.netns.namespaces;
        let symbols = kernel.both()?.0;
        let init_net = symbols.data("init_net").map(|symbol| symbol.address);
        let modules = places::known(places::loaded(&self.config.roots), symbols);
        let doors = places::find(symbols, release_number(&self.config.roots.release()));
        let late = LateCpus::look(&self.config.roots, namespaces)?;
        let sizes = |config: &Config| MapSizes {
            netns: NetnsRoom::new(namespaces.len(), config.cpus).namespaces,
            late_bases: late.nonzero() + SPARE_LATE_BASES,
        };
        let (plan, mut probe) = attach_what_attaches(&kernel, options, |plan, symbols, config| {
            Probe::attach(loader.take(), plan, symbols, config, sizes(config), self.config.log_level)
        })?;
        drop(kernel);
        self.doors = modules;
        probe.shared.set_doors(&doors);
        let mut bases = BTreeMap::new();
        self.netns.initial = init_net.and_then(|address| probe.netns_at(address).ok());
        if self.netns.initial.is_some() {
            self.netns.discover_all()?;
        }
        let namespaces = &self.netns.namespaces;
        for netns in namespaces.values() {
            // A netns that died since it was discovered has nothing to say.
            if let Ok(registered) = probe.register_netns(netns, Baseline::Current) {
                bases.insert(netns.id, registered.bases);
            }
        }
        // The initial netns was there before us also where it can't be entered, as from within a container. Taken for a new one, what it
        // had counted would be ours if that was little.
        if let Some(address) = init_net
            && self.netns.initial.is_some_and(|initial| !bases.contains_key(&initial))
        {
            let _ = probe.begin_now_at(address);
        }
        if bases.is_empty() {
            let mut reasons =
                namespaces.values().filter_map(|netns| probe.register_netns(netns, Baseline::Current).err());
            let why =
                reasons.next().map_or_else(|| "none was found".to_owned(), |error| format!("{error:#}"));
            bail!("no netns could be synchronised: {why}");
        }
        self.netns.ends_are_told = plan.has("nf_conntrack_pernet_exit");
        self.netns.sums_all_cpus = late.complete(&mut probe, namespaces, &mut bases)?;
        probe.shared.carry_on(std::mem::take(&mut self.earlier.flows));
        probe.shared.start_watching();
        // Reading the kernel's types took megabytes that a long watch must not hold on to.
        memory::give_back();
        start.attachments = plan.attachments;
        start.missing = plan.missing;
        start.notes = plan.notes;
        self.probe = Some(probe);
        Ok(bases)
    }

    /// The baseline where no programs run.
    fn present_counters(&self) -> Result<BTreeMap<NetnsId, Bases>> {
        let readings = stat::read_all(self.netns.namespaces.values(), None)?;
        let bases = |stat: stat::Stat| stat.cpus.into_iter().map(Some).collect();
        Ok(readings.into_iter().filter_map(|(id, stat)| Some((id, bases(stat.ok()?)))).collect())
    }

    /// The ring buffer's readiness, while there is one: readable once much is waiting.
    pub fn ring(&self) -> Result<Option<AsyncFd<OwnedFd>>> {
        self.probe.as_ref().map(Probe::ring).transpose()
    }

    /// Follows conntrack when it is unloaded and loaded again.
    pub fn follow_module(&mut self) -> Result<Option<ModuleChange>> {
        let module = module::loaded(&self.config.roots);
        if module == self.module {
            return Ok(None);
        }
        let was_loaded = self.module.is_some();
        if was_loaded {
            self.netns.forget_generations();
            if let Some(probe) = self.probe.take() {
                self.earlier.keep(&probe);
            }
        }
        self.module = module;
        if module.is_none() {
            return Ok(Some(ModuleChange::Unloaded));
        }
        self.censuses.restart();
        self.restarted = true;
        self.attach(Kernel::read(&self.config.roots), None)
            .context("attaching again after nf_conntrack was loaded again")?;
        Ok(Some(ModuleChange::Reattached))
    }

    /// Hands over at most `limit` events; see [`Observed`]. Evictions come a moment later.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(Observed<'_>)) -> usize {
        let Self { probe, losses, netns, .. } = self;
        let mut gone = Vec::new();
        let taken = losses.drain(probe.as_mut(), &netns.namespaces, limit, &mut gone, &mut each);
        for (id, counters) in gone {
            self.netns.retire(id, counters);
            // By inode number: another netns may have it next.
            if let Some(probe) = &self.probe {
                probe.shared.restart_flows(id.inode());
            }
        }
        taken
    }

    /// Hands over the losses that were held back.
    pub fn flush_pending(&mut self, mut each: impl FnMut(&Loss)) {
        self.losses.flush(&self.netns.namespaces, &mut each);
    }

    /// Reads everything: the kernel's counters, ours, the kernel's again.
    pub fn sample(&mut self) -> Result<Sample> {
        self.losses.clock = Clock::now();
        if let Some(probe) = &mut self.probe {
            probe.write_diagnostics();
        }
        let now = Instant::now();
        let interval_s = now.duration_since(self.last_sample).as_secs_f64();
        self.last_sample = now;
        if self.netns.is_due(now) {
            self.rescan_netns(false);
        }
        let mut before = self.read_counters()?;
        let Taken { mut slots, mut retired } = self.take_slots();
        // A loss in a netns that came up since the last rescan; or an old process moved to it, or made it.
        for thorough in [false, true] {
            if !self.netns.has_strangers(slots.iter().chain(&retired)) {
                break;
            }
            self.rescan_netns(thorough);
            before = self.read_counters()?;
            let again = self.take_slots();
            slots = again.slots;
            retired.extend(again.retired);
        }
        self.netns.give_up_on_strangers(slots.iter().chain(&retired));
        let (lost_events, overflow, ambiguous) = self.earlier.with(self.probe.as_ref());
        let after = self.read_counters()?;
        let netns = self.netns.samples(&before, &after);
        self.netns.forget_gone(now, slots.iter().chain(&retired));
        let flows = self.flows(&retired, &slots);
        let (time, mono_us) = (self.losses.clock.time(), self.losses.clock.monotonic_us());
        let counters_from = self.netns.counters_from;
        Ok(Sample {
            time,
            mono_us,
            interval_s,
            netns,
            counters_from,
            slots,
            retired,
            overflow,
            lost_events,
            ambiguous,
            flows,
        })
    }

    /// Whether all tables that could be read have no limit.
    #[must_use]
    pub fn has_no_limit(&self) -> bool {
        self.netns.has_no_limit()
    }

    /// Whether more namespaces lose packets than the programs have room for: once.
    pub fn take_crowding(&mut self) -> bool {
        let crowded = self.probe.as_ref().is_some_and(|probe| probe.shared.crowded() > 0);
        crowded && !std::mem::replace(&mut self.crowding_told, true)
    }

    /// Whether namespaces can't be told apart any more from earlier ones with the same inode number; said once.
    pub fn take_unnumbered(&mut self) -> bool {
        let unnumbered = self.probe.as_ref().is_some_and(|probe| probe.shared.unnumbered() > 0);
        unnumbered && !std::mem::replace(&mut self.unnumbered_told, true)
    }

    /// Whether there are more namespaces than are looked into; said once.
    pub fn take_too_many(&mut self) -> bool {
        self.netns.has_too_many && !std::mem::replace(&mut self.too_many_told, true)
    }

    /// Counts losses that the kernel counted but no program saw. For when things are quiet: a loss that is just
    /// being seen would lose its tuple.
    pub fn reconcile(&self) {
        let Some(probe) = &self.probe else { return };
        for netns in self.netns.namespaces.values() {
            // A netns that dies meanwhile takes its counters along.
            let _ = probe.reconcile(netns);
        }
    }

    fn rescan_netns(&mut self, thorough: bool) {
        self.netns.rescan(self.probe.as_ref(), thorough);
        self.losses.namespaces_changed();
    }

    fn read_counters(&mut self) -> Result<Totals> {
        if self.module.is_none() {
            return Ok(Totals::new());
        }
        self.netns.read_counters(&self.config.roots)
    }

    /// All counters, each of its netns.
    fn take_slots(&mut self) -> Taken {
        let mut taken = match &self.probe {
            Some(probe) => probe.shared.take(),
            None => Taken { slots: self.earlier.flows(), retired: Vec::new() },
        };
        taken.retired.append(&mut self.earlier.losses);
        self.netns.assign(&mut taken.slots);
        self.netns.assign(&mut taken.retired);
        taken
    }
}

impl EarlierTotals {
    /// Keeps the totals of programs that die with the module.
    fn keep(&mut self, probe: &Probe) {
        let Taken { slots, retired } = probe.shared.take();
        self.losses.extend(slots.into_iter().filter(|slot| !slot.counts_flows()));
        self.losses.extend(retired);
        self.flows = probe.shared.flow_totals();
        let (lost_events, overflow, ambiguous) = self.with(Some(probe));
        (self.lost_events, self.overflow, self.ambiguous) = (lost_events, overflow, ambiguous);
    }

    fn flows(&self) -> Vec<SlotSample> {
        self.flows.iter().map(|(key, counts)| SlotSample::of_flows(*key, *counts)).collect()
    }

    /// These and the present programs' totals: events lost, losses without a slot, uncertain claims.
    fn with(&self, probe: Option<&Probe>) -> ([u64; CAUSES], [u64; CAUSES], u64) {
        let (mut lost_events, mut overflow, mut ambiguous) =
            (self.lost_events, self.overflow, self.ambiguous);
        if let Some(probe) = probe {
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

/// Which hooks this kernel doesn't have or refuses, all options on: tried, and taken away again.
pub fn missing_hooks(kernel: &Kernel, raw_tracepoints: RawTpReentrancy) -> Result<Vec<MissingHook>> {
    let options = ProbeOptions::everything(raw_tracepoints);
    let (plan, ()) = attach_what_attaches(kernel, options, |plan, symbols, config| {
        Probe::try_hooks(config, symbols, &plan.attachments)
    })?;
    Ok(plan.missing)
}

/// Plans, and plans again without each hook that is refused, until all the others attach.
fn attach_what_attaches<T>(
    kernel: &Kernel,
    mut options: ProbeOptions,
    mut attach: impl FnMut(&Plan, &Symbols, &Config) -> Result<T>,
) -> Result<(Plan, T)> {
    let (symbols, btf) = kernel.both()?;
    let mut symbols = symbols.clone();
    for other in kernel.functions().map(|functions| shapes::compare(&functions).others).unwrap_or_default() {
        other.do_without(&mut symbols, &mut options)?;
    }
    loop {
        let mut config = offsets::resolve(btf, &symbols)?;
        let plan = plan(&symbols, options, &mut config).map_err(anyhow::Error::msg)?;
        match attach(&plan, &symbols, &config) {
            Ok(attached) => return Ok((plan, attached)),
            Err(error) => error.downcast::<HookRefused>()?.do_without(&mut symbols, &mut options)?,
        }
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
