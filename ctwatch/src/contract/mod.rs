//! What `state` reports, as views and scripts see it: the JSON contract of docs/schema/.
//! Fields are added, never renamed or given another meaning within one schema number.

use std::net::IpAddr;

use ctwatch_common::Cause;
use ctwatch_common::cause::{CAUSES, Unit};
use jiff::Timestamp;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use crate::foreign::Foreign;
use crate::model::{Backend, CounterSource, KernelCounters, NetnsId, Protocol};

pub mod breakdown;
mod event;
mod reconciliation;
mod serialize;
mod table;

pub use event::{DropEvent, Entry, Event, FillSource, Flow, InsertEvent, Packet, Process, Tuple, View};
pub use reconciliation::{Agreement, Agreements, CounterLine, Unexplained, reconciliation};
use serialize::{counter_source, optional_cause, unit};
pub(crate) use serialize::{is_false, is_zero, millis, optional_millis, optional_rounded, rounded};
pub use table::{Occupant, Occupied, TableStatus, TablesLeftOut, fill};

/// The number of the contract.
pub const SCHEMA: u32 = 1;

/// The first record.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// [`SCHEMA`]
    pub schema: u32,
    /// Version of ctwatch.
    pub version: Foreign,
    /// When watching began.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// `uname -r`
    pub kernel_release: Foreign,
    /// Where the losses come from.
    pub backend: Backend,
    /// Why this backend and no better one.
    pub backend_reason: Option<Foreign>,
    /// Where the programs sit.
    pub hooks: Vec<Hook>,
    /// What the kernel counted before ctwatch came.
    pub since_boot: KernelCounters,
    /// Where the kernel's counters are read: "procfs" or "ctnetlink"; left out where they can't be read at all, and where it
    /// isn't known.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "counter_source")]
    pub kernel_counters_from: Option<CounterSource>,
}

/// One program's place.
#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    /// Kernel function or tracepoint.
    pub function: Foreign,
    /// "kprobe", "kretprobe", "raw_tracepoint", …
    pub kind: Foreign,
    /// Why nothing is attached there, if nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<Foreign>,
    /// What isn't seen without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costs: Option<Foreign>,
}

impl Hook {
    /// One that has its program.
    #[must_use]
    pub const fn attached(function: Foreign, kind: Foreign) -> Self {
        Self { function, kind, missing: None, costs: None }
    }
}

/// One interval.
#[derive(Clone, Debug, Serialize)]
pub struct Tick {
    /// Its end.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// Its measured length.
    #[serde(serialize_with = "rounded")]
    pub interval_s: f64,
    /// The fill of every netns watched.
    pub tables: Vec<TableStatus>,
    /// What `tables` lacks, where a line would get too long with all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tables_left_out: Option<TablesLeftOut>,
    /// What lost something in this interval.
    pub rows: Vec<Row>,
    /// Losses since the baseline, unfiltered.
    pub counted: Counted,
    /// The kernel's counters since the baseline.
    pub kernel_counters: KernelCounters,
    /// Events that did not fit the ring buffer since the baseline.
    pub lost_events: u64,
    /// What the kernel counted and ctwatch didn't (negative: the other way).
    pub unexplained: Unexplained,
    /// Drops that can't be told from a firewall's, so that their tuples may be wrong. Always there on the
    /// tracepoint backend, elsewhere if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambiguous: Option<u64>,
}

/// The last record: totals over the whole run.
#[derive(Clone, Debug, Serialize)]
pub struct End {
    /// When watching ended.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// How long it lasted.
    #[serde(serialize_with = "rounded")]
    pub duration_s: f64,
    /// See [`Tick::counted`].
    pub counted: Counted,
    /// See [`Tick::kernel_counters`].
    pub kernel_counters: KernelCounters,
    /// See [`Tick::lost_events`].
    pub lost_events: u64,
    /// See [`Tick::unexplained`].
    pub unexplained: Unexplained,
    /// What lost something during the run.
    pub rows: Vec<Row>,
    /// See [`Tick::ambiguous`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ambiguous: Option<u64>,
    /// Namespaces that vanished: the kernel's last words on them are missing.
    pub netns_gone: u64,
    /// Namespaces that are there and whose counters can't be read.
    #[serde(skip_serializing_if = "is_zero")]
    pub netns_not_readable: u64,
    /// How ctwatch's totals compare with the kernel's.
    pub agreement: Agreements,
    /// See [`Start::kernel_counters_from`].
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "counter_source")]
    pub kernel_counters_from: Option<CounterSource>,
    /// Losses whose keys found no counter of their own, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overflow: Option<Counted>,
    /// Losses whose keys are too many for a row each, if any: they are in the rows of rests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summed_up: Option<Counted>,
    /// Who occupied, in the end, the tables that lost something or were at least half full: of 256 of them at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub occupied: Vec<Occupied>,
    /// Lines left out before this one, as nobody read them in time.
    #[serde(skip_serializing_if = "is_zero")]
    pub unwritten_lines: u64,
}

