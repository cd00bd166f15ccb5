//! The postmortem as one HTML file: no script, nothing from elsewhere, readable in light, dark and on paper.
//! The template escapes everything but the plots, which are drawn from numbers.

use anyhow::{Context as _, Result};
use askama::Template;
use jiff::tz::TimeZone;

use super::document::{Block, Document, TextTable};
use super::model::Postmortem;
use super::plots::{self, Plot};

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    document: &'a Document,
    /// One list a host.
    plots: Vec<Vec<Plot>>,
    version: &'a str,
}

/// A table, with itself as the whole context.
#[derive(Template)]
#[template(path = "table.html")]
struct TablePart<'a> {
    table: &'a TextTable,
}

impl Page<'_> {
    fn plots_of(&self, host: &usize) -> &[Plot] {
        self.plots.get(*host).map_or(&[], Vec::as_slice)
    }

    fn table(&self, table: &TextTable) -> askama::Result<String> {
        TablePart { table }.render()
    }
}

pub(super) fn render(report: &Postmortem, document: &Document, zone: &TimeZone) -> Result<String> {
    let plots = report.hosts.iter().map(|host| plots::of(host, zone)).collect::<Result<_>>()?;
    let page = Page { document, plots, version: report.version };
    Ok(page.render().context("writing the HTML report")? + "\n")
}
