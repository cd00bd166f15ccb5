//! Network namespaces come and go while we watch, and a later one may have an earlier one's inode number.
//! Each has a baseline of what the kernel counted; a netns that is gone keeps its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use ctwatch_common::classify::Counters;

use super::baseline::BaselineCounters;
use crate::conntrack::module;
use crate::conntrack::stat::{self, Stat};
use crate::kernel::roots::Roots;
use crate::model::{
    CounterSource, HOST_NETNS, KernelCounters, NetnsAccess, NetnsId, NetnsSample, SlotSample, is_home_netns,
};
use crate::netns::{self, InitialNetns, Netns, NetnsFinder};
use crate::probe::Probe;
use crate::probe::sync::Baseline;

/// How often to look for netns nobody has lost a packet in.
const RESCAN_INTERVAL: Duration = Duration::from_secs(5);

/// Namespaces whose counters are read: more than any host has that nobody makes them on purpose. Each takes a few kilobytes
/// and, in every tick, three visits.
const MOST: usize = 1 << 14;

/// How long samples tell of a netns that is gone.
const TOLD: Duration = Duration::from_secs(10);
/// The same, where nobody tells its last counts.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// The same, where they are told and haven't come: the ring was full.
const NO_LAST_WORDS: Duration = Duration::from_secs(600);

/// The kernel's counters since the baseline, by netns.
pub(super) type Totals = BTreeMap<NetnsId, KernelCounters>;

/// The namespaces that are there and those that are gone, with what the kernel counted in each.
#[derive(Debug)]
pub(super) struct NetnsTracker {
    /// Those that can be entered.
    pub namespaces: BTreeMap<NetnsId, Netns>,
    baselines: BTreeMap<NetnsId, BaselineCounters>,
    gone: BTreeMap<NetnsId, Gone>,
    /// Those that are gone, are told of no more, and still have slots of losses.
    forgotten: BTreeSet<NetnsId>,
    finder: NetnsFinder,
    /// Those that are there, but whose counters can't be read.
    unreadable: BTreeSet<NetnsId>,
    /// Those that no process and no name leads to, and whether they lost something.
    unreachable: BTreeMap<NetnsId, bool>,
    /// How many namespaces with this inode number have gone.
    generations: HashMap<u32, u32>,
    last_rescan: Instant,
    /// There are more than [`MOST`].
    pub has_too_many: bool,
    /// Where the kernel's counters were read last.
    pub counters_from: Option<CounterSource>,
    /// No programs number those that have the same inode number one after another.
    pub numbers_generations: bool,
    /// The programs tell when a netns is destroyed.
    pub ends_are_told: bool,
    /// The initial netns, as the kernel itself says; `None` if it doesn't.
    pub initial: Option<NetnsId>,
    /// What a netns had counted in the end is summed up over all CPUs, also those that were offline at the start.
    pub sums_all_cpus: bool,
}

/// A netns that is gone.
#[derive(Debug)]
struct Gone {
    netns: Netns,
    since: Instant,
    /// A sample had it as gone.
    told: bool,
}

impl Gone {
    fn now(netns: Netns) -> Self {
        Self { netns, since: Instant::now(), told: false }
    }
}

impl Default for NetnsTracker {
    fn default() -> Self {
        Self {
            namespaces: BTreeMap::new(),
            baselines: BTreeMap::new(),
            gone: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            finder: NetnsFinder::default(),
            unreadable: BTreeSet::new(),
            unreachable: BTreeMap::new(),
            generations: HashMap::new(),
            last_rescan: Instant::now(),
            has_too_many: false,
            counters_from: None,
            numbers_generations: false,
            ends_are_told: false,
            initial: None,
            sums_all_cpus: true,
        }
    }
}

