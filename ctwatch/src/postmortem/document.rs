//! The postmortem as titles, sentences and tables: the same words for text, Markdown and HTML.
//! No layout: each format has its own file for that.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::model::{Host, Postmortem};
use super::sections;
use crate::text::thousands;

/// What a format has to lay out.
#[derive(Debug)]
pub(super) struct Document {
    pub title: String,
    /// Side by side, if there is more than one host.
    pub comparison: Option<TextTable>,
    pub hosts: Vec<Chapter>,
}

/// One host.
#[derive(Debug)]
pub(super) struct Chapter {
    pub title: String,
    pub lead: Vec<String>,
    pub sections: Vec<Section>,
}

#[derive(Debug)]
pub(super) struct Section {
    pub title: &'static str,
    pub blocks: Vec<Block>,
}

#[derive(Debug)]
pub(super) enum Block {
    Text(String),
    List(Vec<String>),
    Table(TextTable),
    /// To be copied.
    Code(Vec<String>),
    /// Where HTML has its plots; the table is for the others.
    Plots(TextTable),
}

#[derive(Debug)]
pub(super) struct TextTable {
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub name: &'static str,
    pub right: bool,
}

impl TextTable {
    /// Columns by their names; numbers have a `>` in front.
    pub fn new(columns: &[&'static str], rows: Vec<Vec<String>>) -> Self {
        let column = |name: &&'static str| match name.strip_prefix('>') {
            Some(name) => Column { name, right: true },
            None => Column { name, right: false },
        };
        Self { columns: columns.iter().map(column).collect(), rows }
    }
}

/// How times are written.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    zone: TimeZone,
    with_date: bool,
}

impl Clock {
    pub fn new(zone: &TimeZone, host: &Host) -> Self {
        let zone = zone.clone();
        let with_date = host.span.is_some_and(|span| {
            span.from.to_zoned(zone.clone()).date() != span.to.to_zoned(zone.clone()).date()
        });
        Self { zone, with_date }
    }

    pub fn time(&self, time: Timestamp) -> String {
        let format = if self.with_date { "%Y-%m-%d %H:%M:%S" } else { "%H:%M:%S" };
        time.to_zoned(self.zone.clone()).strftime(format).to_string()
    }

    pub fn full(&self, time: Timestamp) -> String {
        time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
    }
}

pub(super) fn of(report: &Postmortem, zone: &TimeZone) -> Document {
    let comparison = (report.hosts.len() > 1).then(|| comparison(report, zone));
    Document {
        title: "Postmortem of conntrack losses".to_owned(),
        comparison,
        hosts: report.hosts.iter().map(|host| sections::chapter(host, zone)).collect(),
    }
}

fn comparison(report: &Postmortem, zone: &TimeZone) -> TextTable {
    let times = |host: &Host| {
        let story = &host.story;
        [story.first_sign, story.full_at, story.first_loss, story.last_loss].into_iter().flatten()
    };
    let mut dates: Vec<_> =
        report.hosts.iter().flat_map(times).map(|time| time.to_zoned(zone.clone()).date()).collect();
    dates.dedup();
    let clock = Clock { zone: zone.clone(), with_date: dates.len() > 1 };
    let row = |(host, name): (&Host, String)| {
        let time = |time: Option<Timestamp>| time.map_or_else(|| "-".to_owned(), |time| clock.time(time));
        let story = &host.story;
        vec![
            name,
            time(story.first_sign),
            time(story.full_at),
            time(story.first_loss),
            time(story.last_loss),
            thousands(story.packets_lost),
            thousands(story.entries_lost),
        ]
    };
    TextTable::new(
        &["host", "first sign", "full at", "first loss", "last loss", ">packets lost", ">entries lost"],
        report.hosts.iter().zip(names(&report.hosts)).map(row).collect(),
    )
}

/// Names that tell them apart: several files may be of one host, as those of a rotation are.
fn names(hosts: &[Host]) -> Vec<String> {
    let label = |index: usize, host: &Host| {
        let alike = || hosts.iter().filter(|other| name(other) == name(host));
        let is_one = |part: fn(&Host) -> &str| alike().filter(|other| part(other) == part(host)).count() == 1;
        match &host.host {
            _ if alike().count() == 1 => name(host),
            Some(called) if is_one(file_name) => format!("{called} ({})", file_name(host)),
            Some(called) if is_one(|host| &host.file) => format!("{called} ({})", host.file),
            _ => format!("{} ({})", name(host), index + 1),
        }
    };
    hosts.iter().enumerate().map(|(index, host)| label(index, host)).collect()
}

fn file_name(host: &Host) -> &str {
    host.file.rsplit('/').next().unwrap_or(&host.file)
}

pub(super) fn name(host: &Host) -> String {
    host.host.clone().unwrap_or_else(|| host.file.clone())
}
