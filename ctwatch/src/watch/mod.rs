//! A live watch: the probe in the kernel, the netns it covers, and one consistent sample per tick.
//! It reads and reports; what the numbers mean is `state`'s business.

mod census;
mod clock;
mod jiffies;
mod ledger;
mod pairing;
mod unanswered;

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ctwatch_common::cause::CAUSES;
use ctwatch_common::classify::Counters;
use ctwatch_common::event::{KIND_NETNS_GONE, KIND_PUSHER, LossEvent, Record};
use ctwatch_common::slot::{KIND_FLOWS, SlotKey};

use crate::conntrack::netns::{self, Place};
use crate::conntrack::stat::Stat;
use crate::event::{FlowSample, KernelCounters, Loss, NetnsId, NetnsSample, Sample, SlotSample};
use crate::kernel::Kernel;
use crate::kernel::roots::Roots;
use crate::owner::Owners;
use crate::probe::plan::{Attachment, Wishes, plan};
use crate::probe::sync::Take;
use crate::probe::{Probe, offsets};
use census::{Censuses, Moved};
use clock::Clock;
use jiffies::Jiffies;
use ledger::Ledger;
use pairing::Pairing;
use tokio::io::unix::AsyncFd;
use unanswered::Unanswered;

/// How often to look for netns nobody has lost a packet in.
const LOOK_AROUND: Duration = Duration::from_secs(5);
/// How long the end of a run waits for listeners that are being looked for.
const LAST_ANSWERS: Duration = Duration::from_millis(300);

/// How to watch.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where /proc and /sys are.
    pub roots: Roots,
    /// Which programs, if any (`None`: the kernel's counters only).
    pub wishes: Option<Wishes>,
    /// For aya-log in the kernel: 0 is off.
    pub log_level: u8,
}

/// What was found when the watch began.
#[derive(Clone, Debug)]
pub struct Began {
    /// What is attached.
    pub attachments: Vec<Attachment>,
    /// What can't be seen here.
    pub notes: Vec<String>,
    /// What the kernel had counted before.
    pub since_boot: KernelCounters,
}

/// What a tick found out besides numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// nf_conntrack was unloaded.
    Unloaded,
    /// It is back, and the programs are attached again.
    Reattached,
}

/// Totals of programs that are gone with the module they watched.
#[derive(Clone, Debug, Default)]
struct Carried {
    slots: Vec<SlotSample>,
    overflow: [u64; CAUSES],
    lost_events: [u64; CAUSES],
    ambiguous: u64,
}

/// A running watch.
pub struct Watch {
    settings: Settings,
    probe: Option<Probe>,
    module: Option<u64>,
    places: BTreeMap<NetnsId, Place>,
    ledgers: BTreeMap<NetnsId, Ledger>,
    gone: BTreeMap<NetnsId, Place>,
    /// How many namespaces with this inode number have gone.
    lives: HashMap<u32, u32>,
    /// What a slot of flows held when the netns went whose inode number it bears.
    flows_before: HashMap<SlotKey, (u64, u64, u64)>,
    pairing: Pairing,
    unanswered: Unanswered,
    carried: Carried,
    censuses: Censuses,
    /// The module was loaded again since the last sample.
    restarted: bool,
    clock: Clock,
    /// Only where single losses are shown.
    jiffies: Option<Jiffies>,
    /// Only where someone asks whose packets they were.
    owners: Option<Owners>,
    last_sample: Instant,
    last_look: Instant,
}

/// Whether conntrack runs in this kernel; its identity, so that an unload and reload between two looks shows.
#[must_use]
pub fn conntrack_module(roots: &Roots) -> Option<u64> {
    let loaded = roots.proc("sys/net/netfilter/nf_conntrack_max").exists();
    let identity = std::fs::metadata(roots.sys("module/nf_conntrack")).map(|metadata| metadata.ino());
    loaded.then(|| identity.unwrap_or(0))
}