impl NetnsTracker {
    /// Starts, or after a reload of the module starts again, from what each CPU of a netns has counted.
    pub fn begin(&mut self, id: NetnsId, bases: super::Bases) {
        match self.baselines.get_mut(&id) {
            Some(baseline) => baseline.restart(bases),
            None => drop(self.baselines.insert(id, BaselineCounters::new(bases, false))),
        }
    }

    /// The next programs start to tell namespaces of one inode number apart from the beginning.
    pub fn forget_generations(&mut self) {
        self.generations.clear();
    }

    /// A netns is gone, and this is the last that its counters said.
    pub fn retire(&mut self, id: NetnsId, counters: KernelCounters) {
        let inode = id.inode();
        let generation = self.generations.entry(inode).or_default();
        *generation = (*generation).max(id.generation() + 1);
        self.unreachable.remove(&id);
        if self.forgotten.contains(&id) {
            // It was summed up with what had been read until then.
            return;
        }
        let is_known = self.namespaces.contains_key(&id) || self.knows(id);
        if !is_known && (counters == KernelCounters::default() || !self.sums_all_cpus) {
            // It came and went between two looks and lost nothing, or what it lost can't be told.
            return;
        }
        // One that nobody had noticed yet came up while we watched: all it has counted is ours.
        let baseline = self.baselines.entry(id).or_insert_with(|| BaselineCounters::new(Vec::new(), true));
        if self.sums_all_cpus {
            baseline.finish(counters);
        }
        self.unreadable.remove(&id);
        let unnoticed = || Netns { id, path: PathBuf::new(), name: None, container: None };
        let netns = self.namespaces.remove(&id).unwrap_or_else(unnoticed);
        self.gone.insert(id, Gone::now(netns));
    }

    /// Reads the kernel's counters in every netns.
    pub fn read_counters(&mut self, roots: &Roots) -> Result<Totals> {
        let readings = stat::read_all(self.namespaces.values(), self.initial)?;
        let mut totals = BTreeMap::new();
        for (id, stat) in readings {
            match stat {
                Ok(stat) => {
                    self.counters_from = Some(stat.from);
                    self.unreadable.remove(&id);
                    match self.accumulate(id, &stat) {
                        Some(total) => drop(totals.insert(id, total)),
                        None => self.end_unnoticed(id),
                    }
                }
                Err(_) => self.mark_unreadable(id, roots),
            }
        }
        Ok(totals)
    }

    /// The totals with this reading; none if it is another netns's, whose path and inode number are the same.
    fn accumulate(&mut self, id: NetnsId, stat: &Stat) -> Option<KernelCounters> {
        let baseline = self.baselines.entry(id).or_insert_with(|| BaselineCounters::new(Vec::new(), true));
        (!baseline.is_of_another(stat)).then(|| baseline.update(stat))
    }

    /// A netns can't be read: unless another process still leads there, it is gone.
    fn mark_unreadable(&mut self, id: NetnsId, roots: &Roots) {
        if module::loaded(roots).is_none() {
            return;
        }
        if self.namespaces.get(&id).is_some_and(netns::leads_there) {
            // It may not be entered, or not be read: that is no end.
            self.unreadable.insert(id);
            return;
        }
        self.end_unnoticed(id);
    }

    /// A netns is gone, and nobody told. What comes under its number is looked for at once.
    fn end_unnoticed(&mut self, id: NetnsId) {
        if let Some(netns) = self.namespaces.remove(&id) {
            self.unreadable.remove(&id);
            self.gone.insert(id, Gone::now(netns));
            self.last_rescan = Instant::now() - RESCAN_INTERVAL;
            if self.numbers_generations {
                self.generations.insert(id.inode(), id.generation() + 1);
            }
        }
    }

    /// Whether it is time to look for netns again.
    pub fn is_due(&self, now: Instant) -> bool {
        now.duration_since(self.last_rescan) >= RESCAN_INTERVAL
    }

