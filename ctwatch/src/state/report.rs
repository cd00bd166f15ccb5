//! What `state` reports, as views and scripts see it: the JSON contract of docs/schema/.
//! Fields are added, never renamed or given another meaning within one schema number.

use std::net::IpAddr;

use ctwatch_common::Cause;
use ctwatch_common::cause::{CAUSES, Unit};
use jiff::Timestamp;
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

use super::proto::Protocol;
use crate::event::{KernelCounters, NetnsId, ProcessId, Role};

/// The number of the contract.
pub const SCHEMA: u32 = 1;

/// The first record.
#[derive(Clone, Debug, Serialize)]
pub struct Start {
    /// [`SCHEMA`]
    pub schema: u32,
    /// Version of ctwatch.
    pub version: String,
    /// When watching began.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// `uname -r`
    pub kernel_release: String,
    /// "kprobe", "tracepoint" or "counters"
    pub backend: &'static str,
    /// Why this backend and no better one.
    pub backend_reason: Option<String>,
    /// Where the programs sit.
    pub hooks: Vec<Hook>,
    /// What the kernel counted before ctwatch came.
    pub since_boot: KernelCounters,
}

/// One program's place.
#[derive(Clone, Debug, Serialize)]
pub struct Hook {
    /// Kernel function or tracepoint.
    pub function: String,
    /// "kprobe", "kretprobe", "raw_tracepoint", …
    pub kind: String,
}

/// One interval.
#[derive(Clone, Debug, Serialize)]
pub struct Tick {
    /// Its end.
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    /// Its measured length.
    #[serde(serialize_with = "rounded_millis")]
    pub interval_s: f64,
    /// The fill of every netns watched.
    pub tables: Vec<Table>,
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
    #[serde(serialize_with = "rounded_millis")]
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
    /// Who occupied, in the end, the tables that lost something or were at least half full.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub occupied: Vec<Occupied>,
}

/// The table of one netns.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Its inode number.
    pub netns: NetnsId,
    /// "host", a name from /run/netns, that of its container, or null.
    pub name: Option<String>,
    /// The container, pod or unit that lives in it, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Entries.
    pub count: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// `count / max`, rounded down; null if there is no limit.
    pub fill: Option<f64>,
    /// Entries inserted per second.
    pub new_per_s: Option<f64>,
    /// Entries deleted per second.
    pub gone_per_s: Option<f64>,
    /// Seconds until full at the present trend.
    pub full_in_s: Option<f64>,
    /// Who fills it, most entries first; left out if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occupants: Option<Vec<Occupant>>,
    /// Whether the occupants' entries are exact; left out if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occupancy_exact: Option<bool>,
    /// Packets lost in this interval, unfiltered.
    pub packets_lost: u64,
    /// Entries removed before their time in this interval, unfiltered.
    pub entries_lost: u64,
    /// The netns has vanished; this is its last line.
    #[serde(skip_serializing_if = "is_false")]
    pub gone: bool,
    /// Left out when all is explained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<Unexplained>,
}

impl Table {
    /// From this fill on a table matters even if it loses nothing.
    pub const FILLING: f64 = 0.5;

    /// For the end of the run: who occupies it, if it matters and that is known.
    pub(super) fn occupied(&self, namespaces: &super::Namespaces) -> Option<Occupied> {
        let matters =
            self.fill.is_some_and(|fill| fill >= Self::FILLING) || namespaces.lost_something(self.netns);
        let (occupants, exact) = self.occupants.clone().zip(self.occupancy_exact)?;
        (matters && !self.gone).then(|| Occupied {
            netns: self.netns,
            name: self.name.clone(),
            occupants,
            occupancy_exact: exact,
        })
    }
}

/// Who occupies one table at the end.
#[derive(Clone, Debug, Serialize)]
pub struct Occupied {
    /// See [`Table::netns`].
    pub netns: NetnsId,
    /// See [`Table::name`].
    pub name: Option<String>,
    /// See [`Table::occupants`].
    pub occupants: Vec<Occupant>,
    /// See [`Table::occupancy_exact`].
    pub occupancy_exact: bool,
}

/// Entries of one service port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Occupant {
    /// The protocol.
    pub proto: Protocol,
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
    /// Its entries.
    pub entries: u64,
    /// Their part of all entries, rounded down.
    pub share: f64,
    /// Entries that come, per second, over about ten seconds.
    pub new_per_s: f64,
    /// How long they last, if that was measured.
    pub mean_lifetime_s: Option<f64>,
    /// The part of them in TIME_WAIT when last looked at; null if unknown or not TCP.
    pub time_wait_share: Option<f64>,
}

/// Losses of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The netns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<NetnsId>,
    /// What the netns is called (rows by netns); null if it has no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Option<String>>,
    /// Whose packets they were (rows by process); null if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Option<Process>>,
    /// In which container or unit that was (rows by container); null if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Option<String>>,
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

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for cause in Cause::ALL {
            // `invalid` is only counted on demand; a 0 would claim there was none.
            if cause != Cause::Invalid || self.of(cause) > 0 {
                map.serialize_entry(cause.name(), &self.of(cause))?;
            }
        }
        map.end()
    }
}

/// Per kernel counter: its move minus what ctwatch's causes explain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Unexplained {
    /// Of `drop`.
    pub drop: i64,
    /// Of `early_drop`.
    pub early_drop: i64,
    /// Of `insert_failed`.
    pub insert_failed: i64,
    /// Of `chaintoolong`.
    pub chaintoolong: i64,
}