impl Watch {
    /// Attaches and takes the baseline. conntrack must be there.
    pub fn start(settings: Settings, kernel: Kernel) -> Result<(Self, Began)> {
        let now = Instant::now();
        let owners = settings.wishes.filter(|wishes| wishes.owners).map(|_| Owners::new(&settings.roots));
        let jiffies = settings.wishes.filter(|wishes| wishes.detail).map(|_| Jiffies::default());
        let mut watch = Self {
            settings,
            probe: None,
            module: None,
            places: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            gone: BTreeMap::new(),
            lives: HashMap::new(),
            flows_before: HashMap::new(),
            pairing: Pairing::default(),
            unanswered: Unanswered::default(),
            carried: Carried::default(),
            censuses: Censuses::default(),
            restarted: false,
            clock: Clock::now(),
            jiffies,
            owners,
            last_sample: now,
            last_look: now,
        };
        let began = watch.attach(kernel)?;
        Ok((watch, began))
    }

    fn attach(&mut self, kernel: Kernel) -> Result<Began> {
        self.module = conntrack_module(&self.settings.roots);
        self.places = netns::discover()?;
        let mut began =
            Began { attachments: Vec::new(), notes: Vec::new(), since_boot: KernelCounters::default() };
        let mut bases = BTreeMap::new();
        if let Some(wishes) = self.settings.wishes {
            let (symbols, btf) = kernel.both()?;
            let mut config = offsets::resolve(btf, symbols)?;
            let plan = plan(symbols, wishes, &mut config).map_err(anyhow::Error::msg)?;
            drop(kernel);
            let room = (self.places.len() * 4).next_power_of_two().max(256);
            let probe = Probe::attach(&plan, &config, u32::try_from(room)?, self.settings.log_level)?;
            for place in self.places.values() {
                // A netns that died since it was discovered has nothing to say.
                if let Ok(taken) = probe.take(place, Take::AsItIs) {
                    bases.insert(place.id, taken.bases);
                }
            }
            anyhow::ensure!(
                !bases.is_empty(),
                "no netns could be synchronised: {}",
                self.why_no_netns(&probe)
            );
            probe.shared.start_watching();
            give_back_memory();
            began.attachments = plan.attachments;
            began.notes = plan.notes;
            self.probe = Some(probe);
        } else {
            for (id, stat) in netns::read_all(self.places.values())? {
                if let Ok(stat) = stat {
                    bases.insert(id, stat.cpus.into_iter().map(Some).collect());
                }
            }
        }
        for (id, base) in bases {
            add_up(&mut began.since_boot, base.iter().flatten());
            match self.ledgers.get_mut(&id) {
                Some(ledger) => ledger.restart(base),
                None => drop(self.ledgers.insert(id, Ledger::new(base, false))),
            }
        }
        Ok(began)
    }

    fn why_no_netns(&self, probe: &Probe) -> String {
        let mut reasons = self.places.values().filter_map(|place| probe.take(place, Take::AsItIs).err());
        reasons.next().map_or_else(|| "none was found".to_owned(), |error| format!("{error:#}"))
    }

    /// Where all netns are that are watched.
    #[must_use]
    pub const fn places(&self) -> &BTreeMap<NetnsId, Place> {
        &self.places
    }

    /// The ring buffer's readiness, while there is one: readable once much is waiting.
    pub fn ring(&self) -> Result<Option<AsyncFd<OwnedFd>>> {
        self.probe.as_ref().map(Probe::ring).transpose()
    }

