//! What a recording holds besides ticks and events, as the writer takes it and the reader gives it.
//! Plain data; every kind knows its checksum.

use jiff::Timestamp;

use super::digest::Digest;
use super::rebuild::Names;
use crate::contract::Hook;
use crate::model::{KernelCounters, NetnsId, WallMono};

/// One watch on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// When it began.
    pub started: WallMono,
    /// The same until the host boots again.
    pub boot_id: Option<String>,
    /// The host's name.
    pub host: Option<String>,
    /// Version of ctwatch.
    pub version: String,
    /// `uname -r`
    pub kernel_release: String,
    /// "kprobe", "tracepoint" or "counters"
    pub backend: String,
    /// Why this one, and what can't be seen with it.
    pub backend_reason: Option<String>,
    /// Time between two ticks, microseconds.
    pub interval_us: i64,
    /// Whether inserts and deletes were counted.
    pub counts_flows: bool,
    /// Where the programs sat: function and kind.
    pub hooks: Vec<(String, String)>,
    /// What the kernel had counted before.
    pub since_boot: KernelCounters,
    /// It goes on from the file before.
    pub continues: bool,
}

impl Run {
    /// Its hooks as the start record has them.
    #[must_use]
    pub fn report_hooks(&self) -> Vec<Hook> {
        let hook =
            |(function, kind): &(String, String)| Hook { function: function.clone(), kind: kind.clone() };
        self.hooks.iter().map(hook).collect()
    }

    pub(super) fn checksum(&self, first_tick: i64) -> u32 {
        let Self {
            started,
            boot_id,
            host,
            version,
            kernel_release,
            backend,
            backend_reason,
            interval_us,
            counts_flows,
            hooks,
            since_boot,
            continues,
        } = self;
        let mut digest = Digest::default();
        digest.instant(started);
        digest.optional_text(boot_id.as_deref()).optional_text(host.as_deref());
        digest.text(version).text(kernel_release).text(backend).optional_text(backend_reason.as_deref());
        digest.int(*interval_us).int(i64::from(*counts_flows));
        for (function, kind) in hooks {
            digest.text(function).text(kind);
        }
        digest.ints(&super::track::four(since_boot)).int(i64::from(*continues)).int(first_tick);
        digest.finish()
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Ctrl-C or SIGTERM.
    Signal,
    /// `--duration` is over.
    Duration,
    /// `--once`: there was an incident.
    Once,
    /// The next file goes on.
    Rotated,
    /// No room on the disk.
    DiskFull,
    /// Something went wrong.
    Failed,
}

impl EndReason {
    const ALL: [Self; 6] =
        [Self::Signal, Self::Duration, Self::Once, Self::Rotated, Self::DiskFull, Self::Failed];

    /// Its spelling in files and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Duration => "duration",
            Self::Once => "once",
            Self::Rotated => "rotated",
            Self::DiskFull => "disk_full",
            Self::Failed => "failed",
        }
    }

    /// The reason with this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// When.
    pub at: WallMono,
    /// Why.
    pub reason: EndReason,
    /// The number of its last tick.
    pub last_tick: i64,
}

impl RunEnd {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.instant(&self.at);
        digest.int(run).text(self.reason.name()).int(self.last_tick).finish()
    }
}

/// Something the reader should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// When.
    pub at: WallMono,
    /// What, for scripts.
    pub code: String,
    /// What, for people.
    pub text: String,
}

impl Notice {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.instant(&self.at);
        digest.int(run).text(&self.code).text(&self.text).finish()
    }
}

/// A setting when it was first seen, or a change of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// When it was seen.
    pub at: WallMono,
    /// The sysctl, or a path below /sys.
    pub name: String,
    /// Its value; `None` if there is no such setting any more.
    pub value: Option<String>,
    /// What it was before; `None` when it is first seen.
    pub before: Option<String>,
}

impl Setting {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.instant(&self.at);
        digest.int(run).text(&self.name).optional_text(self.value.as_deref());
        digest.optional_text(self.before.as_deref()).finish()
    }
}

/// Why something was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// The run began.
    Start,
    /// A trigger fired.
    Trigger,
}

impl SnapshotReason {
    /// Its spelling in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Trigger => "trigger",
        }
    }

    /// The occasion with this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Start, Self::Trigger].into_iter().find(|one| one.name() == name)
    }
}

/// What was read of the machine: [`crate::machine::Machine`] as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSnapshot {
    /// When.
    pub at: WallMono,
    /// Why then.
    pub occasion: SnapshotReason,
    /// JSON.
    pub json: String,
}

impl MachineSnapshot {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.instant(&self.at);
        digest.int(run).text(self.occasion.name()).text(&self.json).finish()
    }
}

/// A trigger that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// As given with `--when`.
    pub condition: String,
    /// The tick it fired in.
    pub tick: i64,
    /// That tick's end.
    pub at: WallMono,
    /// JSON: what was measured then.
    pub measured: String,
    /// First tick whose detail is kept.
    pub detail_from: i64,
    /// Last tick whose detail is kept.
    pub detail_to: i64,
    /// When its condition ceased to hold.
    pub ceased: Option<Timestamp>,
}

impl Incident {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let Self { condition, tick, at, measured, detail_from, detail_to, ceased } = self;
        let mut digest = Digest::default();
        digest.instant(at);
        digest.int(run).text(condition).int(*tick).text(measured).int(*detail_from).int(*detail_to);
        digest.optional(ceased.map(|ceased| ceased.as_microsecond())).finish()
    }
}

/// A table read entry by entry.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredListing {
    /// Whose table.
    pub netns: NetnsId,
    /// Why then.
    pub occasion: SnapshotReason,
    /// When it began.
    pub at: WallMono,
    /// How long it took, microseconds.
    pub took_us: i64,
    /// Entries.
    pub entries: u64,
    /// Listed twice, and counted once.
    pub duplicates: u64,
    /// It may be inconsistent.
    pub interrupted: bool,
    /// What it held, as `advise` needs it.
    pub census: crate::listing::Listing,
}

pub(super) fn netns_checksum(run: i64, id: NetnsId, names: &Names) -> u32 {
    let Names { name, container } = names;
    let mut digest = Digest::default();
    digest.int(run).int(i64::from(id.packed()));
    digest.optional_text(name.as_deref()).optional_text(container.as_deref()).finish()
}