impl Unexplained {
    /// All is explained.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// A single packet, with `--events`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
#[expect(clippy::large_enum_variant, reason = "shown and forgotten: there is one at a time")]
pub enum Event {
    /// A loss.
    Drop(DropEvent),
    /// A new entry.
    Insert(InsertEvent),
}

/// One loss.
#[derive(Clone, Debug, Serialize)]
pub struct DropEvent {
    /// When the kernel saw it.
    #[serde(serialize_with = "micros")]
    pub time: Timestamp,
    /// Why.
    #[serde(serialize_with = "cause")]
    pub cause: Cause,
    /// Whether the cause is known or inferred.
    pub certainty: Certainty,
    /// Who and where.
    #[serde(flatten)]
    pub packet: Packet,
    /// Whose view the tuple is: that of the packet before NAT, as conntrack sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub view: Option<View>,
    /// Whether the entry's flow is subject to NAT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat: Option<bool>,
    /// The entry's original direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<Tuple>,
    /// The entry's reply direction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply: Option<Tuple>,
    /// What more is known of the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<Entry>,
    /// The new flow that the entry was evicted for; null if unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pushed_out_by: Option<Option<Flow>>,
    /// Netfilter hook, null if unknown.
    pub hook: Option<&'static str>,
    /// The device it came in by, null if unknown.
    #[serde(rename = "in")]
    pub input: Option<String>,
    /// The device it was to go out of, null if unknown.
    #[serde(rename = "out")]
    pub output: Option<String>,
    /// Entries in the table.
    pub count: Option<u32>,
    /// nf_conntrack_max
    pub max: Option<u32>,
    /// `count / max`, rounded down; null if unknown or without limit.
    pub fill: Option<f64>,
    /// Whether `count` was read at that instant or at the last sample.
    pub fill_source: Option<FillSource>,
    /// Whose packet it was, where that is certain.
    pub process: Option<Process>,
    /// Path of that process's cgroup, null if unknown.
    pub cgroup: Option<String>,
    /// Its container or systemd unit; where the process is unknown, what lives in the netns. Null if unknown.
    pub container: Option<String>,
    /// Length of the packet, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
}

/// One new entry.
#[derive(Clone, Debug, Serialize)]
pub struct InsertEvent {
    /// When the kernel saw it.
    #[serde(serialize_with = "micros")]
    pub time: Timestamp,
    /// Who and where.
    #[serde(flatten)]
    pub packet: Packet,
}

/// What an event says about its packet; what is unknown is left out.
#[derive(Clone, Debug, Serialize)]
pub struct Packet {
    /// The netns.
    pub netns: NetnsId,
    /// The protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Protocol>,
    /// Source address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<IpAddr>,
    /// Source port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst: Option<IpAddr>,
    /// Destination port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// ICMP type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// ICMP code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// ICMP id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_id: Option<u16>,
    /// It travelled over the loopback device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loopback: Option<bool>,
    /// Its tuple was missed.
    #[serde(skip_serializing_if = "is_false")]
    pub unattributed: bool,
}

/// Whose view of a packet a tuple is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// As the packet came: conntrack runs before NAT.
    PreNat,
}

/// One direction of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Source port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
}

/// A tuple of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// The protocol.
    pub proto: Protocol,
    /// Where from and where to.
    #[serde(flatten)]
    pub tuple: Tuple,
}

/// An entry that was lost, or not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// It had seen traffic both ways that makes it worth keeping (IPS_ASSURED).
    pub assured: bool,
    /// A reply had been seen (IPS_SEEN_REPLY).
    pub seen_reply: bool,
    /// State of the TCP connection, as `conntrack -L` spells it; null for other protocols.
    pub tcp_state: Option<&'static str>,
    /// Seconds until it would have timed out; null if unknown, or if it never got into the table.
    pub timeout_left_s: Option<f64>,
    /// How old it was. The kernel doesn't tell without time stamps: null.
    pub age_s: Option<f64>,
}

/// When a fill was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FillSource {
    /// At the instant of the event.
    Event,
    /// At the last sample.
    Sample,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Its id in the host's pid namespace.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// What it had to do with the packet.
    pub role: Role,
}

impl From<&ProcessId> for Process {
    fn from(process: &ProcessId) -> Self {
        let name = process.name.split(|byte| *byte == 0).next().unwrap_or_default();
        Self { pid: process.pid, name: String::from_utf8_lossy(name).into_owned(), role: process.role }
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
    pub text: String,
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
    pub backend: Option<&'static str>,
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

/// `count / max`, rounded down so that only a full table shows as full.
#[must_use]
pub fn fill(count: u32, max: u32) -> Option<f64> {
    (max != 0).then(|| (f64::from(count) / f64::from(max) * 10_000.0).floor() / 10_000.0)
}

// serde passes `serialize_with` and `skip_serializing_if` fields by reference.
pub(super) fn is_false(value: &bool) -> bool {
    !value
}

pub(crate) fn millis<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.3}"))
}

fn micros<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

pub(super) fn rounded_millis<S: Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 1_000.0).round() / 1_000.0)
}

fn cause<S: Serializer>(cause: &Cause, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cause.name())
}

fn optional_cause<S: Serializer>(cause: &Option<Cause>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_some(&cause.map(Cause::name))
}

fn unit<S: Serializer>(unit: &Unit, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(unit.name())
}
