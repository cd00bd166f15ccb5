//! `ctwatch replay` on the command line: arguments, resolved config, help examples.
//! Filters and rows are those of `drops`, without the flags that only a live watch has.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::common::{
    Format, FormatArgs, FromArgs, LOSS_FILTERS, LossFilterArgs, NetnsSpec, RowArgs, SpanArgs, recording,
};
use crate::record::span::Moment;
use crate::state::{By, Filter};

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
#[command(mut_arg("netns", |netns| netns.help(
    "Only these network namespaces: host, a name, an\ninode (each that had it) or net:[N]#1 (that one)"
)))]
pub struct ReplayArgs {
    /// The recording
    #[arg(value_name = "FILE", value_parser = recording())]
    file: PathBuf,
    #[arg(
        long, value_name = "N", value_parser = speed, default_value = "1",
        help = "Playback speed: 60 is sixty times real time; max\ndoesn't wait"
    )]
    speed: Speed,
    #[command(flatten)]
    span: SpanArgs,
    #[command(flatten)]
    rows: RowArgs,
    /// Also show individually recorded drops
    #[arg(long)]
    events: bool,
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten, next_help_heading = LOSS_FILTERS)]
    filters: LossFilterArgs,
}

const AFTER: &str = "\
Output and totals are those of `ctwatch drops`; totals count from --from. Only a
sample of the individual drops may have been recorded: rows by flow, src, dst,
process and container are then lower bounds, marked as such.

Examples:
  ctwatch replay host.ctw --speed max       all of it, without waiting
  ctwatch replay host.ctw --from 03:00 --to 03:15 --speed 60
  ctwatch replay host.ctw --speed max --by flow --format json

Exit codes: 0 success (also on Ctrl-C); 1 runtime failure (also a damaged
  file); 2 usage error; 3 too few open files or threads";

/// Playback speed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// A multiple of real time.
    Times(f64),
    /// Without waiting.
    Max,
}

impl Speed {
    /// How long something takes at this speed; `None`: no time at all.
    #[must_use]
    pub fn scaled(self, duration: Duration) -> Option<Duration> {
        match self {
            Self::Times(times) => Duration::try_from_secs_f64(duration.as_secs_f64() / times).ok(),
            Self::Max => None,
        }
    }
}

/// `ctwatch replay`
#[derive(Clone, Debug)]
pub struct ReplayConfig {
    /// The recording.
    pub file: PathBuf,
    /// What one row stands for.
    pub by: By,
    /// Which losses make rows and events; its `netns` is looked up in the recording.
    pub filter: Filter,
    /// The namespaces asked for; empty means all.
    pub netns: Vec<NetnsSpec>,
    /// Playback speed.
    pub speed: Speed,
    /// Where to begin.
    pub from: Option<Moment>,
    /// Where to end.
    pub to: Option<Moment>,
    /// Rows a report shows.
    pub top: usize,
    /// Show individually recorded drops.
    pub drop_events: bool,
    /// How to print.
    pub format: Format,
}

impl ReplayConfig {
    pub(super) fn resolve(args: ReplayArgs) -> Self {
        let ReplayArgs { file, speed, span, rows, events, output, filters } = args;
        let SpanArgs { start: FromArgs { from }, to } = span;
        let RowArgs { by, top } = rows;
        let FormatArgs { format } = output;
        let (filter, netns) = filters.into_filter();
        Self { file, by, filter, netns, speed, from, to, top, drop_events: events, format }
    }
}

fn speed(text: &str) -> Result<Speed, String> {
    if text.eq_ignore_ascii_case("max") {
        return Ok(Speed::Max);
    }
    let times = text.strip_suffix(['x', 'X']).unwrap_or(text).parse::<f64>().ok();
    let times = times.filter(|times| (1e-3..=1e6).contains(times));
    times.map(Speed::Times).ok_or_else(|| "use a number such as 0.5 or 60, or max".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_number_or_max() {
        assert_eq!(speed("60"), Ok(Speed::Times(60.0)));
        assert_eq!(speed("0.5x"), Ok(Speed::Times(0.5)));
        assert_eq!(speed("max"), Ok(Speed::Max));
        for bad in ["0", "-1", "fast", "", "inf", "nan", "1e9"] {
            assert!(speed(bad).unwrap_err().contains("max"), "{bad}");
        }
        assert_eq!(Speed::Times(60.0).scaled(Duration::from_secs(60)), Some(Duration::from_secs(1)));
    }
}
