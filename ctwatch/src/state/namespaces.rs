//! What is known of each netns: its table, the kernel's counters and ours.
//! Namespaces come and go, and a later one may take over the inode number of an earlier one.

use std::collections::{HashMap, HashSet};

use ctwatch_common::Cause;
use ctwatch_common::cause::{CAUSES, Unit};

use super::balance::{self, Balance, Bracket};
use crate::contract::{TableStatus, Unexplained, fill};
use crate::foreign::Foreign;
use crate::model::{Backend, CounterArray, NetnsAccess, NetnsId, NetnsSample, is_home_netns};

/// Namespaces that lost something and are gone: so many are remembered one by one, those that lost most.
const REMEMBERED: usize = 1024;

/// All namespaces that are, or were.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    known: HashMap<NetnsId, Netns>,
    /// Those that died without a loss, so that only their sums matter.
    buried: Buried,
    /// Those that died, having lost something, and are too many to be remembered.
    folded: Folded,
}

/// The sums of namespaces that nothing more is told of.
#[derive(Clone, Debug, Default)]
struct Folded {
    losses: [u64; CAUSES],
    kernel: CounterArray,
    balance: Balance,
    overcounted: u64,
    gone: u64,
    unreadable: u64,
    unheard: CounterArray<bool>,
}

#[derive(Debug, Default)]
struct Buried {
    ids: HashSet<NetnsId>,
    /// Those whose last counts haven't come yet, with what the kernel had counted when last read.
    incomplete: HashMap<NetnsId, CounterArray>,
    kernel: CounterArray,
    unexplained: CounterArray<i64>,
    /// Those of which samples still tell.
    told: HashSet<NetnsId>,
    /// Those of which no sample tells any more, and whose last counts never came.
    never_complete: u64,
}

#[derive(Debug, Default)]
struct Netns {
    name: Option<Foreign>,
    container: Option<Foreign>,
    count: Option<u32>,
    max: Option<u32>,
    /// The kernel's counters of this life, and those of earlier netns with the same inode number.
    before: CounterArray,
    after: CounterArray,
    earlier: CounterArray,
    after_at_last_tick: CounterArray,
    life: Life,
    /// It is gone, and nothing it counted is missing.
    complete: bool,
    /// The last sample told of it.
    told: bool,
    access: NetnsAccess,
    ours: Totals,
    ours_at_last_tick: Totals,
    /// What keys had counted that are without a slot now.
    retired: Totals,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Life {
    /// Only known from our own counters.
    #[default]
    NeverSampled,
    Alive,
    /// It is in no sample, or marked gone, for the first time.
    Dying,
    Gone,
}

/// Our own totals in one netns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    losses: [u64; CAUSES],
    inserts: u64,
    deletes: u64,
}

/// What all namespaces add up to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Account {
    pub counted: [u64; CAUSES],
    pub kernel: CounterArray,
    pub unexplained: CounterArray<i64>,
    /// What the tracepoint backend saw but can't claim.
    pub overcounted: u64,
    /// Namespaces whose last counts nobody read.
    pub gone: u64,
    /// Namespaces whose counters can't be read.
    pub unreadable: u64,
    /// Counters of which we counted some where the kernel's word is missing.
    pub unheard: CounterArray<bool>,
}

impl Namespaces {
    /// A new tick: everyone has to show up again.
    pub fn begin_tick(&mut self) {
        for netns in self.known.values_mut() {
            netns.ours_at_last_tick = std::mem::replace(&mut netns.ours, netns.retired);
            netns.after_at_last_tick = netns.kernel_after();
            netns.told = false;
            netns.life = match netns.life {
                Life::Alive => Life::Dying,
                Life::Dying => Life::Gone,
                life => life,
            };
        }
    }

    /// Losses that no slot of a later sample holds. Before the tick begins.
    pub fn retire_losses(&mut self, netns: NetnsId, cause: Cause, count: u64) {
        self.known.entry(netns).or_default().retired.losses[cause as usize] += count;
    }

    /// Flows that no slot of a later sample holds. Before the tick begins.
    pub fn retire_flows(&mut self, netns: NetnsId, inserts: u64, deletes: u64) {
        let retired = &mut self.known.entry(netns).or_default().retired;
        retired.inserts += inserts;
        retired.deletes += deletes;
    }