    /// Finds new netns and makes them known to the programs.
    pub fn rescan(&mut self, probe: Option<&Probe>, thorough: bool) {
        self.last_rescan = Instant::now();
        let Ok(found) = self.discover(thorough) else { return };
        let mut new = Vec::new();
        for (id, mut netns) in found {
            netns.id = self.present_id(id.inode());
            match self.namespaces.get_mut(&netns.id) {
                Some(known) => *known = netns,
                None => new.push(netns),
            }
        }
        self.leave_out(&mut new);
        if new.is_empty() {
            return;
        }
        let readings = stat::read_all(new.iter(), None).unwrap_or_default();
        let counted: HashMap<NetnsId, bool> = readings
            .into_iter()
            .map(|(id, stat)| {
                (id, !stat.is_ok_and(|stat| stat.cpus.iter().all(|cpu| *cpu == Counters::default())))
            })
            .collect();
        for netns in new {
            let counted = counted.get(&netns.id).copied().unwrap_or(true);
            self.add(netns, counted, probe);
        }
    }

    /// Looks for all namespaces from scratch.
    pub fn discover_all(&mut self) -> Result<()> {
        let mut found = self.discover(true)?.into_values().collect();
        self.namespaces.clear();
        self.leave_out(&mut found);
        self.namespaces = found.into_iter().map(|netns| (netns.id, netns)).collect();
        Ok(())
    }

    /// Leaves out what there is no room for beside those that are watched.
    fn leave_out(&mut self, new: &mut Vec<Netns>) {
        let room = MOST.saturating_sub(self.namespaces.len());
        if new.len() > room {
            new.sort_by_key(|netns| (rank(netns), netns.id));
            new.truncate(room);
            self.has_too_many = true;
        }
    }

    fn discover(&mut self, thorough: bool) -> Result<BTreeMap<NetnsId, Netns>> {
        let look = || Some(InitialNetns::look(&Roots::default(), netns::own().ok()?).known());
        let initial = self.initial.or_else(|| look().flatten());
        self.finder.look(initial, thorough)
    }

    /// A netns that came up, or was hidden so far. `counted`: it may have counted something already.
    fn add(&mut self, mut netns: Netns, counted: bool, probe: Option<&Probe>) {
        let mut bases = Vec::new();
        if let Some(probe) = probe {
            // The programs may know already that the netns before it is gone, and have yet to tell. One that has counted
            // nothing needs no record of theirs.
            let id = if counted {
                probe.register_netns(&netns, Baseline::Zero).map(|registered| {
                    bases = registered.bases;
                    registered.id
                })
            } else {
                probe.identify_netns(&netns)
            };
            if let Ok(id) = id {
                netns.id = id;
                if id.generation() > 0 {
                    self.generations.insert(id.inode(), id.generation());
                }
            }
        }
        let id = netns.id;
        match self.gone.get(&id) {
            // Whoever reads samples must hear of the end before, or takes the new one's counts for the old one's.
            Some(before) if !before.told => return,
            Some(_) => {
                self.gone.remove(&id);
                self.baselines.insert(id, BaselineCounters::new(bases, true));
            }
            None => {
                self.baselines.entry(id).or_insert_with(|| BaselineCounters::new(bases, true));
            }
        }
        self.namespaces.insert(id, netns);
    }

    /// Whether a netns has been seen, there or gone.
    pub fn knows(&self, id: NetnsId) -> bool {
        self.baselines.contains_key(&id) || self.forgotten.contains(&id)
    }

