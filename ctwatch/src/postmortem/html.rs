//! The postmortem as one HTML file: no script, nothing from elsewhere, readable in light, dark and on paper.
//! The template escapes everything but the panels, which are drawn from numbers and names of services.

use anyhow::{Context as _, Result};
use askama::Template;
use jiff::tz::TimeZone;

use super::document::{Block, Document, TextTable};
use super::model::Postmortem;
use super::plots::{Figure, Palette, figure};

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    document: &'a Document,
    /// One a host.
    figures: Vec<Option<Figure>>,
    version: &'a str,
}

/// A table, with itself as the whole context.
#[derive(Template)]
#[template(path = "table.html")]
struct TablePart<'a> {
    table: &'a TextTable,
}

/// The panels, likewise.
#[derive(Template)]
#[template(path = "figure.html")]
struct FigurePart<'a> {
    figure: &'a Figure,
}

impl Page<'_> {
    /// The host's panels; the table where there is nothing to draw.
    fn plots(&self, host: &usize, table: &TextTable) -> askama::Result<String> {
        match self.figures.get(*host).and_then(Option::as_ref) {
            Some(figure) => FigurePart { figure }.render(),
            None => self.table(table),
        }
    }

    fn table(&self, table: &TextTable) -> askama::Result<String> {
        TablePart { table }.render()
    }
}

pub(super) fn render(report: &Postmortem, document: &Document, zone: &TimeZone) -> Result<String> {
    let palette = Palette::of(&report.hosts);
    let figures = report.hosts.iter().map(|host| figure(host, &palette, &host.clock(zone))).collect();
    let page = Page { document, figures, version: report.version };
    Ok(page.render().context("writing the HTML report")? + "\n")
}