    /// Hands over at most `limit` events. Evictions come one call later, when the flow that pushed the entry out is known.
    pub fn drain(&mut self, limit: usize, mut each: impl FnMut(&Loss)) -> usize {
        self.measure_jiffies();
        self.release_unanswered(&mut each);
        let Self { probe: Some(probe), clock, pairing, unanswered, owners, places, jiffies, .. } = self
        else {
            return 0;
        };
        let jiffies_per_s = jiffies.as_ref().and_then(Jiffies::per_s);
        let now = Instant::now();
        let mut gone = Vec::new();
        let taken = probe.drain(limit, |record| {
            let Record { loss: event, entry, owner } = record;
            match event.kind {
                KIND_NETNS_GONE => gone.push(event),
                KIND_PUSHER => pairing.push(&event),
                _ => {
                    let time = clock.wall(event.at);
                    let mut loss = Loss { entry, owner, jiffies_per_s, ..Loss::new(time, event) };
                    loss.who = owners.as_mut().map(|owners| owners.of(&loss, places));
                    let open = owners.as_ref().is_some_and(|owners| owners.may_know_later(&loss));
                    let held = if open { unanswered.hold(loss, now) } else { pairing.hold(loss) };
                    if let Some(loss) = held {
                        each(&loss);
                    }
                }
            }
        });
        pairing.release(&mut each);
        for event in gone {
            self.bury(&event);
        }
        taken
    }

    /// Finds out how long a jiffy is, which takes two looks.
    fn measure_jiffies(&mut self) {
        let Self { probe: Some(probe), jiffies: Some(jiffies), .. } = self else { return };
        if jiffies.per_s().is_none()
            && let Ok(now) = probe.jiffies()
        {
            jiffies.reading(now, clock::monotonic_ns());
        }
    }

    /// Hands over the losses whose listener is known by now.
    fn release_unanswered(&mut self, each: &mut impl FnMut(&Loss)) {
        let Self { owners: Some(owners), unanswered, places, .. } = self else { return };
        owners.begin();
        let answered = |loss: &mut Loss| {
            loss.who = Some(owners.of(loss, places));
            !owners.may_know_later(loss)
        };
        unanswered.release(Instant::now(), answered, each);
    }