    pub fn add_losses(&mut self, netns: NetnsId, cause: Cause, count: u64) {
        self.known.entry(netns).or_default().ours.losses[cause as usize] += count;
    }

    pub fn add_flows(&mut self, netns: NetnsId, inserts: u64, deletes: u64) {
        let ours = &mut self.known.entry(netns).or_default().ours;
        ours.inserts += inserts;
        ours.deletes += deletes;
    }

    pub fn add_sample(&mut self, sample: &NetnsSample) {
        let NetnsSample { id, name, container, count, max, before, after, gone, complete, access } = sample;
        if *gone && self.buried.ids.contains(id) {
            self.buried.told.insert(*id);
            if *complete {
                self.buried.complete(*id, after.as_array());
            }
            return;
        }
        self.buried.ids.remove(id);
        let netns = self.known.entry(*id).or_default();
        netns.told = true;
        match (gone, netns.life) {
            // Its last line was shown: all that may come is what it had counted in the end.
            (true, Life::Gone) => {
                if *complete && !netns.complete {
                    netns.complete = true;
                    netns.before = before.as_array();
                    netns.after = after.as_array();
                }
                return;
            }
            (true, _) => netns.life = Life::Dying,
            (false, Life::Gone) => {
                netns.earlier = netns.kernel_after();
                netns.after_at_last_tick = netns.earlier;
                netns.life = Life::Alive;
            }
            (false, _) => netns.life = Life::Alive,
        }
        netns.complete = *complete;
        netns.access = *access;
        netns.before = before.as_array();
        netns.after = after.as_array();
        netns.name.clone_from(name);
        netns.container.clone_from(container);
        netns.count = *count;
        netns.max = *max;
    }

    /// How many are remembered one by one.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// What a netns is called.
    pub fn name_of(&self, netns: NetnsId) -> Option<&Foreign> {
        self.known.get(&netns)?.name.as_ref()
    }

    /// Whether it lost anything since the baseline.
    pub fn lost_something(&self, netns: NetnsId) -> bool {
        self.known.get(&netns).is_some_and(|netns| netns.ours.losses != [0; CAUSES])
    }

    /// Entries and maximum at the last sample.
    pub fn table_of(&self, netns: NetnsId) -> (Option<u32>, Option<u32>) {
        self.known.get(&netns).map_or((None, None), |netns| (netns.count, netns.max))
    }

    /// The sums, once all of a tick's samples are in. `overflow`: our losses of unknown netns.
    pub fn account(&self, overflow: &[u64; CAUSES], backend: Backend) -> Account {
        let elsewhere = balance::in_kernel_terms(overflow);
        let mut all = self.folded.clone();
        for netns in self.known.values() {
            all.add(netns, backend);
        }
        let Folded { losses, kernel, balance, overcounted, gone, unreadable, unheard } = all;
        let mut account = Account {
            counted: std::array::from_fn(|cause| overflow[cause] + losses[cause]),
            kernel: add(self.buried.kernel, kernel),
            unexplained: balance.unexplained(elsewhere),
            overcounted,
            gone: self.buried.incomplete.len() as u64 + self.buried.never_complete + gone,
            unreadable,
            unheard,
        };
        account.counted[Cause::TableFull as usize] -= overcounted;
        for (sum, buried) in account.unexplained.iter_mut().zip(self.buried.unexplained) {
            *sum += buried;
        }
        account
    }

    /// A line for each netns alive or just gone: the host first, then by what they lost, then by fill.
    pub fn tables(
        &self,
        interval_s: f64,
        rates: bool,
        overflow: &[u64; CAUSES],
        backend: Backend,
    ) -> Vec<TableStatus> {
        let elsewhere = balance::in_kernel_terms(overflow);
        let mut tables: Vec<TableStatus> = self
            .known
            .iter()
            .filter(|(_, netns)| netns.is_listed())
            .map(|(id, netns)| netns.table(*id, interval_s, rates, elsewhere, backend))
            .collect();
        tables.sort_by(|a, b| {
            let is_host = |table: &TableStatus| is_home_netns(table.name.as_ref());
            let lost = |table: &TableStatus| (table.packets_lost, table.entries_lost);
            (is_host(b), lost(b))
                .cmp(&(is_host(a), lost(a)))
                .then(b.fill.unwrap_or(0.0).total_cmp(&a.fill.unwrap_or(0.0)))
                .then(a.netns.cmp(&b.netns))
        });
        tables
    }

