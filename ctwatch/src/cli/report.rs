//! `ctwatch report` on the command line: arguments, resolved config, help examples.
//! No clap type leaves `cli/`.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::PossibleValue;

use super::common::{AnonymizeArgs, FromArgs, SpanArgs, choice};
use crate::postmortem::{Format, Request};

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ReportArgs {
    /// Recordings, one per host
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Only the ticks kept in detail around incident N
    #[arg(long, value_name = "N", value_parser = incident)]
    incident: Option<i64>,
    #[command(flatten)]
    span: SpanArgs,
    #[arg(
        long, value_name = "FORMAT", hide_possible_values = true,
        value_parser = choice([
            (PossibleValue::new("text"), Format::Text),
            (PossibleValue::new("md").alias("markdown"), Format::Markdown),
            (PossibleValue::new("html"), Format::Html),
            (PossibleValue::new("json"), Format::Json),
        ]),
        help = "text, md, html or json [default: by the extension\nof -o, else text]"
    )]
    format: Option<Format>,
    #[command(flatten)]
    anonymize: AnonymizeArgs,
    /// Write to this file; it must not exist yet
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

const AFTER: &str = "\
Examples:
  ctwatch report host.ctw                   everything, for a terminal
  ctwatch report host.ctw --incident 3 -o incident-3.html
  ctwatch report a.ctw b.ctw --from '2026-03-14 12:00' --to '2026-03-14 12:30'

Exit codes: 0 success (also if nothing was lost); 1 runtime failure (also if a
  file is damaged or not a recording); 2 usage error; 3 too few open files";

/// `ctwatch report`
#[derive(Clone, Debug)]
pub struct ReportConfig {
    /// What is asked of the recordings.
    pub request: Request,
    /// How to show it.
    pub format: Format,
    /// Where to write it; `None` means stdout.
    pub output: Option<PathBuf>,
}

impl ReportConfig {
    pub(super) fn resolve(args: ReportArgs) -> Self {
        let ReportArgs { files, incident, span, format, anonymize, output } = args;
        let SpanArgs { start: FromArgs { from }, to } = span;
        let format = format.unwrap_or_else(|| output.as_deref().map_or(Format::Text, by_ending));
        let anonymize = anonymize.into_key();
        Self { request: Request { files, incident, from, to, anonymize }, format, output }
    }
}

fn incident(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "use the number of an incident, such as 3".to_owned())
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

    fn report(flags: &str) -> ReportConfig {
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
        assert_eq!(report("a.ctw --format markdown").format, Format::Markdown);
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
