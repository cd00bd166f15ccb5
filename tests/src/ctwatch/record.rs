//! The records of `ctwatch drops --format json`, as docs/schema/ has them.
//! Written anew rather than taken from ctwatch: a field renamed there must fail here.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A `rows[]` member. Dimensions that don't belong to the key are absent.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// Inode of the netns.
    pub netns: Option<u64>,
    /// "tcp", "udp", "icmp", "icmpv6", "sctp" …
    pub proto: Option<String>,
    /// Service port: the original direction's destination port.
    pub port: Option<u16>,
    /// Destination port, in rows by flow.
    pub dport: Option<u16>,
    /// Source port, in rows by flow.
    pub sport: Option<u16>,
    /// Source address.
    pub src: Option<String>,
    /// Destination address.
    pub dst: Option<String>,
    /// Whether the flow stays on loopback.
    pub loopback: Option<bool>,
    /// Whose packets, in rows by process; absent or null if unknown.
    pub process: Option<Process>,
    /// What lost it; absent only in the rest row.
    pub cause: Option<String>,
    /// "packets" or "entries".
    pub unit: Option<String>,
    /// Losses in the tick; in the end line, in the run.
    pub losses: u64,
    /// Losses in the run.
    pub losses_total: u64,
    /// "exact" or "inferred".
    pub certainty: Option<String>,
    /// Whether no event was missed for this number.
    pub exact: Option<bool>,
    /// The sum of what --top cut.
    #[serde(default)]
    pub rest: bool,
    /// Losses that found no counter of their own.
    #[serde(default)]
    pub overflow: bool,
    /// A loss whose tuple was missed.
    #[serde(default)]
    pub unattributed: bool,
    /// In rows by container.
    pub container: Option<String>,
    /// In rows by flow: the zone of the entry's original direction.
    pub zone_original: Option<u16>,
    /// And that of its reply direction.
    pub zone_reply: Option<u16>,
}

impl Row {
    /// The row's cause, or "" in the rest row.
    pub fn cause(&self) -> &str {
        self.cause.as_deref().unwrap_or_default()
    }

    /// The row's protocol, or "".
    pub fn proto(&self) -> &str {
        self.proto.as_deref().unwrap_or_default()
    }

    /// The service port under either name.
    pub fn service_port(&self) -> Option<u16> {
        self.port.or(self.dport)
    }
}

/// A process that a row or an event names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Process {
    /// In the host's pid namespace.
    pub pid: u32,
    /// The kernel's name for it.
    pub name: String,
    /// "sender" or "listener".
    pub role: String,
}

/// The line everything starts with.
#[derive(Clone, Debug, Deserialize)]
pub struct Start {
    /// "kprobe", "tracepoint" or "counters".
    pub backend: String,
    /// Why this one.
    pub backend_reason: Option<String>,
    /// What is attached where.
    pub hooks: Vec<Hook>,
    /// The kernel's counters at attach.
    pub since_boot: BTreeMap<String, u64>,
    /// The running kernel.
    pub kernel_release: String,
    /// Where the kernel's counters are read.
    pub kernel_counters_from: Option<String>,
}

/// One attached program.
#[derive(Clone, Debug, Deserialize)]
pub struct Hook {
    /// Kernel function or tracepoint.
    pub function: String,
    /// kprobe, kretprobe, raw_tracepoint …
    pub kind: String,
    /// Why it isn't attached.
    pub missing: Option<String>,
    /// What that costs.
    pub costs: Option<String>,
}

/// A table's state in a tick.
#[derive(Clone, Debug, Deserialize)]
pub struct Table {
    /// Inode of the netns.
    pub netns: u64,
    /// Entries; unknown of a netns that was gone before anyone looked.
    pub count: Option<u64>,
    /// Limit; unknown of a netns that nobody could look into.
    pub max: Option<u64>,
    /// count / max; null when unlimited.
    pub fill: Option<f64>,
    /// Arrivals.
    pub new_per_s: Option<f64>,
    /// Seconds until full.
    pub full_in_s: Option<f64>,
    /// Who fills it.
    #[serde(default)]
    pub occupants: Vec<Occupant>,
    /// Whether the occupants' numbers are exact.
    pub occupancy_exact: Option<bool>,
    /// The netns has vanished.
    #[serde(default)]
    pub gone: bool,
    /// The container that the netns is of.
    pub container: Option<String>,
    /// What it is called.
    pub name: Option<String>,
    /// The kernel's counters can't be read there.
    #[serde(default)]
    pub not_readable: bool,
}

/// One service port's entries in a table.
#[derive(Clone, Debug, Deserialize)]
pub struct Occupant {
    /// Protocol.
    pub proto: String,
    /// Service port.
    pub port: Option<u16>,
    /// Entries.
    pub entries: u64,
    /// Its part of the table.
    pub share: f64,
}

/// One interval.
#[derive(Clone, Debug, Deserialize)]
pub struct Tick {
    /// Tables that matter.
    pub tables: Vec<Table>,
    /// Keys that lost something.
    pub rows: Vec<Row>,
    /// Totals by cause since the baseline.
    pub counted: BTreeMap<String, u64>,
    /// The kernel's counters since the baseline.
    pub kernel_counters: BTreeMap<String, u64>,
    /// kernel − counted, per kernel counter.
    pub unexplained: BTreeMap<String, i64>,
}

