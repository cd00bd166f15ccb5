//! What a recording keeps of one sample: how far everything moved since the previous one.
//! Plain data, the same going into the file and coming out; [`Tick::checksum`] reveals damage.

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;
use jiff::Timestamp;

use super::digest::Digest;
use crate::model::{Census, CounterArray, NetnsId};

/// How all counters moved in one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Wall clock at its end.
    pub time: Timestamp,
    /// CLOCK_MONOTONIC at its end, microseconds.
    pub mono_us: i64,
    /// Its length, microseconds; after downsampling, the sum of those it stands for.
    pub interval_us: i64,
    /// conntrack was reloaded in it.
    pub restarted: bool,
    /// Namespaces of which anything changed, by id.
    pub netns: Vec<NetnsTick>,
    /// Losses by slot, ordered by key.
    pub losses: Vec<(SlotKey, i64)>,
    /// Inserts, deletes and failed inserts by slot, ordered by key.
    pub flows: Vec<(SlotKey, [i64; 3])>,
    /// Losses without a slot, by cause number. Negative if some were assigned to a slot later.
    pub overflow: [i64; CAUSES],
    /// Events that did not fit the ring buffer, by cause number.
    pub lost_events: [i64; CAUSES],
    /// Losses that may have been the firewall's.
    pub ambiguous: i64,
    /// Inserts and deletes without a slot. Negative if some were assigned to a slot later.
    pub flows_overflow: i64,
    /// At its end: what the kernel had counted and ctwatch had not.
    pub unexplained: CounterArray<i64>,
    /// Loss events that came in it.
    pub events_seen: u64,
    /// Censuses that ended in it.
    pub censuses: Vec<Census>,
}

/// Whether a netns is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    #[default]
    Present = 0,
    /// It is gone, but still reported with what is known.
    Gone = 1,
    /// It is no longer reported.
    Absent = 2,
    /// It is there, but its counters can't be read.
    Unreadable = 3,
}

/// What changed of one netns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetnsTick {
    /// Which one.
    pub id: NetnsId,
    /// Whether it is there.
    pub presence: Presence,
    /// It is gone, and nothing it counted is missing.
    pub complete: bool,
    /// Entries in its table at the end.
    pub count: Option<u32>,
    /// The highest entry count at the end of any tick this one stands for.
    pub peak: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// How far the kernel's counters moved.
    pub kernel: CounterArray<i64>,
    /// How far they moved while ctwatch's own were read.
    pub width: CounterArray<i64>,
}

impl Presence {
    /// Whether the netns is there.
    #[must_use]
    pub const fn is_there(self) -> bool {
        matches!(self, Self::Present | Self::Unreadable)
    }

    /// From its number in the file.
    #[must_use]
    pub const fn from_number(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::Present),
            1 => Some(Self::Gone),
            2 => Some(Self::Absent),
            3 => Some(Self::Unreadable),
            _ => None,
        }
    }
}

impl Tick {
    /// A tick in which nothing moved.
    #[must_use]
    pub fn quiet(time: Timestamp, mono_us: i64, interval_us: i64) -> Self {
        Self {
            time,
            mono_us,
            interval_us,
            restarted: false,
            netns: Vec::new(),
            losses: Vec::new(),
            flows: Vec::new(),
            overflow: [0; CAUSES],
            lost_events: [0; CAUSES],
            ambiguous: 0,
            flows_overflow: 0,
            unexplained: [0; 4],
            events_seen: 0,
            censuses: Vec::new(),
        }
    }

