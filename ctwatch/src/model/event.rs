//! What flows from the kernel into `state`: losses as they happen, and one sample of all counters per tick.
//! Live and replayed data have these same types; nothing here does I/O.

use std::sync::Arc;

use ctwatch_common::event::{EntryPart, LossEvent, OwnerPart};
use ctwatch_common::slot::SlotKey;
use jiff::Timestamp;

use super::{FlowSample, KernelCounters, NetnsId, Owner};

/// One loss with its wall-clock time.
#[derive(Clone, Debug)]
pub struct Loss {
    /// When the kernel saw it.
    pub time: Timestamp,
    /// The event as it came out of the ring buffer.
    pub event: LossEvent,
    /// The entry it is about (flag ENTRY).
    pub entry: EntryPart,
    /// The process that sent it (flag OWNER).
    pub owner: OwnerPart,
    /// The new flow that pushed an evicted entry out.
    pub pushed_out_by: Option<LossEvent>,
    /// Whose packet it was; `None` if nobody asked.
    pub who: Option<Arc<Owner>>,
    /// The kernel's HZ, by which `entry.left` counts; `None` until it is known.
    pub jiffies_per_s: Option<u32>,
}

impl Loss {
    /// A loss of which nothing but the event is known.
    #[must_use]
    pub fn new(time: Timestamp, event: LossEvent) -> Self {
        let (entry, owner) = Default::default();
        Self { time, event, entry, owner, pushed_out_by: None, who: None, jiffies_per_s: None }
    }
}

/// One network namespace at the time of a sample.
#[derive(Clone, Debug)]
pub struct NetnsSample {
    /// Its inode number.
    pub id: NetnsId,
    /// "host", a name from /run/netns, that of its container, or none.
    pub name: Option<String>,
    /// The container or pod that lives in it.
    pub container: Option<String>,
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
}

/// One exact counter slot. Values are totals since the programs were attached.
#[derive(Clone, Copy, Debug)]
pub struct SlotSample {
    /// What it counts. Two slots may have the same key: add them up.
    pub key: SlotKey,
    /// Losses, or inserts for KIND_FLOWS.
    pub count: u64,
    /// Deletes for KIND_FLOWS.
    pub deletes: u64,
    /// Inserts that failed after all, for KIND_FLOWS.
    pub failed: u64,
}

/// Everything read at one tick.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Wall clock.
    pub time: Timestamp,
    /// Seconds since the last sample (measured, not asked for).
    pub interval_s: f64,
    /// All netns watched.
    pub netns: Vec<NetnsSample>,
    /// All slots in use.
    pub slots: Vec<SlotSample>,
    /// Losses without a slot of their own, by cause number (totals).
    pub overflow: [u64; ctwatch_common::cause::CAUSES],
    /// Events that did not fit the ring buffer, by cause number (totals).
    pub lost_events: [u64; ctwatch_common::cause::CAUSES],
    /// Drops that may be conntrack's or a firewall's (total; tracepoint backend only).
    pub ambiguous: u64,
    /// Censuses, and what they can't know.
    pub flows: FlowSample,
}