/// The totals at the end.
#[derive(Clone, Debug, Deserialize)]
pub struct End {
    /// Totals by cause since the baseline.
    pub counted: BTreeMap<String, u64>,
    /// The kernel's counters since the baseline.
    pub kernel_counters: BTreeMap<String, u64>,
    /// Events the ring had no room for.
    pub lost_events: u64,
    /// kernel − counted, per kernel counter.
    pub unexplained: BTreeMap<String, i64>,
    /// Every key that lost something during the run.
    pub rows: Vec<Row>,
    /// Tracepoint backend: drops seen that may be a firewall's.
    pub ambiguous: Option<u64>,
    /// Losses without a counter of their own, by cause.
    #[serde(default)]
    pub overflow: BTreeMap<String, u64>,
    /// Losses of keys that are too many for a row each, by cause.
    #[serde(default)]
    pub summed_up: BTreeMap<String, u64>,
    /// Namespaces whose last counts nobody read.
    pub netns_gone: u64,
    /// A verdict on each of the kernel's counters: agree, differ, not_readable.
    pub agreement: BTreeMap<String, String>,
    /// Where the kernel's counters were read.
    pub kernel_counters_from: Option<String>,
}

impl End {
    /// A cause's total; 0 when it isn't listed.
    pub fn counted(&self, cause: &str) -> u64 {
        self.counted.get(cause).copied().unwrap_or(0)
    }

    /// Losses of one cause and protocol per service port, in one netns, split from rows without a port.
    pub fn per_port(&self, netns: u64, proto: &str, cause: &str) -> BTreeMap<u16, u64> {
        let mut ports = BTreeMap::new();
        for row in &self.rows {
            if row.netns == Some(netns)
                && row.proto() == proto
                && row.cause() == cause
                && let Some(port) = row.service_port()
            {
                *ports.entry(port).or_default() += row.losses;
            }
        }
        ports
    }

    /// Losses in rows without a tuple; a normal run has none.
    pub fn unattributed(&self) -> u64 {
        self.rows.iter().filter(|row| row.unattributed).map(|row| row.losses).sum()
    }

    /// Sum of a cause over all rows.
    pub fn row_sum(&self, cause: &str) -> u64 {
        self.rows.iter().filter(|row| row.cause() == cause).map(|row| row.losses).sum()
    }

    /// Packets lost to conntrack by any cause.
    pub fn packets_lost(&self) -> u64 {
        ["table_full", "no_memory", "clash", "chain_too_long", "dying", "tcp_race", "expect_full", "other"]
            .iter()
            .map(|cause| self.counted(cause))
            .sum()
    }

    /// All zero, as it must be once traffic is quiet?
    pub fn all_explained(&self) -> bool {
        self.unexplained.values().all(|value| *value == 0)
    }
}

/// One lost packet or entry (`--events`).
#[derive(Clone, Debug, Deserialize)]
pub struct Drop {
    /// What lost it.
    pub cause: String,
    /// "exact" or "inferred".
    pub certainty: String,
    /// Inode of the netns.
    pub netns: u64,
    /// Protocol name.
    pub proto: String,
    /// Source address.
    pub src: String,
    /// Destination address.
    pub dst: String,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// ICMP type.
    pub icmp_type: Option<u8>,
    /// ICMP code.
    pub icmp_code: Option<u8>,
    /// ICMP identifier.
    pub icmp_id: Option<u16>,
    /// The zone of the entry's original direction.
    pub zone_original: Option<u16>,
    /// And that of its reply direction.
    pub zone_reply: Option<u16>,
    /// "output", "prerouting" or null.
    pub hook: Option<String>,
    /// Incoming device.
    #[serde(rename = "in")]
    pub device_in: Option<String>,
    /// Outgoing device.
    #[serde(rename = "out")]
    pub device_out: Option<String>,
    /// Entries at that instant.
    pub count: Option<u64>,
    /// Limit at that instant.
    pub max: Option<u64>,
    /// count / max.
    pub fill: Option<f64>,
    /// "event" or "sample".
    pub fill_source: Option<String>,
    /// The entry's reply direction.
    pub reply: Option<Ends>,
    /// The entry's original direction.
    pub original: Option<Ends>,
    /// Whether the reply direction is another one than the original's mirror.
    pub nat: Option<bool>,
    /// What kind of entry it was.
    pub entry: Option<EntryState>,
    /// The new flow for which an entry was evicted.
    pub pushed_out_by: Option<Ends>,
    /// Whose packet it was, or who listens.
    pub process: Option<Process>,
    /// The container of that process or of the netns.
    pub container: Option<String>,
}

/// Two ends of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ends {
    /// Source address.
    pub src: String,
    /// Destination address.
    pub dst: String,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
}

/// What an entry was like when it was lost.
#[derive(Clone, Debug, Deserialize)]
pub struct EntryState {
    /// Both sides had talked.
    pub assured: bool,
    /// The other side had answered.
    pub seen_reply: bool,
    /// Name of the TCP state.
    pub tcp_state: Option<String>,
}

/// A remark on the run.
#[derive(Clone, Debug, Deserialize)]
pub struct Notice {
    /// Stable name.
    pub code: String,
    /// For people.
    pub text: String,
}