    /// Hands over what was held back.
    pub fn drain_rest(&mut self, mut each: impl FnMut(&Loss)) {
        let until = Instant::now() + LAST_ANSWERS;
        while !self.unanswered.is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
            self.release_unanswered(&mut each);
        }
        self.unanswered.release(Instant::now(), |_| true, &mut each);
        self.pairing.release(&mut each);
        self.pairing.release(&mut each);
    }

    /// A netns is gone, and this is the last that its counters said.
    fn bury(&mut self, event: &LossEvent) {
        let id = NetnsId(event.netns);
        let (inode, life) = (id.inode(), id.life());
        let lives = self.lives.entry(inode).or_default();
        *lives = (*lives).max(life + 1);
        let word = |bytes: &[u8; 16], at: usize| {
            u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight of sixteen bytes"))
        };
        // One that nobody had noticed yet came up while we watched: all it has counted is ours.
        let ledger = self.ledgers.entry(id).or_insert_with(|| Ledger::new(Vec::new(), true));
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
        let unnoticed = || Place { id, path: PathBuf::new(), name: None, container: None };
        self.gone.insert(id, self.places.remove(&id).unwrap_or_else(unnoticed));
    }

    /// Follows conntrack when it is unloaded and loaded again.
    pub fn follow_module(&mut self) -> Result<Option<Change>> {
        let module = conntrack_module(&self.settings.roots);
        if module == self.module {
            return Ok(None);
        }
        let was_loaded = self.module.is_some();
        if was_loaded {
            self.carry_over();
        }
        self.module = module;
        if module.is_none() {
            return Ok(Some(Change::Unloaded));
        }
        self.censuses.restart();
        self.restarted = true;
        self.attach(Kernel::read(&self.settings.roots))
            .context("attaching again after nf_conntrack was loaded again")?;
        Ok(Some(Change::Reattached))
    }

    /// Keeps the totals of the programs that die with the module.
    fn carry_over(&mut self) {
        // The next programs start to tell namespaces of one inode number apart from the beginning.
        self.lives.clear();
        self.flows_before.clear();
        if let Some(mut probe) = self.probe.take() {
            self.carried.slots.extend(probe.shared.slots());
            let (lost, overflow, ambiguous) = probe.shared.totals();
            for cause in 0..CAUSES {
                self.carried.lost_events[cause] += lost[cause];
                self.carried.overflow[cause] += overflow[cause];
            }
            self.carried.ambiguous += ambiguous;
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
        if now.duration_since(self.last_look) >= LOOK_AROUND {
            self.look_around();
        }
        let mut before = self.read_counters()?;
        let mut slots = self.slots();
        if slots.iter().any(|slot| !self.ledgers.contains_key(&NetnsId(slot.key.netns))) {
            // A loss in a netns that came up since the last look.
            self.look_around();
            before = self.read_counters()?;
            slots = self.slots();
        }
        let (lost_events, overflow, ambiguous) = self.totals();
        let after = self.read_counters()?;
        let max = netns::max().ok();
        let netns = self
            .ledgers
            .iter()
            .filter_map(|(id, ledger)| {
                let place = self.places.get(id).or_else(|| self.gone.get(id))?;
                Some(NetnsSample {
                    id: *id,
                    name: place.name.clone(),
                    container: place.container.clone(),
                    count: ledger.entries,
                    max,
                    before: before.get(id).copied().unwrap_or_else(|| ledger.total()),
                    after: after.get(id).copied().unwrap_or_else(|| ledger.total()),
                    gone: self.gone.contains_key(id),
                    complete: ledger.complete,
                })
            })
            .collect();
        let flows = self.flows(&slots);
        let time = self.clock.time();
        Ok(Sample { time, interval_s, netns, slots, overflow, lost_events, ambiguous, flows })
    }

    /// Starts counting what the tables hold, if flows are counted: that goes on beside the watch.
    pub fn start_census(&mut self) {
        let slots = self.slots();
        self.start_due_censuses(&moved(&slots));
    }

    /// Why tables can't be counted, once.
    pub fn census_trouble(&mut self) -> Option<String> {
        self.censuses.trouble()
    }

    fn flows(&mut self, slots: &[SlotSample]) -> FlowSample {
        let moved = moved(slots);
        let mut censuses = std::mem::take(&mut self.censuses);
        let mut done = censuses.collect(|id, raw| self.net_of(id, raw), &moved);
        self.censuses = censuses;
        // A netns may have died, and its inode number gone to another one, while its table was read.
        done.retain(|census| self.places.contains_key(&census.netns));
        self.start_due_censuses(&moved);
        let overflow = |probe: &Probe| probe.shared.control().flows_overflow.iter().sum();
        FlowSample {
            censuses: done,
            overflow: self.probe.as_ref().map_or(0, overflow),
            restarted: std::mem::take(&mut self.restarted),
        }
    }

    fn start_due_censuses(&mut self, moved: &HashMap<NetnsId, Moved>) {
        let Self { probe: Some(probe), censuses, places, ledgers, settings, .. } = self else { return };
        if settings.wishes.is_some_and(|wishes| wishes.flows) {
            let entries = |id| ledgers.get(&id).and_then(|ledger| ledger.entries);
            censuses.start_due(places, || probe.shared.flow_reader(), moved, entries);
        }
    }

    /// Inserts less deletes per key, of slots read in the present probe: in the terms of [`Watch::slots`].
    fn net_of(&self, id: NetnsId, raw: &[SlotSample]) -> HashMap<(u8, u16), i64> {
        let mut net = HashMap::new();
        for slot in raw.iter().chain(&self.carried.slots) {
            if slot.key.kind != KIND_FLOWS || slot.key.netns != id.inode() {
                continue;
            }
            let (count, deletes, failed) = self.flows_before.get(&slot.key).copied().unwrap_or_default();
            let since = |now: u64, then: u64| now.saturating_sub(then) as i64;
            *net.entry((slot.key.proto, slot.key.port)).or_default() +=
                since(slot.count, count) - since(slot.failed, failed) - since(slot.deletes, deletes);
        }
        net
    }

    /// Counts losses that the kernel counted but no program saw. For when things are quiet: a loss that is just
    /// being seen would lose its tuple.
    pub fn settle(&self) {
        let Some(probe) = &self.probe else { return };
        for place in self.places.values() {
            // A netns that dies meanwhile takes its counters along.
            let _ = probe.settle(place);
        }
    }

    /// All slots. Those that count flows bear inode numbers: they belong to the netns that has the number now, if any.
    fn slots(&mut self) -> Vec<SlotSample> {
        let mut slots = self.raw_slots();
        if self.lives.is_empty() {
            return slots;
        }
        slots.retain_mut(|slot| {
            if slot.key.kind != KIND_FLOWS {
                return true;
            }
            if let Some((count, deletes, failed)) = self.flows_before.get(&slot.key) {
                slot.count = slot.count.saturating_sub(*count);
                slot.deletes = slot.deletes.saturating_sub(*deletes);
                slot.failed = slot.failed.saturating_sub(*failed);
            }
            let id = self.present_id(slot.key.netns);
            slot.key.netns = id.0;
            self.places.contains_key(&id)
        });
        slots
    }

    /// The netns that has this inode number now.
    fn present_id(&self, inode: u32) -> NetnsId {
        NetnsId::new(inode, self.lives.get(&inode).copied().unwrap_or(0))
    }

    fn raw_slots(&mut self) -> Vec<SlotSample> {
        let mut slots = self.carried.slots.clone();
        if let Some(probe) = &mut self.probe {
            slots.extend(probe.shared.slots());
        }
        slots
    }

    fn totals(&self) -> ([u64; CAUSES], [u64; CAUSES], u64) {
        let mut lost_events = self.carried.lost_events;
        let mut overflow = self.carried.overflow;
        let mut ambiguous = self.carried.ambiguous;
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

    /// The kernel's counters since the baseline, by netns.
    fn read_counters(&mut self) -> Result<BTreeMap<NetnsId, KernelCounters>> {
        if self.module.is_none() {
            return Ok(BTreeMap::new());
        }
        let readings = netns::read_all(self.places.values())?;
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
        self.ledgers.entry(id).or_insert_with(|| Ledger::new(Vec::new(), true)).update(stat)
    }

    /// A netns can't be read: unless another process still leads there, it is gone.
    fn lose(&mut self, id: NetnsId) {
        if conntrack_module(&self.settings.roots).is_none() {
            return;
        }
        if let Some(place) = self.places.remove(&id) {
            self.gone.insert(id, place);
            self.last_look = Instant::now() - LOOK_AROUND;
        }
    }

    /// Finds new netns and makes them known to the programs.
    fn look_around(&mut self) {
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
            let taken = self.probe.as_ref().and_then(|probe| probe.take(&place, Take::AsNew).ok());
            if let Some(taken) = &taken {
                // The programs may know already that the netns before it is gone, and have yet to tell.
                place.id = taken.id;
                self.lives.insert(taken.id.inode(), taken.id.life());
            }
            let id = place.id;
            self.gone.remove(&id);
            let bases = taken.map_or_else(Vec::new, |taken| taken.bases);
            self.ledgers.entry(id).or_insert_with(|| Ledger::new(bases, true));
            self.places.insert(id, place);
        }
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

/// Inserts and deletes by netns.
fn moved(slots: &[SlotSample]) -> HashMap<NetnsId, Moved> {
    let mut sums: HashMap<NetnsId, Moved> = HashMap::new();
    for slot in slots.iter().filter(|slot| slot.key.kind == KIND_FLOWS) {
        let moved = sums.entry(NetnsId(slot.key.netns)).or_default();
        moved.inserts += slot.count.saturating_sub(slot.failed);
        moved.deletes += slot.deletes;
    }
    sums
}

fn add_up<'a>(total: &mut KernelCounters, cpus: impl Iterator<Item = &'a Counters>) {
    for cpu in cpus {
        total.drop += u64::from(cpu.drop);
        total.early_drop += u64::from(cpu.early_drop);
        total.insert_failed += u64::from(cpu.insert_failed);
        total.chaintoolong += u64::from(cpu.chaintoolong);
    }
}
