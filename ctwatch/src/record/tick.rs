//! What a recording keeps of one sample: how far everything moved since the one before.
//! Plain data, the same on the way into the file and out of it; [`Tick::checksum`] is how damage shows.

use ctwatch_common::cause::CAUSES;
use ctwatch_common::slot::SlotKey;
use jiff::Timestamp;

use super::digest::Digest;
use crate::model::{Census, NetnsId};

/// The four kernel counters in the order of [`crate::model::KernelCounters`].
pub type Four = [i64; 4];

/// How all counters moved in one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Tick {
    /// Wall clock at its end.
    pub time: Timestamp,
    /// CLOCK_MONOTONIC at its end, microseconds.
    pub mono_us: i64,
    /// Its length, microseconds; of a thinned tick, the sum of those it stands for.
    pub interval_us: i64,
    /// conntrack was loaded anew in it.
    pub restarted: bool,
    /// Namespaces of which anything changed, by id.
    pub netns: Vec<NetnsTick>,
    /// Losses by slot, in the order of their keys.
    pub losses: Vec<(SlotKey, i64)>,
    /// Inserts, deletes and inserts that failed after all by slot, in the order of their keys.
    pub flows: Vec<(SlotKey, [i64; 3])>,
    /// Losses that have no slot, by cause number. Negative where some got theirs later.
    pub overflow: [i64; CAUSES],
    /// Events that did not fit the ring buffer, by cause number.
    pub lost_events: [i64; CAUSES],
    /// Losses that may be a firewall's.
    pub ambiguous: i64,
    /// Inserts and deletes that have no slot. Negative where some got theirs later.
    pub flows_overflow: i64,
    /// What the kernel had counted and ctwatch hadn't at its end.
    pub unexplained: Four,
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
    /// It is gone, and what is known of it is still reported.
    Gone = 1,
    /// Nothing is reported of it any more.
    Absent = 2,
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
    /// The most entries at the end of any tick this one stands for.
    pub peak: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// How far the kernel's counters moved.
    pub kernel: Four,
    /// How far they moved while ours were read.
    pub width: Four,
}

impl Presence {
    /// From its number in the file.
    #[must_use]
    pub const fn from_number(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::Present),
            1 => Some(Self::Gone),
            2 => Some(Self::Absent),
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

    /// Over everything but the censuses, which have their own.
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

    /// Puts a later tick behind this one: the two become one, as long as both.
    pub fn append(&mut self, later: Tick) {
        self.time = later.time;
        self.mono_us = later.mono_us;
        self.interval_us += later.interval_us;
        self.restarted |= later.restarted;
        for more in later.netns {
            match self.netns.iter_mut().find(|known| known.id == more.id) {
                Some(known) => known.append(&more),
                None => self.netns.push(more),
            }
        }
        self.netns.sort_by_key(|netns| netns.id);
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

/// Two lists in the order of their keys become one.
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
