//! `ctwatch advise` on the command line: arguments, resolved config, help examples.
//! No clap type leaves `cli/`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::common::{self, Format, NetnsSpec, choice};
use crate::advise::target::ServiceTarget;
use crate::advise::whatif::Changes;
use crate::model::Direction;

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct AdviseArgs {
    #[arg(
        long,
        value_name = "FILE",
        value_parser = common::recording(),
        help = "Use a recording instead of measuring: its worst\nwindow, with the table and host as they were then"
    )]
    recording: Option<PathBuf>,
    /// Measure for this long
    #[arg(long, value_name = "TIME", value_parser = window, default_value = "15s")]
    window: Duration,
    #[arg(
        long, value_name = "NETNS", value_parser = common::netns,
        help = "Network namespace: host, a name, an inode or pid:N;\nof a recording also net:[N]#1, as ctwatch prints it\n[default: the one ctwatch runs in]"
    )]
    netns: Option<NetnsSpec>,
    #[arg(
        long,
        value_name = "CHANGES",
        help = "Also estimate the table with these changes:\nmax=N, times=K, notrack=PORT/PROTO/lo,\nkeepalive=PORT/PROTO:REQUESTS, time_wait=S,\nestablished=S, udp=S, …"
    )]
    what_if: Option<Changes>,
    #[arg(
        long, value_name = "SERVICE", value_parser = keep, conflicts_with = "recording",
        help = "Keep this service reachable when the table is\nfull, such as 22/tcp/in; can be repeated\n[default: the ports that sshd listens on]"
    )]
    keep: Vec<ServiceTarget>,
    #[arg(
        long, value_name = "K", value_parser = times, default_value = "2",
        help = "Also estimate at this multiple of the current\nrate"
    )]
    times: f64,
    #[arg(
        long,
        value_name = "ID",
        value_delimiter = ',',
        help = "Only the recommendations with these ids\n[default: all; with --format sh those with commands]"
    )]
    item: Vec<String>,
    #[arg(
        long, value_name = "FORMAT", default_value = "text", hide_possible_values = true,
        value_parser = choice(AdviceFormat::ALL.map(|format| (format.name(), format))),
        help = "text, json, or sh (a script that tries one and\ntakes it back unless confirmed)"
    )]
    format: AdviceFormat,
}

const AFTER: &str = "\
It only measures and reads settings and firewall rules; it changes nothing.

Examples:
  ctwatch advise                            what is wrong, and what would help
  ctwatch advise --what-if max=1048576,time_wait=30,notrack=6379/tcp/lo
  ctwatch advise --format sh > fix.sh   # then: sh fix.sh try max
  ctwatch advise --keep 22/tcp/in --format sh > keep-ssh.sh   # before the night
  ctwatch advise --recording host.ctw       the same, from a recording

Exit codes: 0 success; 1 runtime failure; 2 usage error;
  3 not possible on this host";

/// How to print advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdviceFormat {
    /// A report, as all commands print it.
    Report(Format),
    /// A script.
    Sh,
}

impl AdviceFormat {
    const ALL: [Self; 3] = [Self::Report(Format::Text), Self::Report(Format::Json), Self::Sh];

    const fn name(self) -> &'static str {
        match self {
            Self::Report(format) => format.name(),
            Self::Sh => "sh",
        }
    }
}

/// `ctwatch advise`
#[derive(Clone, Debug)]
pub struct AdviseConfig {
    /// The recording to use; `None` means to measure.
    pub recording: Option<PathBuf>,
    /// How long to measure.
    pub window: Duration,
    /// The namespace; `None` means the one ctwatch runs in.
    pub netns: Option<NetnsSpec>,
    /// Changes to estimate.
    pub what_if: Option<Changes>,
    /// Services to keep reachable; empty means those that people log in by.
    pub keep: Vec<ServiceTarget>,
    /// Also estimate at this multiple of the current rate.
    pub times: f64,
    /// Ids of the recommendations asked for; empty means all.
    pub items: Vec<String>,
    /// How to print.
    pub format: AdviceFormat,
}

impl AdviseConfig {
    pub(super) fn resolve(args: AdviseArgs) -> Self {
        let AdviseArgs { recording, window, netns, what_if, keep, times, item, format } = args;
        Self { recording, window, netns, what_if, keep, times, items: item, format }
    }
}

fn window(text: &str) -> Result<Duration, String> {
    let window = common::duration(text)?;
    if window < Duration::from_secs(3) {
        return Err("the shortest window is 3s".to_owned());
    }
    Ok(window)
}

/// One way through this host, since rules are made for each.
fn keep(text: &str) -> Result<ServiceTarget, String> {
    let mut target: ServiceTarget = text.parse()?;
    if !target.proto.has_ports() || target.port == 0 {
        return Err(format!("\"{text}\": only a port can be kept open, such as 22/tcp/in"));
    }
    if target.direction == Some(Direction::Forwarded) {
        return Err(format!(
            "\"{text}\": only flows that begin or end on this host can be kept, such as 22/tcp/in"
        ));
    }
    target.direction.get_or_insert(Direction::In);
    Ok(target)
}

fn times(text: &str) -> Result<f64, String> {
    let times = text.parse::<f64>().ok().filter(|times| times.is_finite() && *times > 0.0);
    times.ok_or_else(|| "use a number above 0, such as 2".to_owned())
}
