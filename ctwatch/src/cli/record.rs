//! `ctwatch record` on the command line: arguments, resolved config, help examples.
//! Conflicts between flags are found here, before anything is read.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::{PathBufValueParser, TypedValueParser};

use super::common::{self, BackendChoice, LiveArgs};
use super::file_format::{EXPORT, REPORT, names_one};
use crate::record::trigger::Condition;

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct RecordArgs {
    /// Output file; an existing recording is continued
    #[arg(short, long, value_name = "FILE", value_parser = file())]
    output: PathBuf,
    #[arg(
        long, value_name = "TIME", value_parser = common::age, default_value = "7d",
        help = "Merge older ticks into totals, except around\nincidents"
    )]
    keep: Duration,
    #[arg(
        long, value_name = "SIZE", value_parser = size, default_value = "500MB",
        help = "Size limit: the oldest ticks are downsampled, then\nmerged; incidents last"
    )]
    max_size: u64,
    #[command(flatten)]
    live: LiveArgs,
    #[command(flatten, next_help_heading = "Triggers")]
    triggers: TriggerArgs,
}

#[derive(Debug, Args)]
struct TriggerArgs {
    #[arg(
        long,
        value_name = "CONDITION",
        help = "What starts an incident: fill>=90%, drops>0 (in one\ntick) or full_in<60s (repeatable)"
    )]
    when: Vec<Condition>,
    /// Keep detail this long before an incident
    #[arg(long, value_name = "TIME", value_parser = common::age, default_value = "2m")]
    before: Duration,
    /// Keep detail this long after it clears
    #[arg(long, value_name = "TIME", value_parser = common::age, default_value = "5m")]
    after: Duration,
    #[arg(
        long, value_name = "CMD", value_parser = words, requires = "when",
        help = "Run CMD at each incident, with its JSON on stdin;\nCMD is split into words but no shell is started"
    )]
    exec: Option<Words>,
    #[arg(long, requires = "exec", help = "Run CMD with `sh -c`")]
    shell: bool,
    #[arg(long, requires = "when", help = "Exit after the first incident (exit code 4 if none)")]
    once: bool,
}

const AFTER: &str = "\
A line of JSON is printed when the file is opened, at each incident, and when
the file is closed. SIGHUP rotates: the file is closed and renamed with a
timestamp, and a new one is started.

Examples:
  ctwatch record -o /var/lib/ctwatch/host.ctw --when 'drops>0'
  ctwatch record -o case.ctw --when 'fill>=90%' --once --duration 1h

Exit codes: 0 success (also on Ctrl-C); 1 runtime failure (also a full disk);
  2 usage error; 3 not possible on this host; 4 no incident with --once";

/// `ctwatch record`
#[derive(Clone, Debug)]
pub struct RecordConfig {
    /// The file.
    pub output: PathBuf,
    /// Time between two ticks.
    pub interval: Duration,
    /// When to stop.
    pub duration: Option<Duration>,
    /// Ticks older than this are merged into totals.
    pub keep: Duration,
    /// Size limit of the file, bytes.
    pub max_size: u64,
    /// What starts an incident.
    pub when: Vec<Condition>,
    /// How long before an incident detail is kept.
    pub before: Duration,
    /// How long after its condition clears.
    pub after: Duration,
    /// Program and arguments to run at each incident.
    pub exec: Option<Vec<String>>,
    /// Exit after the first incident.
    pub once: bool,
    /// Count inserts and deletes.
    pub count_flows: bool,
    /// How to watch.
    pub backend: BackendChoice,
}

impl RecordConfig {
    /// The error says which arguments exclude each other.
    pub(super) fn resolve(args: RecordArgs) -> Result<Self, String> {
        let RecordArgs { output, keep, max_size, live, triggers } = args;
        let LiveArgs { interval, duration, no_inserts, backend } = live;
        let TriggerArgs { when, before, after, exec, shell, once } = triggers;
        if let Some(one) = when.iter().find(|one| no_inserts && one.needs_flows()) {
            return Err(format!(
                "'--when {one}' can't fire with '--no-inserts': the forecast needs new flows to be counted; leave out \
                 --no-inserts, or use fill>=90%"
            ));
        }
        let exec = exec.map(
            |Words { text, words }| {
                if shell { vec!["sh".to_owned(), "-c".to_owned(), text] } else { words }
            },
        );
        Ok(Self {
            output,
            interval,
            duration,
            keep,
            max_size,
            when,
            before,
            after,
            exec,
            once,
            count_flows: !no_inserts,
            backend,
        })
    }
}

/// A file: a recording is written here and there, so it can't be a stream.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        if names_one(&EXPORT, &path) {
            return Err("a recording is a database: name it like a.ctw, and `ctwatch export a.ctw -o` makes such a file of it \
                        (`ctwatch drops --format json` is a stream)");
        }
        if names_one(&REPORT, &path) {
            return Err("a recording is a database: name it like a.ctw, and `ctwatch report a.ctw -o` makes such a file of it");
        }
        if path == Path::new("-") {
            return Err("a recording is a database and can't be written to standard output: name a file (./- if it is to be \
                        called so). For a stream: `ctwatch drops --format json`");
        }
        Ok(path)
    })
}

/// The smallest size limit: empty tables take some of it.
const SMALLEST: u64 = 1_000_000;

/// Bytes: "500MB", "2GiB".
fn size(text: &str) -> Result<u64, String> {
    let good = "use a size like 500MB, 2GB or 512MiB";
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(good)?;
    let (number, unit) = text.split_at(at);
    let factor = match unit.trim().to_lowercase().as_str() {
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "tb" | "t" => 1e12,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        "tib" => 1_099_511_627_776.0,
        _ => return Err(good.to_owned()),
    };
    let bytes = number.parse::<f64>().map_err(|_| good.to_owned())? * factor;
    if bytes < SMALLEST as f64 {
        return Err(format!("the smallest size is 1MB; {good}"));
    }
    Ok(bytes as u64)
}

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    text: String,
    words: Vec<String>,
}

fn words(text: &str) -> Result<Words, String> {
    let words = shlex::split(text).filter(|words| !words.is_empty());
    let words = words.ok_or("use a program and its arguments; is there an unclosed quote?")?;
    Ok(Words { text: text.to_owned(), words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_know_units() {
        assert_eq!(size("500MB"), Ok(500_000_000));
        assert_eq!(size("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(size("2gb"), Ok(2_000_000_000));
        assert_eq!((size("1TB"), size("1TiB")), (Ok(1_000_000_000_000), Ok(1_099_511_627_776)));
        for bad in ["", "500", "MB", "1kB", "5 apples", "1.2.3MB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_command_is_split_as_a_shell_splits_it() {
        assert_eq!(words("page 'the host' --now").unwrap().words, ["page", "the host", "--now"]);
        assert!(words("").is_err() && words("page 'open").is_err());
    }
}