    /// Whoever is told of samples has had the last words of those that went by now: a host that makes and destroys
    /// namespaces all day must not fill the memory.
    pub fn forget_gone<'a>(&mut self, now: Instant, slots: impl Iterator<Item = &'a SlotSample>) {
        let Self { gone, baselines, forgotten, ends_are_told, sums_all_cpus, .. } = self;
        let last_words_come = *ends_are_told && *sums_all_cpus;
        let before = gone.len();
        gone.retain(|id, one| {
            let complete = baselines.get(id).is_some_and(|baseline| baseline.complete);
            let age = now.duration_since(one.since);
            // Counted twice, were it forgotten before the programs tell.
            let enough = match (complete, last_words_come) {
                (true, _) => TOLD,
                (false, false) => LAST_WORDS,
                (false, true) => NO_LAST_WORDS,
            };
            let is_settled = age >= enough;
            if !is_settled {
                return true;
            }
            baselines.remove(id);
            forgotten.insert(*id);
            false
        });
        if gone.len() < before {
            let ids: HashSet<NetnsId> = slots.map(|slot| NetnsId::from_packed(slot.key.netns)).collect();
            forgotten.retain(|id| ids.contains(id));
        }
    }

    /// Whether something was lost in a netns that nobody has looked for yet.
    pub fn has_strangers<'a>(&self, mut losses: impl Iterator<Item = &'a SlotSample>) -> bool {
        losses.any(|slot| {
            let id = NetnsId::from_packed(slot.key.netns);
            !self.knows(id) && !self.unreachable.contains_key(&id)
        })
    }

    /// Those that were looked for and not found are not looked for again because of the same losses: they are there, with
    /// what they lost, until they are found or destroyed.
    pub fn give_up_on_strangers<'a>(&mut self, slots: impl Iterator<Item = &'a SlotSample>) {
        let Self { unreachable, baselines, forgotten, .. } = self;
        for slot in slots {
            let has_losses = unreachable.entry(NetnsId::from_packed(slot.key.netns)).or_default();
            *has_losses |= !slot.counts_flows();
        }
        unreachable.retain(|id, _| !baselines.contains_key(id) && !forgotten.contains(id));
    }

    /// Whether the limits that were read, if any, are all 0: no limit.
    pub fn has_no_limit(&self) -> bool {
        let there = self.baselines.iter().filter(|(id, _)| self.namespaces.contains_key(id));
        let mut limits = there.filter_map(|(_, baseline)| baseline.max).peekable();
        limits.peek().is_some() && limits.all(|max| max == 0)
    }

    /// Entries in a netns's table at the last reading.
    pub fn entries(&self, id: NetnsId) -> Option<u32> {
        self.baselines.get(&id)?.entries
    }

    /// All namespaces as a sample has them: `before` and `after` are the kernel's counters read around ours. Those that nothing
    /// leads to are there if they lost something.
    pub fn samples(&mut self, before: &Totals, after: &Totals) -> Vec<NetnsSample> {
        self.gone.values_mut().for_each(|gone| gone.told = true);
        let sample = |(id, baseline): (&NetnsId, &BaselineCounters)| {
            let netns = self.namespaces.get(id).or_else(|| self.gone.get(id).map(|gone| &gone.netns))?;
            Some(NetnsSample {
                id: *id,
                name: netns.name.clone(),
                container: netns.container.clone(),
                count: baseline.entries,
                max: baseline.max,
                before: before.get(id).copied().unwrap_or_else(|| baseline.total()),
                after: after.get(id).copied().unwrap_or_else(|| baseline.total()),
                gone: self.gone.contains_key(id),
                complete: baseline.complete,
                access: if self.unreadable.contains(id) {
                    NetnsAccess::Unreadable
                } else {
                    NetnsAccess::Readable
                },
            })
        };
        let mut samples: Vec<NetnsSample> = self.baselines.iter().filter_map(sample).collect();
        let lost = self.unreachable.iter().filter(|(_, has_losses)| **has_losses);
        let never_read = self.unreadable.iter().filter(|id| !self.baselines.contains_key(id));
        let blank = lost.map(|(id, _)| id).chain(never_read);
        samples.extend(blank.map(|id| self.blank(*id)));
        samples
    }

    /// A netns of which nothing is known but what it lost.
    fn blank(&self, id: NetnsId) -> NetnsSample {
        let netns = self.namespaces.get(&id);
        let host = || (Some(id) == self.initial).then(|| HOST_NETNS.into());
        NetnsSample {
            id,
            name: netns.and_then(|netns| netns.name.clone()).or_else(host),
            container: netns.and_then(|netns| netns.container.clone()),
            count: None,
            max: None,
            before: KernelCounters::default(),
            after: KernelCounters::default(),
            gone: false,
            complete: false,
            access: NetnsAccess::Unreadable,
        }
    }

    /// Slots of flows bear inode numbers: they belong to the netns that has the number now, if any.
    pub fn assign(&self, slots: &mut Vec<SlotSample>) {
        if self.generations.is_empty() {
            return;
        }
        slots.retain_mut(|slot| {
            if !slot.counts_flows() {
                return true;
            }
            let id = self.present_id(slot.key.netns);
            slot.key.netns = id.packed();
            self.namespaces.contains_key(&id)
        });
    }

    /// The netns that has this inode number now.
    fn present_id(&self, inode: u32) -> NetnsId {
        NetnsId::new(inode, self.generations.get(&inode).copied().unwrap_or(0))
    }
}

