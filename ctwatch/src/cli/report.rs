//! `ctwatch report` on the command line: arguments, resolved config, help examples.
//! No clap type leaves `cli/`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::common::{AnonymizeArgs, FromArgs, SpanArgs, recording};
use super::file_format::{self, REPORT, by_name};
use crate::postmortem::{ReportFormat, Request};

#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct ReportArgs {
    /// Recordings, one per host
    #[arg(value_name = "FILE", required = true, value_parser = recording())]
    files: Vec<PathBuf>,
    /// Only the ticks kept in detail around incident N
    #[arg(long, value_name = "N", value_parser = incident)]
    incident: Option<i64>,
    #[command(flatten)]
    span: SpanArgs,
    #[arg(
        long, value_name = "FORMAT", hide_possible_values = true,
        value_parser = by_name(&REPORT),
        help = "text, md, html or json [default: by the extension\nof -o, else text]"
    )]
    format: Option<ReportFormat>,
    #[command(flatten)]
    anonymize: AnonymizeArgs,
    /// Write to this new file; - is standard output
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
    pub format: ReportFormat,
    /// Where to write it; `None` means stdout.
    pub output: Option<PathBuf>,
}

impl ReportConfig {
    /// The error says which endings there are.
    pub(super) fn resolve(args: ReportArgs) -> Result<Self, String> {
        let ReportArgs { files, incident, span, format, anonymize, output } = args;
        let SpanArgs { start: FromArgs { from }, to } = span;
        let output = output.filter(|path| path != Path::new("-"));
        let format = match (format, output.as_deref()) {
            (Some(format), _) => format,
            (None, Some(path)) => by_ending(path)?,
            (None, None) => ReportFormat::Text,
        };
        let anonymize = anonymize.into_key();
        Ok(Self { request: Request { files, incident, from, to, anonymize }, format, output })
    }
}

fn incident(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "use the number of an incident, such as 3".to_owned())
}

/// Text, unless the ending says another format; one that says something else would be a lie.
fn by_ending(path: &Path) -> Result<ReportFormat, String> {
    let Some(ending) = path.extension() else { return Ok(ReportFormat::Text) };
    if let Some(format) = file_format::by_ending(&REPORT, path) {
        return Ok(format);
    }
    let ending = ending.to_str().unwrap_or_default();
    if ending.starts_with(|first: char| first.is_ascii_digit()) {
        // A date, as in report.2026-03-14.
        return Ok(ReportFormat::Text);
    }
    Err(format!(
        "'-o': a report can't be written as .{ending}: the file may end in .txt, .md, .html or .json; '--format' takes any \
         name"
    ))
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
        assert_eq!(report("a.ctw").format, ReportFormat::Text);
        assert_eq!(report("a.ctw -o a.html").format, ReportFormat::Html);
        assert_eq!(report("a.ctw -o a.md").format, ReportFormat::Markdown);
        assert_eq!(report("a.ctw --format markdown").format, ReportFormat::Markdown);
        assert_eq!(report("a.ctw -o a.html --format json").format, ReportFormat::Json);
        assert_eq!(report("a.ctw -o a.HTML").format, ReportFormat::Html);
        assert_eq!(report("a.ctw -o a").format, ReportFormat::Text);
        assert_eq!(report("a.ctw -o a.pdf --format HTML").format, ReportFormat::Html);
        assert_eq!((report("a.ctw -o -").format, report("a.ctw -o -").output), (ReportFormat::Text, None));
        let error = parse(["ctwatch", "report", "a.ctw", "-o", "a.pdf"]).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(".html"), "{error}");
        assert!(parse(["ctwatch", "report", "-"]).unwrap_err().to_string().contains("standard input"));
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
