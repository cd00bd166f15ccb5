//! `ctwatch table` on the command line: raw arguments, and what they come to.

use std::time::Duration;

use clap::Args;

use super::common::{self, FilterArgs, Format, FormatArgs, NetnsSpec};
use crate::state::table::{BreakdownConfig, Dimension, Keys};

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct TableArgs {
    #[arg(
        long, value_name = "KEY[,KEY]", value_parser = keys, default_value = "port",
        help = "What one row stands for: port, state, proto,\ndirection, src, dst, netns, container, zone or\nmark; or two of them, crossed"
    )]
    by: Keys,
    #[arg(
        long, value_name = "N", value_parser = common::rows(), default_value = "20",
        help = "Rows shown; the others are summed up, one sum\nper netns"
    )]
    top: usize,
    #[arg(
        long, value_name = "TIME", num_args = 0..=1, value_parser = common::interval, default_missing_value = "2s",
        help = "Look again and again, this often [2s without a\nvalue], resting at least as long as it takes"
    )]
    watch: Option<Duration>,
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten, next_help_heading = "Filters (on rows; lists, and repeatable)")]
    filters: FilterArgs,
}

const AFTER: &str = "\
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

/// `ctwatch table`
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// What rows stand for, which entries make them, and how many are shown.
    pub settings: BreakdownConfig,
    /// The namespaces asked for, not yet looked up; empty means all.
    pub netns: Vec<NetnsSpec>,
    /// Look again and again, this often.
    pub watch: Option<Duration>,
    /// How to print.
    pub format: Format,
}

impl TableConfig {
    pub(super) fn resolve(args: TableArgs) -> Self {
        let TableArgs { by, top, watch, output: FormatArgs { format }, filters } = args;
        let (filter, netns) = filters.into_filter();
        Self { settings: BreakdownConfig { by, filter, top }, netns, watch, format }
    }
}

fn keys(text: &str) -> Result<Keys, String> {
    let key = |name: &str| {
        Dimension::ALL.into_iter().find(|key| key.name() == name).ok_or_else(|| {
            let names = Dimension::ALL.map(Dimension::name);
            format!("`{name}` is no key; keys are {}", names.join(", "))
        })
    };
    match text.split(',').collect::<Vec<_>>().as_slice() {
        [one] => Ok(Keys::one(key(one)?)),
        [first, second] => Keys::two(key(first)?, key(second)?)
            .ok_or_else(|| format!("`{first}` twice crosses nothing; give two different keys or one")),
        _ => Err("two keys can be crossed, not more: port,state".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_or_two_that_differ() {
        assert_eq!(keys("port"), Ok(Keys::default()));
        assert_eq!(keys("src,mark").unwrap().each().count(), 2);
        assert!(keys("colour").unwrap_err().contains("container"));
        assert!(keys("port,port").unwrap_err().contains("twice"));
        assert!(keys("port,state,src").unwrap_err().contains("not more"));
        assert!(keys("").is_err() && keys("port,").is_err());
    }
}