/// Whoever makes namespaces by the thousand gets no name for them but that of his session.
fn rank(netns: &Netns) -> u8 {
    match (&netns.name, &netns.container) {
        (Some(name), _) if is_home_netns(Some(name)) => 0,
        (Some(name), container) if container.as_ref() != Some(name) => 1,
        (Some(name), _) if !name.raw().starts_with("user:") => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::Foreign;
    use ctwatch_common::Cause;
    use ctwatch_common::slot::SlotKey;

    fn netns(inode: u32, name: Option<&str>) -> Netns {
        let path = PathBuf::from("/nowhere");
        Netns { id: NetnsId::from_inode(inode), path, name: name.map(Into::into), container: None }
    }

    fn loss(id: NetnsId) -> SlotSample {
        let key = SlotKey { netns: id.packed(), port: 80, proto: 6, kind: Cause::TableFull as u8 };
        SlotSample { key, count: 1, deletes: 0, failed: 0 }
    }

    #[test]
    fn of_hidden_namespaces_that_come_and_go_nothing_is_kept() {
        let mut tracker = NetnsTracker::default();
        for inode in 1..=5_000 {
            let id = NetnsId::from_inode(inode);
            tracker.give_up_on_strangers([loss(id)].iter());
            assert!(!tracker.has_strangers([loss(id)].iter()), "it was looked for already");
            assert_eq!(
                tracker.samples(&Totals::new(), &Totals::new()).len(),
                1,
                "it is there, and not readable"
            );
            tracker.retire(id, KernelCounters::default());
        }
        assert!(tracker.unreachable.is_empty() && tracker.baselines.is_empty() && tracker.gone.is_empty());
    }

    fn reading(drop: u32) -> Stat {
        let cpus = vec![Counters { drop, ..Counters::default() }];
        Stat { entries: 0, from: CounterSource::Procfs, max: None, cpus }
    }

    #[test]
    fn whoever_takes_over_a_number_unnoticed_starts_at_nothing_and_the_old_one_keeps_its_counts() {
        let mut tracker = NetnsTracker { numbers_generations: true, ..NetnsTracker::default() };
        let id = NetnsId::from_inode(7);
        tracker.begin(id, vec![Some(Counters::default())]);
        tracker.namespaces.insert(id, netns(7, Some("blue")));
        assert_eq!(tracker.accumulate(id, &reading(5)).map(|total| total.drop), Some(5));
        // Another one has the name and the number.
        assert!(tracker.accumulate(id, &reading(2)).is_none());
        tracker.end_unnoticed(id);
        assert!(tracker.is_due(Instant::now()), "it is looked for at once");
        let next = tracker.present_id(7);
        assert_ne!(next, id);
        tracker.add(Netns { id: next, ..netns(7, Some("blue")) }, true, None);
        assert_eq!(tracker.accumulate(next, &reading(2)).map(|total| total.drop), Some(2));
        let samples = tracker.samples(&Totals::new(), &Totals::new());
        let seen: Vec<_> = samples.iter().map(|one| (one.id, one.gone, one.after.drop)).collect();
        assert_eq!(seen, [(id, true, 5), (next, false, 2)]);
    }

    #[test]
    fn where_programs_number_them_the_end_is_told_before_the_next_one_counts() {
        let mut tracker = NetnsTracker::default();
        let id = NetnsId::from_inode(7);
        tracker.begin(id, vec![Some(Counters::default())]);
        tracker.namespaces.insert(id, netns(7, None));
        tracker.accumulate(id, &reading(5)).expect("it is the same");
        tracker.end_unnoticed(id);
        tracker.add(netns(7, None), true, None);
        assert!(!tracker.namespaces.contains_key(&id), "not before a sample said that the old one is gone");
        assert!(tracker.samples(&Totals::new(), &Totals::new())[0].gone);
        tracker.add(netns(7, None), true, None);
        assert_eq!(tracker.accumulate(id, &reading(3)).map(|total| total.drop), Some(3));
        let [sample] = &tracker.samples(&Totals::new(), &Totals::new())[..] else { panic!("one netns") };
        assert!(!sample.gone);
    }

    #[test]
    fn a_netns_that_was_never_read_is_in_every_sample_as_not_readable() {
        let mut tracker = NetnsTracker::default();
        let id = NetnsId::from_inode(7);
        tracker.namespaces.insert(id, netns(7, Some("blue")));
        tracker.unreadable.insert(id);
        let [sample] = &tracker.samples(&Totals::new(), &Totals::new())[..] else { panic!("one netns") };
        assert_eq!((sample.id, sample.access), (id, NetnsAccess::Unreadable));
        assert_eq!(sample.name.as_ref().map(Foreign::raw), Some("blue"));
    }

    #[test]
    fn last_counts_that_never_come_are_waited_for_only_so_long() {
        let mut tracker = NetnsTracker { ends_are_told: true, ..NetnsTracker::default() };
        let id = NetnsId::from_inode(7);
        tracker.begin(id, vec![Some(Counters::default())]);
        tracker.namespaces.insert(id, netns(7, None));
        tracker.end_unnoticed(id);
        tracker.forget_gone(Instant::now() + LAST_WORDS, [].iter());
        assert_eq!(tracker.gone.len(), 1);
        tracker.forget_gone(Instant::now() + NO_LAST_WORDS, [loss(id)].iter());
        assert!(tracker.gone.is_empty() && tracker.baselines.is_empty() && tracker.knows(id));
        // Too late: what had been read of it is part of the sums.
        tracker.retire(id, KernelCounters { drop: 9, ..KernelCounters::default() });
        assert!(tracker.gone.is_empty() && tracker.baselines.is_empty());
    }

    #[test]
    fn namespaces_beyond_the_most_are_left_out_and_those_with_a_name_stay() {
        let mut tracker = NetnsTracker::default();
        let mut new: Vec<Netns> = (0..=MOST as u32).map(|inode| netns(inode, None)).collect();
        for (inode, name) in [(1 << 20, "blue"), (1 << 21, "host")] {
            new.push(netns(inode, Some(name)));
        }
        for (inode, name) in [(1 << 22, "docker:1"), (1 << 23, "user:1000")] {
            new.push(Netns { container: Some(name.into()), ..netns(inode, Some(name)) });
        }
        tracker.leave_out(&mut new);
        assert_eq!((new.len(), tracker.has_too_many), (MOST, true));
        let named: Vec<_> = new.iter().filter_map(|netns| netns.name.as_ref()).map(Foreign::raw).collect();
        assert_eq!(named, ["host", "blue", "docker:1"]);
        tracker.namespaces = new.into_iter().map(|netns| (netns.id, netns)).collect();
        let mut more = vec![netns(1 << 24, None)];
        tracker.leave_out(&mut more);
        assert!(more.is_empty());
    }
}
