//! The exact counters as user space sees them: what the banks hold, and what was taken out of them. Totals are the same
//! whichever bank a key is in at the moment. Pure over [`Memory`]; when a bank may be cleared is `shared`'s business.

use std::collections::HashMap;

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::{BANKS, KIND_FLAGS, RoomState, SlotKey};

use crate::model::SlotSample;

/// Keys whose losses wait for the next sample at most: 7/8 of 2^19, as many as a hash table of that size (9 MB) takes.
const MOST_LOSSES: usize = 458_752;
/// Keys of flows at most that have entries, or had some at the last sample: 7/8 of 2^18 (9 MB).
const MOST_FLOWS: usize = 229_376;

/// The two rooms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Losses,
    Flows,
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Losses, Self::Flows];
}

/// A packed key, and losses, or inserts, deletes and failed inserts.
pub(super) type Counts = (u64, [u64; 3]);

/// The shared memory.
pub(super) trait Memory {
    /// Slots in a bank.
    fn slots(&self, kind: Kind) -> u32;
    /// What programs and user space tell each other about a room.
    fn room(&self, kind: Kind) -> RoomState;
    /// From here on programs that start write to this bank.
    fn activate(&self, kind: Kind, bank: usize);
    /// The slot at this place; banks follow one another.
    fn slot(&self, kind: Kind, index: u32) -> Counts;
    /// Frees a slot.
    fn clear(&self, kind: Kind, index: u32);
    /// None of a bank's slots is claimed any more.
    fn clear_claimed(&self, kind: Kind, bank: usize);
}

/// What a sample takes.
#[derive(Debug, Default)]
pub struct Taken {
    /// Totals of the keys that have slots, or entries.
    pub slots: Vec<SlotSample>,
    /// What keys that gave their slots back had counted: they begin at 0 again.
    pub retired: Vec<SlotSample>,
}

/// Slots of a bank that hold a key.
#[derive(Debug, Default)]
struct Used {
    places: Vec<u32>,
    /// What `claimed` said when they were looked for.
    claimed: u64,
}

/// Totals by packed key: inserts, deletes, failed inserts. They may be below zero while a slot holds the rest.
pub type FlowTotals = HashMap<u64, [u64; 3]>;

/// Both rooms.
pub(super) struct Banks<M> {
    memory: M,
    used: [[Used; BANKS as usize]; 2],
    /// Losses taken out of the banks since the last sample.
    losses: HashMap<u64, u64>,
    /// Flows taken out of the banks, of keys that have entries or moved since the last sample.
    flows: FlowTotals,
    most_losses: usize,
    most_flows: usize,
    /// What found no room here.
    overflow: Overflow,
    /// The same as of the last sample, which still had what came to it since in slots.
    overflow_taken: Overflow,
}

/// Losses, by cause, and flows that found no room in user space.
pub(super) type Overflow = ([u64; CAUSES], u64);

impl<M: Memory> Banks<M> {
    pub fn new(memory: M) -> Self {
        Self {
            memory,
            used: Default::default(),
            losses: HashMap::new(),
            flows: HashMap::new(),
            most_losses: MOST_LOSSES,
            most_flows: MOST_FLOWS,
            overflow: Overflow::default(),
            overflow_taken: Overflow::default(),
        }
    }

    /// Whether the programs should write to the other bank from now on: a quarter of this one is claimed, and until all
    /// programs write to the other one, a scan may claim twice as much again.
    pub fn is_filling(&self, kind: Kind) -> bool {
        self.claimed(kind) >= u64::from(self.memory.slots(kind) / 4)
    }

    /// Whether so many newly claimed slots are many.
    pub fn is_busy(&self, kind: Kind, claimed: u64) -> bool {
        claimed > u64::from(self.memory.slots(kind) / 32)
    }

    /// Slots that programs have claimed in the bank they write to.
    pub fn claimed(&self, kind: Kind) -> u64 {
        let room = self.memory.room(kind);
        room.claimed[active(&room)]
    }

    /// Has programs write to the other bank, which must be clear. Those that run already still write to this one.
    pub fn flip(&mut self, kind: Kind) {
        self.memory.activate(kind, 1 - active(&self.memory.room(kind)));
    }

    /// Takes everything out of the bank that no program writes to any more, and clears it.
    pub fn harvest(&mut self, kind: Kind) {
        let bank = 1 - active(&self.memory.room(kind));
        self.find_used(kind, bank);
        for index in std::mem::take(&mut self.used[kind as usize][bank]).places {
            let (key, counts) = self.memory.slot(kind, index);
            self.memory.clear(kind, index);
            match kind {
                Kind::Losses => self.keep_losses(key, counts[0]),
                Kind::Flows => self.keep_flows(key, counts),
            }
        }
        self.memory.clear_claimed(kind, bank);
    }

    fn keep_losses(&mut self, key: u64, losses: u64) {
        if self.losses.len() < self.most_losses || self.losses.contains_key(&key) {
            *self.losses.entry(key).or_default() += losses;
        } else {
            let cause = SlotKey::unpack(key).kind & !KIND_FLAGS;
            self.overflow.0[usize::from(cause) % CAUSES] += losses;
        }
    }

