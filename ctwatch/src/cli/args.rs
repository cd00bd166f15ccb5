//! The command line as clap reads it. Nothing outside `cli/` sees these types; `config` resolves them.
//! Keep help lines short: they are read at 80 columns.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use ctwatch_common::Cause;
use ipnet::IpNet;
use jiff::SignedDuration;

use super::export::ExportArgs;
use super::record::RecordArgs;
use super::replay::ReplayArgs;
use super::value::{self, NetnsSpec};
use crate::advise::whatif::Changes;
use crate::model::Protocol;
use crate::state::PortRange;
use crate::state::table::Keys;

/// Tells which flows a full nf_conntrack table drops, and why.
#[derive(Debug, Parser)]
#[command(name = "ctwatch", version, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Say more on stderr; -vv adds the programs' log
    #[arg(short, long, action = ArgAction::Count, global = true, display_order = 900)]
    pub verbose: u8,
    /// Where /proc is mounted
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true, global = true)]
    pub proc_root: PathBuf,
    /// Where /sys is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys", hide = true, global = true)]
    pub sys_root: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Live stream of what conntrack loses: a line an interval, a row per key
    Drops(Drops),
    /// Who fills the table now; needs no eBPF
    Table(Table),
    /// What would fix it, with numbers, risks and commands to try and undo
    Advise(Advise),
    /// A flight recorder: into one SQLite file, bounded in size
    Record(RecordArgs),
    /// A recording, as `drops` would have shown it
    Replay(ReplayArgs),
    /// A recording for other programs, as NDJSON, CSV or Parquet
    Export(ExportArgs),
    /// The postmortem of recordings: text, Markdown, HTML or JSON
    Report(super::report::Args),
    /// Can ctwatch run here, how, and if not, why and what would help
    Check(Check),
}

#[derive(Debug, Args)]
#[command(after_help = DROPS_AFTER)]
pub struct Drops {
    #[arg(
        long, value_name = "KEY", value_enum, default_value_t = By::Port, hide_possible_values = true,
        help = "What one row stands for: port, flow, src, dst,\nproto, cause, netns, process or\ncontainer"
    )]
    pub by: By,

    /// Only these service ports: 80,443,6000-6010
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = value::ports, help_heading = FILTERS)]
    pub port: Vec<PortRange>,
    /// Only from these addresses: 10.0.0.0/8,fd00::/8
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = value::cidr, help_heading = FILTERS)]
    pub src: Vec<IpNet>,
    /// Only to these addresses
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = value::cidr, help_heading = FILTERS)]
    pub dst: Vec<IpNet>,
    #[arg(
        long, value_name = "PROTO", value_delimiter = ',', value_parser = value::protocol, help_heading = FILTERS,
        help = "Only these protocols: tcp, udp, icmp, icmpv6, sctp\nor a number"
    )]
    pub proto: Vec<Protocol>,
    /// Only these causes: table_full, evicted, clash, …
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = value::cause, help_heading = FILTERS)]
    pub cause: Vec<Cause>,
    #[arg(
        long, value_name = "NETNS", value_delimiter = ',', value_parser = value::netns, help_heading = FILTERS,
        help = "Only these network namespaces: host, a name, an\ninode or pid:N"
    )]
    pub netns: Vec<NetnsSpec>,
    /// Only loopback traffic, or with =no all but it
    #[arg(
        long, value_name = "only|no", num_args = 0..=1, require_equals = true, value_enum,
        default_missing_value = "only", hide_possible_values = true, help_heading = FILTERS
    )]
    pub loopback: Option<Loopback>,

    /// Time between two reports
    #[arg(long, value_name = "TIME", value_parser = value::interval, default_value = "1s")]
    pub interval: SignedDuration,
    /// Stop after this long (default: at Ctrl-C)
    #[arg(long, value_name = "TIME", value_parser = value::age)]
    pub duration: Option<SignedDuration>,
    #[arg(
        long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 20,
        help = "Rows a report shows; the others are summed up\nin one"
    )]
    pub top: u32,
    /// Report single packets too: drop, insert, or both
    #[arg(
        long, value_name = "drop,insert", num_args = 0..=1, require_equals = true, value_enum,
        value_delimiter = ',', default_missing_value = "drop", hide_possible_values = true
    )]
    pub events: Vec<EventKind>,
    #[arg(long, help = "Don't count new and ended flows; a healthy host\nthen pays nothing")]
    pub no_inserts: bool,
    /// text, or json: one object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, hide_possible_values = true)]
    pub format: Format,
    #[arg(
        long, value_name = "BACKEND", value_enum, default_value_t = Backend::Auto, hide_possible_values = true,
        hide_default_value = true,
        help = "kprobe, tracepoint or counters\n[default: the first of these that works]"
    )]
    pub backend: Backend,
    /// Which of the two ways sees table_full
    #[arg(long, value_name = "WAY", value_enum, default_value_t = TableFull::KfreeSkb, hide = true)]
    pub table_full: TableFull,
}

