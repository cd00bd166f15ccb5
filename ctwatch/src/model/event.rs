//! What flows from the kernel into `state`: losses as they happen, and one sample of all counters per tick.
//! Live and replayed data have these same types; nothing here does I/O.

use std::sync::Arc;

use ctwatch_common::Cause;
use ctwatch_common::slot::{SlotKey, SlotKind};
use jiff::Timestamp;

use super::{CounterSource, EntryState, Flow, FlowSample, KernelCounters, NetnsId, Owner, Packet, Sender};
use crate::foreign::Foreign;

/// One record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromKernel {
    /// A packet, or an entry, was lost.
    Loss {
        /// Why.
        cause: Cause,
        /// The packet, or the flow whose entry it was.
        packet: Packet,
        /// The entry it is about.
        entry: Option<EntryState>,
        /// The process that sent the packet.
        sender: Option<Sender>,
    },
    /// A flow got an entry (`--events=insert`).
    Insert(Packet),
    /// The new flow that pushed out the entries evicted at this time.
    Pusher {
        /// [`Packet::at_ns`] of those evictions.
        at_ns: u64,
        /// The flow, if its tuple is known.
        flow: Option<Flow>,
    },
    /// A netns was deleted.
    NetnsGone {
        /// Which.
        netns: NetnsId,
        /// What it had counted in the end, summed up over all CPUs: each modulo 2^32 on each CPU.
        counters: KernelCounters,
    },
}

/// One loss with its wall-clock time.
#[derive(Clone, Debug)]
pub struct Loss {
    /// When the kernel saw it.
    pub time: Timestamp,
    /// Why.
    pub cause: Cause,
    /// The packet, or the flow whose entry it was.
    pub packet: Packet,
    /// The entry it is about.
    pub entry: Option<EntryState>,
    /// The process that sent the packet, as the kernel knows it.
    pub sender: Option<Sender>,
    /// The new flow that pushed an evicted entry out.
    pub pushed_out_by: Option<Flow>,
    /// Whose packet it was; `None` if nobody asked.
    pub owner: Option<Arc<Owner>>,
    /// The kernel's HZ, by which [`EntryState::left_jiffies`] counts; `None` until it is known.
    pub jiffies_per_s: Option<u32>,
}

impl Loss {
    /// A loss of which nothing but the packet is known.
    #[must_use]
    pub fn new(time: Timestamp, cause: Cause, packet: Packet) -> Self {
        let (entry, sender, pushed_out_by, owner, jiffies_per_s) = Default::default();
        Self { time, cause, packet, entry, sender, pushed_out_by, owner, jiffies_per_s }
    }
}

/// One flow that got an entry, with its wall-clock time.
#[derive(Clone, Debug)]
pub struct Insert {
    /// When the kernel saw it.
    pub time: Timestamp,
    /// Its first packet.
    pub packet: Packet,
}

/// One network namespace at the time of a sample.
#[derive(Clone, Debug)]
pub struct NetnsSample {
    /// Its inode number.
    pub id: NetnsId,
    /// "host", a name from /run/netns, that of its container, or none.
    pub name: Option<Foreign>,
    /// The container or pod that lives in it.
    pub container: Option<Foreign>,
    /// Entries in its table.
    pub count: Option<u32>,
    /// nf_conntrack_max (global; 0 means unlimited).
    pub max: Option<u32>,
    /// The kernel's counters since the baseline, read before ours.
    pub before: KernelCounters,
    /// The same, read again after ours.
    pub after: KernelCounters,
    /// The netns is gone: these are its last known values.
    pub gone: bool,
    /// It is gone, and the kernel's counters are what it had counted in the end.
    pub complete: bool,
    /// Whether the kernel's counters can be read there. If not, `before` and `after` say nothing.
    pub access: NetnsAccess,
}

/// Whether the kernel's counters of a netns can be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetnsAccess {
    /// They can.
    #[default]
    Readable,
    /// No process and no name leads there, or it may not be entered: it is only known by what it lost.
    Unreadable,
}

/// One exact counter slot. Values are totals since the programs were attached, or since its key was last retired.
#[derive(Clone, Copy, Debug)]
pub struct SlotSample {
    /// What it counts. Two slots may have the same key: add them up.
    pub key: SlotKey,
    /// Losses, or inserts of a slot of flows.
    pub count: u64,
    /// Deletes, of a slot of flows.
    pub deletes: u64,
    /// Inserts that failed after all, of a slot of flows.
    pub failed: u64,
}

impl SlotSample {
    /// A slot of flows: its packed key, inserts, deletes and failed inserts.
    #[must_use]
    pub const fn of_flows(key: u64, [count, deletes, failed]: [u64; 3]) -> Self {
        Self { key: SlotKey::unpack(key), count, deletes, failed }
    }

    /// Whether it counts inserts and deletes, not losses.
    #[must_use]
    pub fn counts_flows(&self) -> bool {
        self.key.decode() == Some(SlotKind::Flows)
    }
}

/// Everything read at one tick.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Wall clock.
    pub time: Timestamp,
    /// CLOCK_MONOTONIC at that instant, microseconds.
    pub mono_us: i64,
    /// Seconds since the last sample (measured, not asked for).
    pub interval_s: f64,
    /// All netns watched.
    pub netns: Vec<NetnsSample>,
    /// Where the kernel's counters were read; `None` if nowhere, or if that isn't known (a recording).
    pub counters_from: Option<CounterSource>,
    /// All slots in use.
    pub slots: Vec<SlotSample>,
    /// What keys had counted that have been without a slot since the last sample: in `slots` they begin at 0 again. Only
    /// this sample says so.
    pub retired: Vec<SlotSample>,
    /// Losses without a slot of their own, by cause number (totals).
    pub overflow: [u64; ctwatch_common::cause::CAUSES],
    /// Events that did not fit the ring buffer, by cause number (totals).
    pub lost_events: [u64; ctwatch_common::cause::CAUSES],
    /// Drops that may be conntrack's or a firewall's (total; tracepoint backend only).
    pub ambiguous: u64,
    /// Censuses, and what they can't know.
    pub flows: FlowSample,
}
