//! The tables of an export and their columns: a contract with other programs. Columns are added at the end, never renamed.
//! docs/recording.md says what they hold.

/// What a column holds; each may be unknown, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// Whole numbers.
    Int,
    /// Numbers.
    Float,
    /// Yes or no.
    Bool,
    /// Text.
    Text,
    /// Points in time: RFC 3339 in UTC with microseconds if a format has no type for them.
    Time,
}

/// A column.
pub type Column = (&'static str, ColumnType);

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExportTable {
    /// Runs of the recorder.
    Runs,
    /// An interval.
    Ticks,
    /// The table of a netns, in a tick in which anything of it changed.
    Fills,
    /// Losses of one key in a tick.
    Losses,
    /// New and ended flows of a service port in a tick.
    Arrivals,
    /// A loss recorded individually.
    Drops,
    /// What a service port held at a census.
    Occupancy,
    /// What a service port held in one phase, when a table was listed entry by entry.
    Listings,
    /// The first reading of a setting, or a change to it.
    Settings,
    /// A trigger that fired.
    Incidents,
    /// A notice.
    Notices,
    /// A machine snapshot.
    Machine,
    /// The firewall's rules, when first read or changed.
    Rules,
}

use ColumnType::{Bool, Float, Int, Text, Time};

const RUNS: &[Column] = &[
    ("run", Int),
    ("host", Text),
    ("boot_id", Text),
    ("version", Text),
    ("kernel_release", Text),
    ("backend", Text),
    ("backend_reason", Text),
    ("interval_s", Float),
    ("counts_flows", Bool),
    ("continues", Bool),
    ("started", Time),
    ("ended", Time),
    ("end_reason", Text),
];

const TICKS: &[Column] = &[
    ("run", Int),
    ("tick", Int),
    ("first", Int),
    ("level", Int),
    ("time", Time),
    ("mono_us", Int),
    ("interval_s", Float),
    ("restarted", Bool),
    ("ambiguous", Int),
    ("lost_events", Int),
    ("events_seen", Int),
    ("unexplained_drop", Int),
    ("unexplained_early_drop", Int),
    ("unexplained_insert_failed", Int),
    ("unexplained_chaintoolong", Int),
];

const FILLS: &[Column] = &[
    ("run", Int),
    ("tick", Int),
    ("time", Time),
    ("netns", Int),
    ("name", Text),
    ("container", Text),
    ("gone", Bool),
    ("count", Int),
    ("peak", Int),
    ("max", Int),
    ("fill", Float),
    ("drop", Int),
    ("early_drop", Int),
    ("insert_failed", Int),
    ("chaintoolong", Int),
];

const LOSSES: &[Column] = &[
    ("run", Int),
    ("tick", Int),
    ("time", Time),
    ("interval_s", Float),
    ("netns", Int),
    ("name", Text),
    ("proto", Text),
    ("port", Int),
    ("service", Text),
    ("icmp_type", Int),
    ("icmp_code", Int),
    ("loopback", Bool),
    ("cause", Text),
    ("unit", Text),
    ("losses", Int),
    ("overflow", Bool),
];

const ARRIVALS: &[Column] = &[
    ("run", Int),
    ("tick", Int),
    ("time", Time),
    ("interval_s", Float),
    ("netns", Int),
    ("name", Text),
    ("proto", Text),
    ("port", Int),
    ("service", Text),
    ("inserts", Int),
    ("deletes", Int),
    ("icmp_type", Int),
    ("icmp_code", Int),
];

const DROPS: &[Column] = &[
    ("run", Int),
    ("tick", Int),
    ("time", Time),
    ("cause", Text),
    ("certainty", Text),
    ("netns", Int),
    ("name", Text),
    ("proto", Text),
    ("src", Text),
    ("sport", Int),
    ("dst", Text),
    ("dport", Int),
    ("icmp_type", Int),
    ("icmp_code", Int),
    ("icmp_id", Int),
    ("loopback", Bool),
    ("hook", Text),
    ("in", Text),
    ("out", Text),
    ("count", Int),
    ("max", Int),
    ("fill", Float),
    ("length", Int),
    ("pid", Int),
    ("process", Text),
    ("role", Text),
    ("cgroup", Text),
    ("container", Text),
    ("nat", Bool),
    ("reply_src", Text),
    ("reply_sport", Int),
    ("reply_dst", Text),
    ("reply_dport", Int),
    ("assured", Bool),
    ("seen_reply", Bool),
    ("tcp_state", Text),
    ("timeout_left_s", Float),
    ("by_proto", Text),
    ("by_src", Text),
    ("by_sport", Int),
    ("by_dst", Text),
    ("by_dport", Int),
    ("zone_original", Int),
    ("zone_reply", Int),
    ("by_icmp_type", Int),
    ("by_icmp_code", Int),
    ("by_icmp_id", Int),
];

const OCCUPANCY: &[Column] = &[
    ("run", Int),
    ("tick", Int),
    ("time", Time),
    ("netns", Int),
    ("name", Text),
    ("exact", Bool),
    ("proto", Text),
    ("port", Int),
    ("service", Text),
    ("entries", Int),
    ("assured", Int),
    ("time_wait", Int),
    ("icmp_type", Int),
    ("icmp_code", Int),
];

const LISTINGS: &[Column] = &[
    ("run", Int),
    ("time", Time),
    ("reason", Text),
    ("netns", Int),
    ("name", Text),
    ("proto", Text),
    ("port", Int),
    ("service", Text),
    ("direction", Text),
    ("phase", Text),
    ("timeout_s", Int),
    ("entries", Int),
    ("entered", Int),
    ("look_s", Int),
    ("pairs", Int),
    ("icmp_type", Int),
    ("icmp_code", Int),
];

const SETTINGS: &[Column] = &[
    ("run", Int),
    ("time", Time),
    ("name", Text),
    ("value", Text),
    ("before", Text),
    ("netns", Int),
    ("netns_name", Text),
];

const INCIDENTS: &[Column] = &[
    ("run", Int),
    ("incident", Int),
    ("time", Time),
    ("condition", Text),
    ("tick", Int),
    ("measured", Text),
    ("detail_from", Int),
    ("detail_to", Int),
    ("ceased", Time),
];

const NOTICES: &[Column] = &[("run", Int), ("time", Time), ("code", Text), ("text", Text)];

const MACHINE: &[Column] = &[("run", Int), ("time", Time), ("reason", Text), ("facts", Text)];

const RULES: &[Column] = &[
    ("run", Int),
    ("time", Time),
    ("reason", Text),
    ("netns", Int),
    ("name", Text),
    ("bytes", Int),
    ("rules", Text),
];

impl ExportTable {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Runs,
        Self::Ticks,
        Self::Fills,
        Self::Losses,
        Self::Arrivals,
        Self::Drops,
        Self::Occupancy,
        Self::Listings,
        Self::Settings,
        Self::Incidents,
        Self::Notices,
        Self::Machine,
        Self::Rules,
    ];

    /// Its name: in `--table`, in file names and as `type`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Ticks => "ticks",
            Self::Fills => "fills",
            Self::Losses => "losses",
            Self::Arrivals => "arrivals",
            Self::Drops => "drops",
            Self::Occupancy => "occupancy",
            Self::Listings => "listings",
            Self::Settings => "settings",
            Self::Incidents => "incidents",
            Self::Notices => "notices",
            Self::Machine => "machine",
            Self::Rules => "rules",
        }
    }

    /// The table with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Its columns.
    #[must_use]
    pub const fn columns(self) -> &'static [Column] {
        match self {
            Self::Runs => RUNS,
            Self::Ticks => TICKS,
            Self::Fills => FILLS,
            Self::Losses => LOSSES,
            Self::Arrivals => ARRIVALS,
            Self::Drops => DROPS,
            Self::Occupancy => OCCUPANCY,
            Self::Listings => LISTINGS,
            Self::Settings => SETTINGS,
            Self::Incidents => INCIDENTS,
            Self::Notices => NOTICES,
            Self::Machine => MACHINE,
            Self::Rules => RULES,
        }
    }
}