    /// Keeps only the sums of namespaces that died without a loss, and of those that lost least if many died with one: hosts
    /// that start a container every second, and whoever makes namespaces to fill the memory, would do so otherwise.
    pub fn end_tick(&mut self, backend: Backend) {
        self.bury();
        self.fold(backend);
    }

    /// All that can still be asked of one that is folded is what it is called.
    fn fold(&mut self, backend: Backend) {
        let Self { known, folded, .. } = self;
        let mut over: Vec<(u64, NetnsId)> = known
            .iter()
            .filter(|(_, netns)| netns.is_over())
            .map(|(id, netns)| (netns.lost_in_all(), *id))
            .collect();
        if over.len() <= REMEMBERED {
            return;
        }
        over.sort_unstable();
        // By half, so that it isn't done in every tick.
        for (_, id) in &over[..over.len() - REMEMBERED / 2] {
            // One with flows alone, into which nobody could look, has nothing to be summed up.
            if let Some(netns) =
                known.remove(id).filter(|netns| netns.life == Life::Gone || netns.lost_in_all() > 0)
            {
                folded.add(&netns, backend);
            }
        }
    }

    fn bury(&mut self) {
        let buried = &mut self.buried;
        buried.forget_untold();
        self.known.retain(|id, netns| {
            let Totals { losses, inserts, deletes } = netns.ours;
            // Its retired flows are history, too.
            let has_flows = (inserts, deletes) != (netns.retired.inserts, netns.retired.deletes);
            if netns.life != Life::Dying || losses != [0; CAUSES] || has_flows {
                return true;
            }
            let distance = balance::distance(&netns.bracket(), [0; 4], [0; 4]);
            buried.ids.insert(*id);
            if !netns.complete {
                buried.incomplete.insert(*id, netns.kernel_after());
            }
            buried.kernel = add(buried.kernel, netns.kernel_after());
            for (sum, distance) in buried.unexplained.iter_mut().zip(distance) {
                *sum += distance;
            }
            false
        });
    }
}

impl Folded {
    fn add(&mut self, netns: &Netns, backend: Backend) {
        let (ours, too_much) = netns.ours_in_kernel_terms(backend);
        let bracket = netns.bracket();
        self.balance.add(&bracket, ours);
        for (any, here) in self.unheard.iter_mut().zip(bracket.unheard(ours)) {
            *any |= here;
        }
        self.overcounted += too_much;
        for (sum, losses) in self.losses.iter_mut().zip(netns.ours.losses) {
            *sum += losses;
        }
        self.kernel = add(self.kernel, netns.kernel_after());
        self.gone += u64::from(netns.went_away() && !netns.complete);
        self.unreadable += u64::from(netns.is_unreadable());
    }
}

impl Buried {
    /// Of namespaces that samples tell of no more only the sums are needed.
    fn forget_untold(&mut self) {
        let Self { ids, incomplete, told, never_complete, .. } = self;
        ids.retain(|id| {
            let stays = told.contains(id);
            if !stays && incomplete.remove(id).is_some() {
                *never_complete += 1;
            }
            stays
        });
        told.clear();
    }

    /// What a netns had counted in the end is known now; none of it was ours.
    fn complete(&mut self, id: NetnsId, last: CounterArray) {
        let Some(read) = self.incomplete.remove(&id) else { return };
        for counter in 0..read.len() {
            let more = last[counter].saturating_sub(read[counter]);
            self.kernel[counter] += more;
            self.unexplained[counter] += i64::try_from(more).unwrap_or(i64::MAX);
        }
    }
}

impl Netns {
    fn went_away(&self) -> bool {
        matches!(self.life, Life::Dying | Life::Gone)
    }

    /// No sample tells of it any more, and what it counted is no longer in slots: none of its numbers moves again.
    fn is_over(&self) -> bool {
        !self.told
            && matches!(self.life, Life::Gone | Life::NeverSampled)
            && self.ours == self.retired
            && self.ours_at_last_tick == self.ours
    }

