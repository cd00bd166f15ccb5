//! `ctwatch report`: the postmortem of what a recording holds, gathered once and shown in one of four formats.
//! Reads recordings and writes strings; nothing here touches the system.

mod advice;
mod document;
mod gather;
mod html;
mod markdown;
mod model;
mod plots;
mod sampled;
mod scan;
mod sections;
mod series;
mod text;
mod trust;

use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::error::Failure;
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;
use crate::record::span::{Moment, Span};
pub use model::Postmortem;

/// What is asked of the recordings.
#[derive(Clone, Debug)]
pub struct Request {
    /// The recordings, one a host.
    pub files: Vec<PathBuf>,
    /// Only this incident.
    pub incident: Option<i64>,
    /// Only from here,
    pub from: Option<Moment>,
    /// and only until here.
    pub to: Option<Moment>,
    /// Without addresses and names: by a key, or by one that nobody knows.
    pub anonymize: Option<Option<String>>,
}

/// How to show a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For a terminal, at 80 columns.
    Text,
    /// For a wiki.
    Markdown,
    /// For a browser: one file without scripts.
    Html,
    /// For scripts.
    Json,
}

/// Gathers everything. Moments without a zone are meant in this one.
///
/// # Errors
/// A file is no recording, newer, or damaged; there is no such incident, or no such time.
pub fn gather(request: &Request, version: &'static str, zone: &TimeZone) -> Result<Postmortem> {
    let span = span(request, zone)?;
    // One for all files: the same is the same everywhere.
    let key = request.anonymize.as_ref();
    let mut anonymizer = key.map(|key| Anonymizer::new(key.as_deref())).transpose()?;
    let host = |file: &PathBuf| gather::host(file, request, span, version, anonymizer.as_mut());
    let hosts = request.files.iter().map(host).collect::<Result<_>>()?;
    Ok(Postmortem { kind: "report", schema: crate::contract::SCHEMA, version, hosts })
}

/// One for all files, so that hosts side by side show the same time: the recording that a moment is looked for in goes from
/// the first start to the last end.
fn span(request: &Request, zone: &TimeZone) -> Result<Span> {
    if request.from.is_none() && request.to.is_none() {
        return Ok(Span::default());
    }
    let mut all: Option<(Timestamp, Timestamp)> = None;
    for file in &request.files {
        let recording = Recording::open(file)?;
        let Some((start, end)) = recording.bounds(&recording.runs()?)? else { continue };
        all = Some(all.map_or((start, end), |(first, last)| (first.min(start), last.max(end))));
    }
    // Where nothing was recorded, nothing is in any span.
    let Some(bounds) = all else { return Ok(Span::default()) };
    Span::anywhere(request.from, request.to, bounds, zone).map_err(|error| Failure::usage(error).into())
}

/// The report as it is printed. Times are shown in this time zone; in JSON they are UTC.
///
/// # Errors
/// A plot or template can't be written.
pub fn render(report: &Postmortem, format: Format, zone: &TimeZone) -> Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string(report)? + "\n",
        Format::Text => text::render(&document::of(report, zone)),
        Format::Markdown => markdown::render(&document::of(report, zone)),
        Format::Html => html::render(report, &document::of(report, zone), zone)?,
    })
}

#[cfg(test)]
mod tests;