#[derive(Debug, Args)]
#[command(after_help = TABLE_AFTER)]
pub struct Table {
    #[arg(
        long, value_name = "KEY[,KEY]", value_parser = value::keys, default_value = "port",
        help = "What one row stands for: port, state, proto,\ndirection, src, dst, netns, container, zone or\nmark; or two of them, crossed"
    )]
    pub by: Keys,

    /// Only these service ports: 80,443,6000-6010
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = value::ports, help_heading = ROW_FILTERS)]
    pub port: Vec<PortRange>,
    /// Only from these addresses: 10.0.0.0/8,fd00::/8
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = value::cidr, help_heading = ROW_FILTERS)]
    pub src: Vec<IpNet>,
    /// Only to these addresses
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = value::cidr, help_heading = ROW_FILTERS)]
    pub dst: Vec<IpNet>,
    #[arg(
        long, value_name = "PROTO", value_delimiter = ',', value_parser = value::protocol,
        help_heading = ROW_FILTERS, help = "Only these protocols: tcp, udp, icmp, icmpv6, sctp\nor a number"
    )]
    pub proto: Vec<Protocol>,
    #[arg(
        long, value_name = "NETNS", value_delimiter = ',', value_parser = value::netns, help_heading = ROW_FILTERS,
        help = "Only these network namespaces: host, a name, an\ninode or pid:N"
    )]
    pub netns: Vec<NetnsSpec>,
    #[arg(
        long, value_name = "only|no", num_args = 0..=1, require_equals = true, value_enum,
        default_missing_value = "only", hide_possible_values = true, help_heading = ROW_FILTERS,
        help = "Only flows from a netns to itself, or with =no all\nbut them"
    )]
    pub loopback: Option<Loopback>,

    #[arg(
        long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 20,
        help = "Rows shown; the others are summed up, one sum\nper netns"
    )]
    pub top: u32,
    #[arg(
        long, value_name = "TIME", num_args = 0..=1, value_parser = value::interval, default_missing_value = "2s",
        help = "Look again and again, this often [2s without a\nvalue], resting at least as long as it takes"
    )]
    pub watch: Option<SignedDuration>,
    /// text, or json: one object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, hide_possible_values = true)]
    pub format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = ADVISE_AFTER)]