/// Losses of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The netns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsId>,
    /// What the netns is called (rows by netns); null if it has no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Option<Foreign>>,
    /// Whose packets they were (rows by process); null if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Option<Process>>,
    /// In which container or unit that was (rows by container); null if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Option<Foreign>>,
    /// The protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Protocol>,
    /// Source address of the original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address of the original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Its port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// The service port: the destination port of the original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The well-known name of the service; null if the port has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Option<&'static str>>,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// ICMP id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// The packets travelled over the loopback device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loopback: Option<bool>,
    /// Conntrack zone of the entry's original direction, of one that was to be made, too; 0 is the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_original: Option<u16>,
    /// That of its reply direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone_reply: Option<u16>,
    /// Too little is known of these losses for a row of their own.
    #[serde(skip_serializing_if = "is_false")]
    pub unattributed: bool,
    /// The sum of keys that have no row here.
    #[serde(skip_serializing_if = "is_false")]
    pub rest: bool,
    /// These found no counter of their own in the kernel.
    #[serde(skip_serializing_if = "is_false")]
    pub overflow: bool,
    /// The cause; left out when a rest sums up several.
    #[serde(serialize_with = "optional_cause", skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What the losses are counted in.
    #[serde(serialize_with = "unit")]
    pub unit: Unit,
    /// Losses in this interval (in the end record: in the whole run).
    pub losses: u64,
    /// Losses since the baseline.
    pub losses_total: u64,
    /// Whether the cause is known or inferred.
    pub certainty: Certainty,
    /// False if some losses may be missing from the numbers.
    pub exact: bool,
}

/// How a cause is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Certainty {
    /// Conntrack's own code path was seen.
    Exact,
    /// Drawn from circumstances.
    Inferred,
}

/// Losses by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted(pub [u64; CAUSES]);

impl Counted {
    /// Losses of one cause.
    #[must_use]
    pub fn of(&self, cause: Cause) -> u64 {
        self.0[cause as usize]
    }

    /// How far ctwatch's causes move each of the kernel's counters.
    #[must_use]
    pub fn in_kernel_terms(&self) -> KernelCounters {
        let sum = |bumps: fn(Cause) -> bool| {
            Cause::ALL.into_iter().filter(|cause| bumps(*cause)).map(|cause| self.of(cause)).sum()
        };
        KernelCounters {
            drop: sum(Cause::bumps_drop),
            early_drop: sum(Cause::bumps_early_drop),
            insert_failed: sum(Cause::bumps_insert_failed),
            chaintoolong: sum(Cause::bumps_chaintoolong),
        }
    }
}

impl Counted {
    /// These, if there are any.
    #[must_use]
    pub fn any(self) -> Option<Self> {
        Cause::ALL.into_iter().any(|cause| self.of(cause) > 0).then_some(self)
    }
}

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for cause in Cause::ALL {
            // `invalid` is only counted on demand, and `expect_full` not everywhere nor in older recordings; a 0 would claim
            // that there was none.
            if !matches!(cause, Cause::Invalid | Cause::ExpectFull) || self.of(cause) > 0 {
                map.serialize_entry(cause.name(), &self.of(cause))?;
            }
        }
        map.end()
    }
}

/// Something the reader should know.
#[derive(Clone, Debug, Serialize)]
pub struct Notice {
    /// When.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// For scripts: "waiting_for_conntrack", "reattached", "events_lost", …
    pub code: &'static str,
    /// For people.
    pub text: Foreign,
}

/// Whether ctwatch can run here.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// [`SCHEMA`]
    pub schema: u32,
    /// Version of ctwatch.
    pub version: String,
    /// `uname -r`
    pub kernel_release: String,
    /// The backend `drops` would use; null if none works.
    pub backend: Option<Backend>,
    /// Why no better one, and what that costs; null for the best, and where none works.
    pub backend_reason: Option<String>,
    /// What was looked at.
    pub items: Vec<CheckItem>,
    /// What the verifier said, with `--verifier`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub programs: Vec<CheckProgram>,
}

/// One thing `check` looked at.
#[derive(Clone, Debug, Serialize)]
pub struct CheckItem {
    /// What.
    pub name: String,
    /// Whether it is as it should be; null when it doesn't matter or can't be told.
    pub ok: Option<bool>,
    /// What was found.
    pub found: String,
    /// What would change it.
    pub remedy: Option<String>,
}

/// One program, as the verifier sees it.
#[derive(Clone, Debug, Serialize)]
pub struct CheckProgram {
    /// Its name.
    pub name: String,
    /// Whether it loads.
    pub ok: bool,
    /// Instructions the verifier went through, if the kernel says.
    pub verified_instructions: Option<u64>,
    /// The verifier's log or the error.
    pub log: String,
}
