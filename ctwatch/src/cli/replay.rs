//! `ctwatch replay` on the command line: raw arguments, and what they come to.
//! Filters and rows are those of `drops`; what only a live watch has is missing.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ctwatch_common::Cause;
use ipnet::IpNet;

use super::args::{By, FILTERS, Format, Loopback};
use super::config;
use super::value::{self, NetnsSpec};
use crate::model::Protocol;
use crate::record::span::Moment;
use crate::state::{self, Filter, PortRange};

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ReplayArgs {
    /// The recording
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[arg(
        long, value_name = "KEY", value_enum, default_value_t = By::Port, hide_possible_values = true,
        help = "What one row stands for: port, flow, src, dst,\nproto, cause, netns, process or\ncontainer"
    )]
    by: By,
    #[arg(
        long, value_name = "N", value_parser = speed, default_value = "1",
        help = "So many times as fast as it was, or max: as fast\nas it can be read"
    )]
    speed: Speed,
    #[arg(
        long,
        value_name = "WHEN",
        allow_hyphen_values = true,
        help = "From here on: 2026-03-14T12:00:00Z, a local\n'2026-03-14 12:00' or 12:00, +10m from the start,\n-10m from the end. Totals count from here"
    )]
    from: Option<Moment>,
    /// Up to here
    #[arg(long, visible_alias = "until", value_name = "WHEN", allow_hyphen_values = true)]
    to: Option<Moment>,
    #[arg(
        long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), default_value_t = 20,
        help = "Rows a report shows; the others are summed up\nin one"
    )]
    top: u32,
    /// Show the losses that were kept one by one, too
    #[arg(long)]
    events: bool,
    /// text, or json: one object a line
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text, hide_possible_values = true)]
    format: Format,

    /// Only these service ports: 80,443,6000-6010
    #[arg(long, value_name = "PORTS", value_delimiter = ',', value_parser = value::ports, help_heading = FILTERS)]
    port: Vec<PortRange>,
    /// Only from these addresses: 10.0.0.0/8,fd00::/8
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = value::cidr, help_heading = FILTERS)]
    src: Vec<IpNet>,
    /// Only to these addresses
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = value::cidr, help_heading = FILTERS)]
    dst: Vec<IpNet>,
    #[arg(
        long, value_name = "PROTO", value_delimiter = ',', value_parser = value::protocol, help_heading = FILTERS,
        help = "Only these protocols: tcp, udp, icmp, icmpv6, sctp\nor a number"
    )]
    proto: Vec<Protocol>,
    /// Only these causes: table_full, evicted, clash, …
    #[arg(long, value_name = "CAUSE", value_delimiter = ',', value_parser = value::cause, help_heading = FILTERS)]
    cause: Vec<Cause>,
    #[arg(
        long, value_name = "NETNS", value_delimiter = ',', value_parser = value::netns, help_heading = FILTERS,
        help = "Only these network namespaces: host, a name or an\ninode"
    )]
    netns: Vec<NetnsSpec>,
    /// Only loopback traffic, or with =no all but it
    #[arg(
        long, value_name = "only|no", num_args = 0..=1, require_equals = true, value_enum,
        default_missing_value = "only", hide_possible_values = true, help_heading = FILTERS
    )]
    loopback: Option<Loopback>,
}

const AFTER: &str = "\
It shows what `ctwatch drops` would have shown, with the same totals. Of losses
one by one a recording has a sample: rows by flow, src, dst, process and
container are lower bounds then, and say so.

Examples:
  ctwatch replay host.ctw --speed max       all of it, at once
  ctwatch replay host.ctw --from 03:00 --to 03:15 --speed 60
  ctwatch replay host.ctw --speed max --by flow --format json

Exit codes: 0 done, also by Ctrl-C; 1 failed while running, also a damaged
  file; 2 wrong usage";

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// So many times as fast as it was.
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

fn speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    let times = text.strip_suffix('x').unwrap_or(text).parse::<f64>().ok();
    let times = times.filter(|times| (1e-3..=1e6).contains(times));
    times.map(Speed::Times).ok_or_else(|| "give a number such as 0.5 or 60, or max".to_owned())
}

/// `ctwatch replay`
#[derive(Clone, Debug)]
pub struct Replay {
    /// The recording.
    pub file: PathBuf,
    /// What one row stands for.
    pub by: state::By,
    /// Which losses make rows and events; its `netns` is looked up in the recording.
    pub filter: Filter,
    /// The namespaces asked for; empty means all.
    pub netns: Vec<NetnsSpec>,
    /// How fast.
    pub speed: Speed,
    /// Where to begin.
    pub from: Option<Moment>,
    /// Where to end.
    pub to: Option<Moment>,
    /// Rows a report shows.
    pub top: usize,
    /// Show losses one by one.
    pub drop_events: bool,
    /// How to print.
    pub format: config::Format,
}

impl Replay {
    pub(super) fn resolve(args: ReplayArgs) -> Self {
        let ReplayArgs {
            file,
            by,
            speed,
            from,
            to,
            top,
            events,
            format,
            port,
            src,
            dst,
            proto,
            cause,
            netns,
            loopback,
        } = args;
        Self {
            file,
            by: by.into(),
            filter: Filter {
                ports: port,
                src,
                dst,
                protos: proto,
                causes: cause,
                netns: None,
                loopback: loopback.map(Loopback::is_only),
            },
            netns,
            speed,
            from,
            to,
            top: usize::try_from(top).unwrap_or(usize::MAX),
            drop_events: events,
            format: format.into(),
        }
    }
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