pub struct Advise {
    #[arg(
        long,
        value_name = "FILE",
        help = "From a recording instead: its worst window, and\nthe table and machine as they were then"
    )]
    pub recording: Option<PathBuf>,
    /// How long to measure
    #[arg(long, value_name = "TIME", value_parser = value::window, default_value = "15s")]
    pub window: SignedDuration,
    #[arg(
        long, value_name = "NETNS", value_parser = value::netns,
        help = "The network namespace: host, a name, an inode or\npid:N [default: the one ctwatch runs in]"
    )]
    pub netns: Option<NetnsSpec>,
    #[arg(
        long, value_name = "CHANGES", value_parser = value::changes,
        help = "Also say what the table would be with these:\nmax=N, times=K, notrack=PORT/PROTO/lo,\nkeepalive=PORT/PROTO:REQUESTS, time_wait=S,\nestablished=S, udp=S, …"
    )]
    pub what_if: Option<Changes>,
    #[arg(
        long, value_name = "K", value_parser = value::times, default_value = "2",
        help = "Also reckon with so many times the present\nrate"
    )]
    pub times: f64,
    #[arg(
        long,
        value_name = "ID",
        value_delimiter = ',',
        help = "Only these pieces of advice, by their ids; with\n--format sh the best one if none is named"
    )]
    pub item: Vec<String>,
    #[arg(
        long, value_name = "FORMAT", value_enum, default_value_t = AdviceFormat::Text, hide_possible_values = true,
        help = "text, json, or sh: a script that tries, keeps or\nundoes the advice"
    )]
    pub format: AdviceFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AdviceFormat {
    Text,
    Json,
    Sh,
}

#[derive(Debug, Args)]
#[command(after_help = CHECK_AFTER)]
pub struct Check {
    /// text, or json: one object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, hide_possible_values = true)]
    pub format: Format,
    /// Load every program and print what the verifier says
    #[arg(long, hide = true)]
    pub verifier: bool,
}

pub(super) const FILTERS: &str = "Filters (on rows and events; lists, and repeatable)";

const ROW_FILTERS: &str = "Filters (on rows; lists, and repeatable)";

const TABLE_AFTER: &str = "\
Columns: entries, their part of the table and of nf_conntrack_max, how many of
  them are assured and in TIME_WAIT, the seconds within which half and nine
  tenths of them expire if nothing refreshes them, and their median age (with
  net.netfilter.nf_conntrack_timestamp); error: by so many `entries` may be off

Examples:
  ctwatch table                             by service port
  ctwatch table --by port,state --port 6379
  ctwatch table --by src --loopback=no --format json

Exit codes: 0 done, also by Ctrl-C; 1 failed while running; 2 wrong usage;
  3 cannot read a table here (no right to, or conntrack is not loaded)";

const DROPS_AFTER: &str = "\
Causes, of lost packets: table_full no_memory clash chain_too_long dying
  tcp_race other; of entries lost to make room: evicted gc_evicted; of packets
  that passed untracked, only if asked for: invalid

Examples:
  ctwatch drops                             which ports suffer, every second
  ctwatch drops --by flow --port 6379 --loopback
  ctwatch drops --format json --duration 60s > capture.ndjson

Exit codes: 0 done, also by Ctrl-C; 1 failed while running; 2 wrong usage;
  3 cannot watch here (`ctwatch check` says why)";

const ADVISE_AFTER: &str = "\
It measures, reads settings and firewall rules, and changes nothing.

Examples:
  ctwatch advise                            what is wrong, and what would help
  ctwatch advise --what-if max=1048576,time_wait=30,notrack=6379/tcp/lo
  ctwatch advise --format sh --item max > fix.sh   # then: sh fix.sh now
  ctwatch advise --recording host.ctw       the morning after

Exit codes: 0 done; 1 failed while running; 2 wrong usage; 3 cannot look here";

const CHECK_AFTER: &str = "Exit codes: 0 ctwatch can watch here; 3 it cannot";

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum By {
    Port,
    Flow,
    Src,
    Dst,
    Proto,
    Cause,
    Netns,
    Process,
    Container,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Loopback {
    #[value(alias = "yes")]
    Only,
    No,
}

impl Loopback {
    /// What a filter asks of a flow.
    pub const fn is_only(self) -> bool {
        matches!(self, Self::Only)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EventKind {
    Drop,
    Insert,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Backend {
    Auto,
    Kprobe,
    Tracepoint,
    Counters,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TableFull {
    KfreeSkb,
    InitConntrack,
}