    /// Packets and entries, to compare it with others.
    fn lost_in_all(&self) -> u64 {
        self.ours.losses.iter().sum()
    }

    /// Has a line of its own: one that nobody could look into only if it lost something.
    fn is_listed(&self) -> bool {
        match self.life {
            Life::Alive if self.is_unreadable() && self.count.is_none() => self.ours.losses != [0; CAUSES],
            Life::Alive | Life::Dying => true,
            Life::NeverSampled => self.ours.losses != [0; CAUSES],
            Life::Gone => false,
        }
    }

    /// It is there, and what the kernel counted in it is not to be had.
    fn is_unreadable(&self) -> bool {
        match self.life {
            Life::NeverSampled => true,
            Life::Alive => self.access == NetnsAccess::Unreadable,
            Life::Dying | Life::Gone => false,
        }
    }

    fn kernel_after(&self) -> CounterArray {
        add(self.earlier, self.after)
    }

    fn bracket(&self) -> Bracket {
        Bracket {
            before: add(self.earlier, self.before),
            after: self.kernel_after(),
            // An earlier netns of this number may have died with counts that nobody read.
            unreadable: self.is_unreadable(),
            open: self.is_unreadable() || (self.went_away() && !self.complete) || self.earlier != [0; 4],
        }
    }

    fn ours_in_kernel_terms(&self, backend: Backend) -> (CounterArray, u64) {
        let mut ours = balance::in_kernel_terms(&self.ours.losses);
        let too_much = if backend == Backend::Tracepoint {
            balance::overcounted(&self.bracket(), &self.ours.losses)
        } else {
            0
        };
        ours[0] -= too_much;
        (ours, too_much)
    }

    fn table(
        &self,
        id: NetnsId,
        interval_s: f64,
        rates: bool,
        elsewhere: CounterArray,
        backend: Backend,
    ) -> TableStatus {
        let per_s = |now: u64, before: u64| {
            (rates && interval_s > 0.0)
                .then(|| (now.saturating_sub(before) as f64 / interval_s * 10.0).round() / 10.0)
        };
        let (ours, _) = self.ours_in_kernel_terms(backend);
        let unexplained = Unexplained::from_array(balance::distance(&self.bracket(), ours, elsewhere));
        let (packets_lost, entries_lost) = self.lost(backend);
        TableStatus {
            netns: id,
            name: self.name.clone(),
            container: self.container.clone(),
            count: self.count,
            max: self.max,
            fill: self.count.zip(self.max).and_then(|(count, max)| fill(count, max)),
            new_per_s: per_s(self.ours.inserts, self.ours_at_last_tick.inserts),
            gone_per_s: per_s(self.ours.deletes, self.ours_at_last_tick.deletes),
            full_in_s: None,
            occupants: None,
            occupancy_exact: None,
            packets_lost,
            entries_lost,
            gone: self.life == Life::Dying,
            not_readable: self.is_unreadable(),
            unexplained: (!unexplained.is_zero()).then_some(unexplained),
        }
    }

    /// Packets and entries lost in this tick, by our counters or, without any, by the kernel's.
    fn lost(&self, backend: Backend) -> (u64, u64) {
        if backend == Backend::Counters {
            let [drop, early_drop, ..] = self.kernel_after();
            let [last_drop, last_early_drop, ..] = self.after_at_last_tick;
            return (drop.saturating_sub(last_drop), early_drop.saturating_sub(last_early_drop));
        }
        let lost = |unit: Unit| {
            Cause::ALL
                .into_iter()
                .filter(|cause| cause.unit() == unit && *cause != Cause::Invalid)
                .map(|cause| {
                    let [now, last] =
                        [&self.ours, &self.ours_at_last_tick].map(|totals| totals.losses[cause as usize]);
                    now.saturating_sub(last)
                })
                .sum()
        };
        (lost(Unit::Packets), lost(Unit::Entries))
    }
}

fn add(a: CounterArray, b: CounterArray) -> CounterArray {
    let mut sum = a;
    for (sum, more) in sum.iter_mut().zip(b) {
        *sum += more;
    }
    sum
}
