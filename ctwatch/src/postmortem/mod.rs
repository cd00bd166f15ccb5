//! `ctwatch report`: the postmortem of what a recording holds, gathered once and shown in one of four formats.
//! Reads recordings and writes strings; nothing here touches the system.

mod advice;
mod at;
mod clock;
mod document;
mod facts;
mod gather;
mod headline;
mod html;
mod markdown;
mod model;
mod names;
mod plots;
mod sampled;
mod scan;
mod sections;
mod series;
mod states;
mod text;
mod trust;

use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use self::clock::Clock;
use self::document::{Document, TextTable};
use self::model::Host;
use crate::error::Failure;
use crate::foreign::{Foreign, to_json};
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;
use crate::record::span::{Moment, Span};
use crate::text::thousands;
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
pub enum ReportFormat {
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
    let host = |file: &PathBuf| gather::host(file, request, (span, zone), version, anonymizer.as_mut());
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
/// A template can't be written.
pub fn render(report: &Postmortem, format: ReportFormat, zone: &TimeZone) -> Result<String> {
    Ok(match format {
        ReportFormat::Json => to_json(report)? + "\n",
        ReportFormat::Text => text::render(&document(report, zone)),
        ReportFormat::Markdown => markdown::render(&document(report, zone)),
        ReportFormat::Html => html::render(report, &document(report, zone), zone)?,
    })
}

fn document(report: &Postmortem, zone: &TimeZone) -> Document {
    let comparison = (report.hosts.len() > 1).then(|| comparison(report, zone));
    Document {
        title: "Postmortem of conntrack losses".to_owned(),
        headlines: headlines(report, zone),
        comparison,
        hosts: report.hosts.iter().map(|host| sections::chapter(host, zone)).collect(),
    }
    .harmless()
}

/// One for each host, with its name if there are several.
fn headlines(report: &Postmortem, zone: &TimeZone) -> Vec<String> {
    let sentence = |host: &Host| host.facts.sentence(&host.clock(zone));
    match report.hosts.as_slice() {
        [host] => vec![sentence(host)],
        hosts => {
            hosts.iter().zip(names(hosts)).map(|(host, name)| format!("{name}: {}", sentence(host))).collect()
        }
    }
}

fn comparison(report: &Postmortem, zone: &TimeZone) -> TextTable {
    let times = |host: &Host| {
        let story = &host.story;
        [story.first_sign, story.full_at, story.first_loss, story.last_loss].into_iter().flatten()
    };
    let times = || report.hosts.iter().flat_map(times);
    let clock = Clock::of_span(zone, times().min().zip(times().max()));
    let row = |(host, name): (&Host, String)| {
        let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |time| clock.time(time));
        let story = &host.story;
        let losing = story.losing();
        vec![
            name,
            time(story.first_sign),
            time(story.full_at),
            time(losing.map(|(first, _)| first)),
            time(losing.map(|(_, last)| last)),
            thousands(story.packets_lost),
            thousands(story.entries_lost),
        ]
    };
    TextTable::new(
        &["host", "onset", "full at", "losses from", "to", ">packets lost", ">entries evicted"],
        report.hosts.iter().zip(names(&report.hosts)).map(row).collect(),
    )
}

/// Names that tell them apart: several files may be of one host, as those of a rotation are.
fn names(hosts: &[Host]) -> Vec<String> {
    let label = |index: usize, host: &Host| {
        let alike = || hosts.iter().filter(|other| other.title() == host.title());
        let is_one = |part: fn(&Host) -> &str| alike().filter(|other| part(other) == part(host)).count() == 1;
        match &host.host {
            _ if alike().count() == 1 => host.title().to_string(),
            Some(called) if is_one(file_name) => format!("{called} ({})", Foreign::from(file_name(host))),
            Some(called) if is_one(|host| host.file.raw()) => format!("{called} ({})", host.file),
            _ => format!("{} ({})", host.title(), index + 1),
        }
    };
    hosts.iter().enumerate().map(|(index, host)| label(index, host)).collect()
}

fn file_name(host: &Host) -> &str {
    let file = host.file.raw();
    file.rsplit('/').next().unwrap_or(file)
}

#[cfg(test)]
mod tests;
