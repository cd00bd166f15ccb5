//! What a recording contains besides ticks and events, as the writer takes it and the reader returns it.
//! Plain data; each type computes its checksum.

use jiff::Timestamp;

use super::digest::Digest;
use crate::contract::Hook;
use crate::foreign::Foreign;
use crate::model::{Backend, KernelCounters, NetnsId, WallMono};

/// One watch on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// When it began.
    pub started: WallMono,
    /// Stays the same until the host is rebooted.
    pub boot_id: Option<Foreign>,
    /// Host name.
    pub host: Option<Foreign>,
    /// Version of ctwatch.
    pub version: Foreign,
    /// `uname -r`
    pub kernel_release: Foreign,
    /// The backend.
    pub backend: Backend,
    /// Why this backend, and what it can't see.
    pub backend_reason: Option<Foreign>,
    /// Time between two ticks, microseconds.
    pub interval_us: i64,
    /// Whether inserts and deletes were counted.
    pub counts_flows: bool,
    /// Where the programs were attached: function and kind.
    pub hooks: Vec<(Foreign, Foreign)>,
    /// What the kernel had counted before the run.
    pub since_boot: KernelCounters,
    /// It continues a run of the previous file.
    pub continues: bool,
}

impl Run {
    /// Its hooks as the start record shows them.
    #[must_use]
    pub fn report_hooks(&self) -> Vec<Hook> {
        let hook = |(function, kind): &(Foreign, Foreign)| Hook::attached(function.clone(), kind.clone());
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
        digest
            .optional_text(boot_id.as_ref().map(Foreign::raw))
            .optional_text(host.as_ref().map(Foreign::raw));
        digest
            .text(version.raw())
            .text(kernel_release.raw())
            .text(backend.name())
            .optional_text(backend_reason.as_ref().map(Foreign::raw));
        digest.int(*interval_us).int(i64::from(*counts_flows));
        for (function, kind) in hooks {
            digest.text(function.raw()).text(kind.raw());
        }
        digest.ints(&since_boot.as_array().map(u64::cast_signed)).int(i64::from(*continues)).int(first_tick);
        digest.finish()
    }
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// Ctrl-C or SIGTERM.
    Signal,
    /// `--duration` elapsed.
    Duration,
    /// `--once`: there was an incident.
    Once,
    /// The run continues in the next file.
    Rotated,
    /// The disk was full.
    DiskFull,
    /// Recording failed.
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

/// Something the reader of a recording should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// When.
    pub at: WallMono,
    /// The code, for scripts.
    pub code: Foreign,
    /// The text, for people.
    pub text: Foreign,
}

impl Notice {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.instant(&self.at);
        digest.int(run).text(self.code.raw()).text(self.text.raw()).finish()
    }
}

/// The first reading of a setting, or a change to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// When it was seen.
    pub at: WallMono,
    /// The sysctl, or a path below /sys.
    pub name: Foreign,
    /// Its value; `None` if it no longer exists.
    pub value: Option<Foreign>,
    /// Its value before; `None` for the first reading.
    pub before: Option<Foreign>,
}

impl Setting {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.instant(&self.at);
        digest.int(run).text(self.name.raw()).optional_text(self.value.as_ref().map(Foreign::raw));
        digest.optional_text(self.before.as_ref().map(Foreign::raw)).finish()
    }
}

/// The first reading of a setting in another netns than the recorder's, or a change to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsSetting {
    /// Whose setting.
    pub netns: NetnsId,
    /// The setting.
    pub setting: Setting,
}

impl NetnsSetting {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.int(i64::from(self.netns.packed())).int(i64::from(self.setting.checksum(run))).finish()
    }
}

/// Why a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// The run began.
    Start,
    /// A trigger fired.
    Trigger,
    /// It is not as it was.
    Changed,
}

impl SnapshotReason {
    /// Its spelling in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Trigger => "trigger",
            Self::Changed => "changed",
        }
    }

    /// The reason with this spelling.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Start, Self::Trigger, Self::Changed].into_iter().find(|one| one.name() == name)
    }
}

/// What `advise` needs to know of the machine, as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSnapshot {
    /// When.
    pub at: WallMono,
    /// Why it was taken.
    pub reason: SnapshotReason,
    /// JSON.
    pub json: String,
}

impl MachineSnapshot {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let mut digest = Digest::default();
        digest.instant(&self.at);
        digest.int(run).text(self.reason.name()).text(&self.json).finish()
    }
}

/// A trigger that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// As given with `--when`.
    pub condition: Foreign,
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
    /// When its condition cleared.
    pub ceased: Option<Timestamp>,
}

impl Incident {
    pub(super) fn checksum(&self, run: i64) -> u32 {
        let Self { condition, tick, at, measured, detail_from, detail_to, ceased } = self;
        let mut digest = Digest::default();
        digest.instant(at);
        digest.int(run).text(condition.raw()).int(*tick).text(measured).int(*detail_from).int(*detail_to);
        digest.optional(ceased.map(|ceased| ceased.as_microsecond())).finish()
    }
}

/// A table listed entry by entry.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredListing {
    /// Whose table.
    pub netns: NetnsId,
    /// Why it was taken.
    pub reason: SnapshotReason,
    /// When it began.
    pub at: WallMono,
    /// How long it took, microseconds.
    pub took_us: i64,
    /// Entries.
    pub entries: u64,
    /// Entries listed twice; each is counted once.
    pub duplicates: u64,
    /// The listing may be inconsistent.
    pub interrupted: bool,
    /// What it contained, as `advise` needs it.
    pub census: crate::listing::Listing,
}

/// What a netns was called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// "host", a name from /run/netns, that of its container, or none.
    pub name: Option<Foreign>,
    /// The container or pod that lived in it.
    pub container: Option<Foreign>,
}

pub(super) fn netns_checksum(run: i64, id: NetnsId, names: &Names) -> u32 {
    let Names { name, container } = names;
    let mut digest = Digest::default();
    digest.int(run).int(i64::from(id.packed()));
    digest
        .optional_text(name.as_ref().map(Foreign::raw))
        .optional_text(container.as_ref().map(Foreign::raw))
        .finish()
}
