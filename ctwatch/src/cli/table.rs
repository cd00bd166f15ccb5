//! `ctwatch table` on the command line: arguments, resolved config, help examples.
//! No clap type leaves `cli/`.

use std::time::Duration;

use clap::Args;

use super::common::{self, FilterArgs, Format, FormatArgs, NetnsSpec, hint, other_names, plain, singulars};
use crate::state::table::{BreakdownConfig, Dimension, Keys};
use crate::text::did_you_mean;

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct TableArgs {
    #[arg(
        long, value_name = "KEY[,KEY]", value_parser = keys, default_value = "port",
        help = "Group rows by port, state, proto, direction, src,\ndst, netns, container, zone or mark, or by a pair\nof these"
    )]
    by: Keys,
    #[arg(
        long, value_name = "N", value_parser = common::rows, default_value = "20",
        help = "Rows shown; the rest are summed per netns"
    )]
    top: usize,
    #[arg(
        long, value_name = "TIME", num_args = 0..=1, value_parser = common::interval, default_missing_value = "2s",
        help = "Repeat at this interval [2s if no value is given];\npauses last at least as long as the listing"
    )]
    watch: Option<Duration>,
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten, next_help_heading = "Filters (on rows; comma-separated, repeatable)")]
    filters: FilterArgs,
}

const AFTER: &str = "\
Columns: entries; their share of the table and of nf_conntrack_max; the share
  of them assured, and in TIME_WAIT; time until 50 % and 90 % of them expire
  unless refreshed; median age (needs net.netfilter.nf_conntrack_timestamp);
  ≥ and up to: at least so many, and up to so many more

Examples:
  ctwatch table                             by service port
  ctwatch table --by port,state --port 6379
  ctwatch table --by src --loopback=no --format json

Exit codes: 0 success (also on Ctrl-C); 1 runtime failure; 2 usage error;
  3 not possible on this host (no permission, or nf_conntrack is not loaded)";

/// `ctwatch table`
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// What rows stand for, which entries make them, and how many are shown.
    pub settings: BreakdownConfig,
    /// The namespaces asked for, not yet looked up; empty means all.
    pub netns: Vec<NetnsSpec>,
    /// Repeat at this interval; `None`: list once.
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

/// Keys of `drops` that an entry doesn't have.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "process",
        "an entry doesn't say whose it is; `--by container` says whose table it is in, and `ctwatch drops --by process` \
         who sent what is lost",
    ),
    ("cause", "an entry that is there has no cause; `ctwatch drops --by cause` says why others are not"),
    ("flow", "each entry is a flow of its own; group them by port, src, dst or pairs of these"),
];

fn keys(text: &str) -> Result<Keys, String> {
    let key = |name: &str| {
        let known = |word: &str| {
            let called = |key: &Dimension| key.name() == word || other_names(key.name()).contains(&word);
            Dimension::ALL.into_iter().find(called)
        };
        let word = plain(name);
        let found = singulars(&word).find_map(known);
        found.ok_or_else(|| {
            if let Some(hint) = hint(ELSEWHERE, name) {
                return hint.to_owned();
            }
            let names = Dimension::ALL.map(Dimension::name);
            format!("`{name}` is not a key; the keys are {}{}", names.join(", "), did_you_mean(&word, names))
        })
    };
    match text.split(',').map(str::trim).collect::<Vec<_>>().as_slice() {
        [one] => Ok(Keys::one(key(one)?)),
        [first, second] => Keys::two(key(first)?, key(second)?)
            .ok_or_else(|| format!("`{first}` is given twice; use one key or two different ones")),
        _ => Err("rows are grouped by one key or two, not more: port,state".to_owned()),
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
        for (text, first) in
            [("PORT", Dimension::Port), ("source", Dimension::Src), ("Ports", Dimension::Port)]
        {
            assert!(keys(text).unwrap().has(first), "{text}");
        }
        assert!(keys("protocol, state").unwrap().has(Dimension::State));
        assert!(keys("process").unwrap_err().contains("ctwatch drops --by process"));
        assert!(keys("stat").unwrap_err().contains("did you mean `state`?"));
        assert!(keys("port,port").unwrap_err().contains("twice"));
        assert!(keys("port,state,src").unwrap_err().contains("not more"));
        assert!(keys("").is_err() && keys("port,").is_err());
    }
}
