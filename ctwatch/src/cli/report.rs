//! The arguments of `ctwatch report`, raw and resolved.
//! No clap type leaves `cli/`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::postmortem::{Format, Request};
use crate::record::span::Moment;

const AFTER: &str = "\
Examples:
  ctwatch report host.ctw                   all of it, for a terminal
  ctwatch report host.ctw --incident 3 -o incident-3.html
  ctwatch report a.ctw b.ctw --from '2026-03-14 12:00' --to '2026-03-14 12:30'

Exit codes: 0 done, also where nothing was lost; 1 failed, for one because a
  file is damaged or no recording; 2 wrong usage";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER)]
pub struct Args {
    /// Recordings, one for each host
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Only the ticks kept in detail around this one
    #[arg(long, value_name = "N")]
    pub incident: Option<i64>,
    #[arg(
        long,
        value_name = "WHEN",
        allow_hyphen_values = true,
        help = "Only what came after: 2026-03-14T12:00:00Z, a\nlocal '2026-03-14 12:00' or 12:00, +10m from the\nstart, -10m from the end"
    )]
    pub from: Option<Moment>,
    /// Only what came until then
    #[arg(long, visible_alias = "until", value_name = "WHEN", allow_hyphen_values = true)]
    pub to: Option<Moment>,
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        hide_possible_values = true,
        help = "text, md, html or json [default: by the ending of\n-o, else text]"
    )]
    pub format: Option<Kind>,
    #[arg(
        long, value_name = "KEY", num_args = 0..=1, require_equals = true, default_missing_value = "",
        help = "Replace addresses and names, the same always by\nthe same; with a key, in every file alike"
    )]
    pub anonymize: Option<String>,
    /// Write to a file, which must not exist yet
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    Text,
    Md,
    Html,
    Json,
}

/// `ctwatch report`
#[derive(Clone, Debug)]
pub struct Report {
    /// What is asked of the recordings.
    pub request: Request,
    /// How to show it.
    pub format: Format,
    /// Where to write it; `None` means stdout.
    pub output: Option<PathBuf>,
}

impl Report {
    pub(super) fn resolve(args: Args) -> Self {
        let Args { files, incident, from, to, format, anonymize, output } = args;
        let format = match format {
            Some(Kind::Text) => Format::Text,
            Some(Kind::Md) => Format::Markdown,
            Some(Kind::Html) => Format::Html,
            Some(Kind::Json) => Format::Json,
            None => output.as_deref().map_or(Format::Text, by_ending),
        };
        let anonymize = anonymize.map(|key| (!key.is_empty()).then_some(key));
        Self { request: Request { files, incident, from, to, anonymize }, format, output }
    }
}

fn by_ending(path: &Path) -> Format {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("md" | "markdown") => Format::Markdown,
        Some("html" | "htm") => Format::Html,
        Some("json") => Format::Json,
        _ => Format::Text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, parse};
    use super::*;

    fn report(flags: &str) -> Report {
        let arguments = ["ctwatch", "report"].into_iter().chain(flags.split_whitespace());
        match parse(arguments).expect("these flags are right").command {
            Command::Report(report) => report,
            other => panic!("asked for a report, not {other:?}"),
        }
    }

    #[test]
    fn the_ending_of_the_output_says_the_format_unless_one_is_given() {
        assert_eq!(report("a.ctw").format, Format::Text);
        assert_eq!(report("a.ctw -o a.html").format, Format::Html);
        assert_eq!(report("a.ctw -o a.md").format, Format::Markdown);
        assert_eq!(report("a.ctw -o a.html --format json").format, Format::Json);
        assert_eq!(report("a.ctw b.ctw").request.files.len(), 2);
    }

    #[test]
    fn times_are_those_of_replay_and_export() {
        for (flags, moment) in
            [("--from 03:00", "03:00"), ("--from 2026-03-14T12:03:04Z", "2026-03-14T12:03:04Z")]
        {
            assert_eq!(report(&format!("a.ctw {flags}")).request.from, Some(moment.parse().unwrap()));
        }
        assert_eq!(report("a.ctw --until -10m").request.to, Some("-10m".parse().unwrap()));
        assert!(parse(["ctwatch", "report", "a.ctw", "--from", "yesterday"]).is_err());
        assert!(parse(["ctwatch", "report"]).is_err());
    }
}
