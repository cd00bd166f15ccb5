//! One resolved configuration out of the raw arguments: what the rest of ctwatch reads.
//! No clap type leaves this file, and nothing here touches the kernel.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::args;
use super::export::Export;
use super::record::Record;
use super::replay::Replay;
use super::report::Report;
use super::value::NetnsSpec;
use crate::advise::whatif::Changes;
use crate::kernel::roots::Roots;
use crate::model::{Backend, NetnsId};
use crate::state::{By, Filter, StateConfig, table};
use crate::text::TextOptions;

/// Everything the command line and the environment decide.
#[derive(Clone, Debug)]
pub struct Config {
    /// 0, 1 for -v, 2 and more for -vv.
    pub verbosity: u8,
    /// Where /proc is mounted.
    pub proc_root: PathBuf,
    /// Where /sys is mounted.
    pub sys_root: PathBuf,
    /// How text looks on this terminal.
    pub look: TextOptions,
    /// What to do.
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// `ctwatch drops`
    Drops(Drops),
    /// `ctwatch table`
    Table(Table),
    /// `ctwatch advise`
    Advise(Advise),
    /// `ctwatch record`
    Record(Record),
    /// `ctwatch replay`
    Replay(Replay),
    /// `ctwatch export`
    Export(Export),
    /// `ctwatch report`
    Report(Report),
    /// `ctwatch check`
    Check(Check),
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people, at 80 columns.
    Text,
    /// One object a line.
    Json,
}

/// Which backend the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// The best one that works here.
    Auto,
    /// This one or none.
    Forced(Backend),
}

/// Which hooks see table_full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFullBy {
    /// A mark left by `early_drop`, taken by the kfree_skb raw tracepoint: free while the table is healthy.
    KfreeSkb,
    /// kprobe and kretprobe on `init_conntrack`: runs for each new flow.
    InitConntrack,
}

/// `ctwatch drops`
#[derive(Clone, Debug)]
pub struct Drops {
    /// What one row stands for.
    pub by: By,
    /// Which losses make rows and events. Its `netns` is filled in by [`Drops::settings`].
    pub filter: Filter,
    /// The namespaces asked for, not yet looked up; empty means all.
    pub netns: Vec<NetnsSpec>,
    /// Time between two ticks.
    pub interval: Duration,
    /// When to stop.
    pub duration: Option<Duration>,
    /// Rows a report shows.
    pub top: usize,
    /// Report each loss.
    pub drop_events: bool,
    /// Report each insert.
    pub insert_events: bool,
    /// Count inserts and deletes.
    pub count_flows: bool,
    /// How to print.
    pub format: Format,
    /// How to watch.
    pub backend: BackendChoice,
    /// Which hooks see table_full.
    pub table_full: TableFullBy,
}

/// `ctwatch table`
#[derive(Clone, Debug)]
pub struct Table {
    /// What rows stand for, which entries make them, and how many are shown.
    pub settings: table::BreakdownConfig,
    /// The namespaces asked for, not yet looked up; empty means all.
    pub netns: Vec<NetnsSpec>,
    /// Look again and again, this often.
    pub watch: Option<Duration>,
    /// How to print.
    pub format: Format,
}

/// `ctwatch advise`
#[derive(Clone, Debug)]
pub struct Advise {
    /// The recording to reckon from; `None` means to measure.
    pub recording: Option<PathBuf>,
    /// How long to measure.
    pub window: Duration,
    /// The netns; `None` means its own.
    pub netns: Option<NetnsSpec>,
    /// Changes to try on paper.
    pub what_if: Option<Changes>,
    /// Reckon with so many times the present rate, too.
    pub times: f64,
    /// Ids of the pieces asked for; empty means all.
    pub items: Vec<String>,
    /// How to print.
    pub format: AdviceFormat,
}

/// How to print advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdviceFormat {
    /// As everything else is printed.
    Report(Format),
    /// A script.
    Sh,
}

/// `ctwatch check`
#[derive(Clone, Debug)]
pub struct Check {
    /// How to print.
    pub format: Format,
    /// Print what the verifier says about every program.
    pub verifier: bool,
}

impl Drops {
    /// What `state` needs, once the backend is chosen and the namespaces are looked up (`None`: all of them).
    #[must_use]
    pub fn settings(&self, backend: Backend, netns: Option<Vec<NetnsId>>) -> StateConfig {
        StateConfig {
            by: self.by,
            filter: Filter { netns, ..self.filter.clone() },
            top: self.top,
            drop_events: self.drop_events,
            insert_events: self.insert_events,
            count_flows: self.count_flows,
            backend,
        }
    }
}