    fn keep_flows(&mut self, key: u64, counts: [u64; 3]) {
        if self.flows.len() < self.most_flows || self.flows.contains_key(&key) {
            add(self.flows.entry(key).or_default(), counts);
        } else {
            self.overflow.1 += counts.iter().sum::<u64>();
        }
    }

    /// Everything counted so far. Losses taken out of the banks are handed over once.
    pub fn take(&mut self) -> Taken {
        self.overflow_taken = self.overflow;
        let mut slots = Vec::new();
        self.each_slot(Kind::Losses, |key, [losses, ..]| slots.push(of_losses(key, losses)));
        let in_slots = self.flows_in_slots();
        let mut retired: Vec<_> = std::mem::take(&mut self.losses)
            .into_iter()
            .map(|(key, losses)| of_losses(key, losses))
            .collect();
        self.flows.retain(|key, counts| {
            let is_idle = in_slots.get(key).is_none_or(|in_slot| *in_slot == [0; 3]) && net(*counts) == 0;
            if is_idle && *counts != [0; 3] {
                retired.push(SlotSample::of_flows(*key, *counts));
            }
            !is_idle
        });
        if self.flows.capacity() > 4 * self.flows.len().max(1 << 12) {
            self.flows.shrink_to_fit();
        }
        slots.extend(self.with_flows(in_slots));
        Taken { slots, retired }
    }

    /// Totals of flows: those that [`Banks::take`] would give, but nothing is handed over.
    pub fn flows(&mut self) -> Vec<SlotSample> {
        let in_slots = self.flows_in_slots();
        self.with_flows(in_slots)
    }

    /// Totals of flows by key.
    pub fn flow_totals(&mut self) -> FlowTotals {
        let mut totals = self.flows_in_slots();
        for (key, counts) in &self.flows {
            add(totals.entry(*key).or_default(), *counts);
        }
        totals
    }

    /// Continues totals of earlier programs.
    pub fn carry_on(&mut self, flows: FlowTotals) {
        for (key, counts) in flows {
            self.keep_flows(key, counts);
        }
    }

    /// The flows of this netns (by inode number) begin at 0 again: it is another one now.
    pub fn restart_flows(&mut self, inode: u32) {
        let of_inode = |key: &u64| SlotKey::unpack(*key).netns == inode;
        self.flows.retain(|key, _| !of_inode(key));
        for (key, counts) in self.flows_in_slots() {
            if of_inode(&key) {
                self.flows.insert(key, counts.map(u64::wrapping_neg));
            }
        }
    }

    /// What found no room in user space until the last sample.
    pub const fn overflow_at_sample(&self) -> Overflow {
        self.overflow_taken
    }

    fn with_flows(&self, mut in_slots: FlowTotals) -> Vec<SlotSample> {
        for (key, counts) in &self.flows {
            add(in_slots.entry(*key).or_default(), *counts);
        }
        in_slots
            .into_iter()
            .filter(|(_, counts)| *counts != [0; 3])
            .map(|(key, counts)| SlotSample::of_flows(key, counts))
            .collect()
    }

    fn flows_in_slots(&mut self) -> FlowTotals {
        let mut totals = FlowTotals::new();
        self.each_slot(Kind::Flows, |key, counts| add(totals.entry(key).or_default(), counts));
        totals
    }

    fn each_slot(&mut self, kind: Kind, mut each: impl FnMut(u64, [u64; 3])) {
        for bank in 0..BANKS as usize {
            self.find_used(kind, bank);
            for index in &self.used[kind as usize][bank].places {
                let (key, counts) = self.memory.slot(kind, *index);
                each(key, counts);
            }
        }
    }

    /// Looks for new keys, only when programs have claimed slots since.
    fn find_used(&mut self, kind: Kind, bank: usize) {
        // A slot's key is written before `claimed` moves, so none is missed.
        let claimed = self.memory.room(kind).claimed[bank];
        let used = &mut self.used[kind as usize][bank];
        if claimed != used.claimed {
            let slots = self.memory.slots(kind);
            let first = bank as u32 * slots;
            used.places.clear();
            used.places.extend((first..first + slots).filter(|index| self.memory.slot(kind, *index).0 != 0));
            used.claimed = claimed;
        }
    }
}

/// The bank that programs write to.
const fn active(room: &RoomState) -> usize {
    (room.active != 0) as usize
}

fn add(sum: &mut [u64; 3], more: [u64; 3]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = sum.wrapping_add(more);
    }
}

/// Entries that these flows left behind.
const fn net([inserts, deletes, failed]: [u64; 3]) -> u64 {
    inserts.wrapping_sub(deletes).wrapping_sub(failed)
}

const fn of_losses(key: u64, count: u64) -> SlotSample {
    SlotSample { key: SlotKey::unpack(key), count, deletes: 0, failed: 0 }
}

#[cfg(test)]
mod tests;