    /// The checksum of everything but the censuses, which have their own.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        let Self {
            time,
            mono_us,
            interval_us,
            restarted,
            netns,
            losses,
            flows,
            overflow,
            lost_events,
            ambiguous,
            flows_overflow,
            unexplained,
            events_seen,
            censuses: _,
        } = self;
        let mut digest = Digest::default();
        digest.int(time.as_microsecond()).int(*mono_us).int(*interval_us).int(i64::from(*restarted));
        for one in netns {
            one.digest(&mut digest);
        }
        for (key, count) in losses {
            digest.int(key.pack().cast_signed()).int(*count);
        }
        for (key, counts) in flows {
            digest.int(key.pack().cast_signed()).ints(counts);
        }
        digest.ints(overflow).ints(lost_events).int(*ambiguous).int(*flows_overflow).ints(unexplained);
        digest.int(events_seen.cast_signed());
        digest.finish()
    }

    /// All that moved in it, and what its censuses add to that.
    pub(super) fn moved(&self) -> impl Iterator<Item = i64> + '_ {
        let netns = self.netns.iter().flat_map(|one| one.kernel.into_iter().chain(one.width));
        let losses = self.losses.iter().map(|(_, count)| *count);
        let flows = self.flows.iter().flat_map(|(_, counts)| *counts);
        let bases = self.censuses.iter().flat_map(|census| census.bases.iter().map(|base| base.entries));
        let by_cause = self.overflow.into_iter().chain(self.lost_events);
        let rest = [self.ambiguous, self.flows_overflow, self.events_seen.cast_signed()];
        netns.chain(losses).chain(flows).chain(bases).chain(by_cause).chain(rest).chain(self.unexplained)
    }

    /// The tick that spans all of these, in order; none of none. Neighbours are merged first: slots that many ticks have are
    /// looked at a few times, not once for each tick.
    pub(super) fn sum(mut ticks: Vec<Self>) -> Option<Self> {
        while ticks.len() > 1 {
            let mut halved = Vec::with_capacity(ticks.len().div_ceil(2));
            let mut rest = ticks.into_iter();
            while let Some(mut tick) = rest.next() {
                if let Some(later) = rest.next() {
                    tick.append(later);
                }
                halved.push(tick);
            }
            ticks = halved;
        }
        ticks.pop()
    }

    /// Appends a later tick: the two become one that spans both.
    pub fn append(&mut self, later: Tick) {
        self.time = later.time;
        self.mono_us = later.mono_us;
        self.interval_us += later.interval_us;
        self.restarted |= later.restarted;
        self.netns.extend(later.netns);
        // Of two with the same id the earlier one stays first.
        self.netns.sort_by_key(|netns| netns.id);
        self.netns.dedup_by(|later, known| {
            let is_same = later.id == known.id;
            if is_same {
                known.append(later);
            }
            is_same
        });
        self.losses = merged(&self.losses, &later.losses, |sum, more| *sum += more, |sum| *sum == 0);
        let add = |sum: &mut [i64; 3], more: &[i64; 3]| add(sum, more);
        self.flows = merged(&self.flows, &later.flows, add, |sum| *sum == [0; 3]);
        add_all(&mut self.overflow, &later.overflow);
        add_all(&mut self.lost_events, &later.lost_events);
        self.ambiguous += later.ambiguous;
        self.flows_overflow += later.flows_overflow;
        self.unexplained = later.unexplained;
        self.events_seen += later.events_seen;
        self.censuses.extend(later.censuses);
    }
}

impl NetnsTick {
    fn append(&mut self, later: &Self) {
        let peak = self.peak.max(later.peak);
        let mut kernel = self.kernel;
        add_all(&mut kernel, &later.kernel);
        *self = Self { peak, kernel, ..*later };
    }

    fn digest(&self, digest: &mut Digest) {
        let Self { id, presence, complete, count, peak, max, kernel, width } = self;
        digest.int(i64::from(id.packed())).int(*presence as i64).int(i64::from(*complete));
        for number in [count, peak, max] {
            digest.optional(number.map(i64::from));
        }
        digest.ints(kernel).ints(width);
    }
}

fn add(sum: &mut [i64; 3], more: &[i64; 3]) {
    add_all(sum, more);
}

fn add_all(sum: &mut [i64], more: &[i64]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum += more;
    }
}

/// Merges two lists ordered by key.
fn merged<T: Copy>(
    first: &[(SlotKey, T)],
    second: &[(SlotKey, T)],
    add: impl Fn(&mut T, &T),
    is_zero: impl Fn(&T) -> bool,
) -> Vec<(SlotKey, T)> {
    let mut all: Vec<(SlotKey, T)> = first.iter().chain(second).copied().collect();
    all.sort_by_key(|(key, _)| *key);
    let mut sums: Vec<(SlotKey, T)> = Vec::with_capacity(all.len());
    for (key, amount) in all {
        match sums.last_mut() {
            Some((last, sum)) if *last == key => add(sum, &amount),
            _ => sums.push((key, amount)),
        }
    }
    sums.retain(|(_, sum)| !is_zero(sum));
    sums
}
