//! The postmortem for a terminal, at 80 columns.
//! Commands are never broken: they are to be copied.

use super::document::{Block, Column, Document, TextTable};
use crate::foreign::harmless;
use crate::text::{COLUMNS, left, right, shorten, width, wrap};

pub(super) fn render(document: &Document) -> String {
    let mut lines = vec![document.title.clone(), String::new()];
    match document.headlines.as_slice() {
        [headline] => lines.extend(wrap(headline, 0)),
        headlines => lines.extend(headlines.iter().flat_map(|headline| wrap(&format!("- {headline}"), 2))),
    }
    if let Some(comparison) = &document.comparison {
        lines.push(String::new());
        lines.extend(hosts(comparison));
    }
    for host in &document.hosts {
        lines.push(String::new());
        lines.push(host.title.clone());
        lines.extend(host.lead.iter().flat_map(|text| wrap(text, 2)));
        for section in &host.sections {
            lines.push(String::new());
            lines.push(section.title.to_uppercase());
            for block in &section.blocks {
                lines.extend(block_lines(block));
            }
        }
    }
    let clean = |line: String| harmless(&line).trim_end().to_owned();
    lines.into_iter().map(|line| clean(line) + "\n").collect()
}

fn block_lines(block: &Block) -> Vec<String> {
    match block {
        Block::Text(text) => wrap(text, 0),
        Block::List(items) => items.iter().flat_map(|item| wrap(&format!("- {item}"), 2)).collect(),
        Block::Code(commands) => {
            commands.iter().flat_map(|command| command.lines()).map(|line| format!("    {line}")).collect()
        }
        Block::Table(one) | Block::Plots(one) => table(one),
    }
}

/// The last column is cut where the terminal ends.
fn table(table: &TextTable) -> Vec<String> {
    let lines = columns(&table.columns, table.rows.iter().map(Vec::as_slice), 2);
    lines.iter().map(|line| shorten(line, COLUMNS)).collect()
}

/// Hosts side by side, of which nothing is cut: each has a line; or its name has one and its figures another, or several.
fn hosts(table: &TextTable) -> Vec<String> {
    let fits = |lines: &[String]| lines.iter().all(|line| width(line) <= COLUMNS);
    let whole = columns(&table.columns, table.rows.iter().map(Vec::as_slice), 2);
    let [name, figures @ ..] = table.columns.as_slice() else { return whole };
    if fits(&whole) {
        return whole;
    }
    let rows = table.rows.iter().filter_map(|row| row.split_first());
    let below = columns(figures, rows.clone().map(|(_, figures)| figures), 4);
    if fits(&below) {
        let names = [name.name].into_iter().chain(rows.map(|(name, _)| name.as_str()));
        return names.zip(below).flat_map(|(name, figures)| [format!("  {name}"), figures]).collect();
    }
    let said = rows.flat_map(|(name, row)| {
        let figures = figures.iter().zip(row).map(|(column, cell)| format!("{} {cell}", column.name));
        wrap(&format!("- {name}: {}", figures.collect::<Vec<_>>().join(", ")), 2)
    });
    said.collect()
}

/// Columns as wide as they need to be.
fn columns<'a>(
    columns: &[Column],
    rows: impl Iterator<Item = &'a [String]> + Clone,
    indent: usize,
) -> Vec<String> {
    if rows.clone().next().is_none() {
        return Vec::new();
    }
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells = rows.clone().filter_map(|row| row.get(index)).map(|cell| width(cell));
            cells.chain([width(column.name)]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(columns).zip(&widths).map(|((cell, column), width)| {
            if column.right { right(cell, *width) } else { left(cell, *width) }
        });
        let text = format!("{:indent$}{}", "", padded.collect::<Vec<_>>().join("  "));
        text.trim_end().to_owned()
    };
    let head = line(columns.iter().map(|column| column.name).collect());
    let rows = rows.map(|row| line(row.iter().map(String::as_str).collect()));
    [head].into_iter().chain(rows).collect()
}
