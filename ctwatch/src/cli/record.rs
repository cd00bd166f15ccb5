//! `ctwatch record` as clap reads it, and what it resolves to.
//! What only goes wrong together is told here, before anything is looked at.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::error::ErrorKind;
use jiff::SignedDuration;

use super::config::BackendChoice;
use super::{args, value};
use crate::record::trigger::Condition;

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct RecordArgs {
    /// Where to; a recording that is there goes on
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Time between two ticks
    #[arg(long, value_name = "TIME", value_parser = value::interval, default_value = "1s")]
    interval: SignedDuration,
    /// Stop after this long (default: at Ctrl-C)
    #[arg(long, value_name = "TIME", value_parser = value::age)]
    duration: Option<SignedDuration>,
    /// Older ticks become a sum; not incidents
    #[arg(long, value_name = "TIME", value_parser = value::age, default_value = "7d")]
    keep: SignedDuration,
    #[arg(
        long, value_name = "SIZE", value_parser = value::size, default_value = "500MB",
        help = "At this size the oldest ticks become coarser, then\none sum; incidents come last"
    )]
    max_size: u64,

    #[arg(
        long, value_name = "CONDITION", value_parser = value::condition, help_heading = TRIGGERS,
        help = "An incident, of which detail is kept: fill>=90%,\ndrops>0 (in a tick) or full_in<60s (repeatable)"
    )]
    when: Vec<Condition>,
    /// Detail kept from before it
    #[arg(long, value_name = "TIME", value_parser = value::age, default_value = "2m", help_heading = TRIGGERS)]
    before: SignedDuration,
    /// Detail kept once it no longer holds
    #[arg(long, value_name = "TIME", value_parser = value::age, default_value = "5m", help_heading = TRIGGERS)]
    after: SignedDuration,
    #[arg(
        long, value_name = "CMD", value_parser = value::words, requires = "when", help_heading = TRIGGERS,
        help = "Run this when one fires, its JSON on stdin; words\nare split as a shell does, and no shell is started"
    )]
    exec: Option<value::Words>,
    #[arg(long, requires = "exec", help_heading = TRIGGERS, help = "Give CMD to `sh -c` as it is")]
    shell: bool,
    #[arg(
        long, requires = "when", help_heading = TRIGGERS,
        help = "End after the first incident; code 4 without one"
    )]
    once: bool,

    #[arg(long, help = "Don't count new and ended flows; a healthy host\nthen pays nothing")]
    no_inserts: bool,
    #[arg(
        long, value_name = "BACKEND", value_enum, default_value_t = args::Backend::Auto,
        hide_possible_values = true, hide_default_value = true,
        help = "kprobe, tracepoint or counters\n[default: the first of these that works]"
    )]
    backend: args::Backend,
}

const TRIGGERS: &str = "Triggers";

const AFTER: &str = "\
It prints a line of JSON when the file is open, at each incident, and when the
  file is closed. SIGHUP closes it under a name with the time, and begins anew.

Examples:
  ctwatch record -o /var/lib/ctwatch/host.ctw --when 'drops>0'
  ctwatch record -o case.ctw --when 'fill>=90%' --once --duration 1h

Exit codes: 0 done, also by Ctrl-C; 1 failed while running (a full disk, too);
  2 wrong usage; 3 cannot watch here; 4 --once saw no incident";

/// `ctwatch record`
#[derive(Clone, Debug)]
pub struct Record {
    /// The file.
    pub output: PathBuf,
    /// Time between two ticks.
    pub interval: Duration,
    /// When to stop.
    pub duration: Option<Duration>,
    /// Older ticks become a sum.
    pub keep: Duration,
    /// Bytes from which on ticks are thinned.
    pub max_size: u64,
    /// What makes an incident.
    pub when: Vec<Condition>,
    /// Detail kept from before one.
    pub before: Duration,
    /// Detail kept after one.
    pub after: Duration,
    /// Program and arguments to run when one begins.
    pub exec: Option<Vec<String>>,
    /// End after the first one.
    pub once: bool,
    /// Count inserts and deletes.
    pub count_flows: bool,
    /// How to watch.
    pub backend: BackendChoice,
}

impl Record {
    pub(super) fn resolve(args: RecordArgs) -> Result<Self, clap::Error> {
        let RecordArgs {
            output,
            interval,
            duration,
            keep,
            max_size,
            when,
            before,
            after,
            exec,
            shell,
            once,
            no_inserts,
            backend,
        } = args;
        if let Some(one) = when.iter().find(|one| no_inserts && one.needs_flows()) {
            let text = format!(
                "'--when {one}' can't fire with '--no-inserts': when a table will be full follows from new flows; leave \
                 out --no-inserts, or take fill>=90%"
            );
            return Err(super::command().error(ErrorKind::ArgumentConflict, text));
        }
        let exec = exec.map(
            |value::Words { text, words }| {
                if shell { vec!["sh".to_owned(), "-c".to_owned(), text] } else { words }
            },
        );
        Ok(Self {
            output,
            interval: interval.unsigned_abs(),
            duration: duration.map(|duration| duration.unsigned_abs()),
            keep: keep.unsigned_abs(),
            max_size,
            when,
            before: before.unsigned_abs(),
            after: after.unsigned_abs(),
            exec,
            once,
            count_flows: !no_inserts,
            backend: backend.into(),
        })
    }
}
