//! `ctwatch drops` on the command line: arguments, resolved config, help examples.
//! No clap type leaves `cli/`.

use std::time::Duration;

use clap::Args;

use super::common::{
    BackendChoice, Format, FormatArgs, LOSS_FILTERS, LiveArgs, LossFilterArgs, NetnsSpec, RowArgs, choice,
};
use crate::model::{Backend, NetnsId};
use crate::state::{By, Filter, StateConfig};

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct DropsArgs {
    #[command(flatten)]
    rows: RowArgs,
    #[arg(
        long, value_name = "KINDS", num_args = 0..=1, require_equals = true, value_delimiter = ',',
        value_parser = choice([("drop", EventKind::Drop), ("insert", EventKind::Insert)]), default_missing_value = "drop", hide_possible_values = true,
        help = "Also print single events: drop, insert or both\n[drop if no value is given]"
    )]
    events: Vec<EventKind>,
    #[command(flatten)]
    live: LiveArgs,
    #[command(flatten)]
    output: FormatArgs,
    /// Which of the two ways sees table_full
    #[arg(
        long, value_name = "WAY", hide = true, default_value = "kfree-skb",
        value_parser = choice([
            ("kfree-skb", TableFullBy::KfreeSkb),
            ("init-conntrack", TableFullBy::InitConntrack),
        ])
    )]
    table_full: TableFullBy,
    #[command(flatten, next_help_heading = LOSS_FILTERS)]
    filters: LossFilterArgs,
}

const AFTER: &str = "\
Causes of dropped packets: table_full no_memory clash chain_too_long dying
  tcp_race expect_full other; of entries evicted to make room: evicted
  gc_evicted. Packets that passed untracked are shown on request only:
  --cause invalid

Examples:
  ctwatch drops                             which ports lose packets, live
  ctwatch drops --by flow --port 6379 --loopback
  ctwatch drops --format json --duration 60s > capture.ndjson

Exit codes: 0 success (also on Ctrl-C); 1 runtime failure; 2 usage error;
  3 not possible on this host (`ctwatch check` says why)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventKind {
    Drop,
    Insert,
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
pub struct DropsConfig {
    /// What one row stands for.
    pub by: By,
    /// Which losses make rows and events. Its `netns` is filled in by [`DropsConfig::settings`].
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

impl DropsConfig {
    pub(super) fn resolve(args: DropsArgs) -> Self {
        let DropsArgs { rows, events, live, output, table_full, filters } = args;
        let RowArgs { by, top } = rows;
        let LiveArgs { interval, duration, no_inserts, backend } = live;
        let FormatArgs { format } = output;
        let (filter, netns) = filters.into_filter();
        Self {
            by,
            filter,
            netns,
            interval,
            duration,
            top,
            drop_events: events.contains(&EventKind::Drop),
            insert_events: events.contains(&EventKind::Insert),
            count_flows: !no_inserts,
            format,
            backend,
            table_full,
        }
    }

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