impl Config {
    /// Where to look for what the kernel says.
    #[must_use]
    pub fn roots(&self) -> Roots {
        Roots { proc: self.proc_root.clone(), sys: self.sys_root.clone() }
    }

    pub(super) fn resolve(cli: args::Cli) -> Result<Self, clap::Error> {
        let args::Cli { global, command } = cli;
        let args::Global { verbose, proc_root, sys_root } = global;
        Ok(Self {
            verbosity: verbose,
            proc_root,
            sys_root,
            look: TextOptions { color: wants_color(), time_zone: TimeZone::system() },
            command: match command {
                args::Command::Drops(drops) => Command::Drops(Drops::resolve(drops)),
                args::Command::Table(table) => Command::Table(Table::resolve(table)),
                args::Command::Advise(advise) => Command::Advise(Advise::resolve(advise)),
                args::Command::Record(record) => Command::Record(Record::resolve(record)?),
                args::Command::Replay(replay) => Command::Replay(Replay::resolve(replay)),
                args::Command::Export(export) => Command::Export(Export::resolve(export)),
                args::Command::Report(report) => Command::Report(Report::resolve(report)),
                args::Command::Check(args::Check { format, verifier }) => {
                    Command::Check(Check { format: format.into(), verifier })
                }
            },
        })
    }
}

impl Drops {
    fn resolve(args: args::Drops) -> Self {
        let args::Drops {
            by,
            port,
            src,
            dst,
            proto,
            cause,
            netns,
            loopback,
            interval,
            duration,
            top,
            events,
            no_inserts,
            format,
            backend,
            table_full,
        } = args;
        Self {
            by: by.into(),
            filter: Filter {
                ports: port,
                src,
                dst,
                protos: proto,
                causes: cause,
                netns: None,
                loopback: loopback.map(args::Loopback::is_only),
            },
            netns,
            interval: interval.unsigned_abs(),
            duration: duration.map(|duration| duration.unsigned_abs()),
            top: usize::try_from(top).unwrap_or(usize::MAX),
            drop_events: events.contains(&args::EventKind::Drop),
            insert_events: events.contains(&args::EventKind::Insert),
            count_flows: !no_inserts,
            format: format.into(),
            backend: backend.into(),
            table_full: match table_full {
                args::TableFull::KfreeSkb => TableFullBy::KfreeSkb,
                args::TableFull::InitConntrack => TableFullBy::InitConntrack,
            },
        }
    }
}

impl Advise {
    fn resolve(args: args::Advise) -> Self {
        let args::Advise { recording, window, netns, what_if, times, item, format } = args;
        Self {
            recording,
            window: window.unsigned_abs(),
            netns,
            what_if,
            times,
            items: item,
            format: match format {
                args::AdviceFormat::Text => AdviceFormat::Report(Format::Text),
                args::AdviceFormat::Json => AdviceFormat::Report(Format::Json),
                args::AdviceFormat::Sh => AdviceFormat::Sh,
            },
        }
    }
}

impl Table {
    fn resolve(args: args::Table) -> Self {
        let args::Table { by, port, src, dst, proto, netns, loopback, top, watch, format } = args;
        Self {
            settings: table::BreakdownConfig {
                by,
                filter: Filter {
                    ports: port,
                    src,
                    dst,
                    protos: proto,
                    causes: Vec::new(),
                    netns: None,
                    loopback: loopback.map(args::Loopback::is_only),
                },
                top: usize::try_from(top).unwrap_or(usize::MAX),
            },
            netns,
            watch: watch.map(|watch| watch.unsigned_abs()),
            format: format.into(),
        }
    }
}

impl From<args::By> for By {
    fn from(by: args::By) -> Self {
        match by {
            args::By::Port => Self::Port,
            args::By::Flow => Self::Flow,
            args::By::Src => Self::Src,
            args::By::Dst => Self::Dst,
            args::By::Proto => Self::Proto,
            args::By::Cause => Self::Cause,
            args::By::Netns => Self::Netns,
            args::By::Process => Self::Process,
            args::By::Container => Self::Container,
        }
    }
}

impl From<args::Backend> for BackendChoice {
    fn from(backend: args::Backend) -> Self {
        match backend {
            args::Backend::Auto => Self::Auto,
            args::Backend::Kprobe => Self::Forced(Backend::Kprobe),
            args::Backend::Tracepoint => Self::Forced(Backend::Tracepoint),
            args::Backend::Counters => Self::Forced(Backend::Counters),
        }
    }
}

impl From<args::Format> for Format {
    fn from(format: args::Format) -> Self {
        match format {
            args::Format::Text => Self::Text,
            args::Format::Json => Self::Json,
        }
    }
}

/// Colour only where a person looks: a terminal that can, and no wish against it (<https://no-color.org>).
fn wants_color() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    std::io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
}
