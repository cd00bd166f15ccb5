//! The postmortem for a terminal, at 80 columns.
//! Commands are never broken: they are to be copied.

use super::document::{Block, Document, Table};
use crate::view::text::layout::{COLUMNS, shorten, width, wrap};

pub(super) fn render(document: &Document) -> String {
    let mut lines = vec![document.title.clone()];
    if let Some(comparison) = &document.comparison {
        lines.push(String::new());
        lines.extend(table(comparison));
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
    let clean = |line: String| line.replace(char::is_control, "?").trim_end().to_owned();
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

/// Columns as wide as they need to be; the last one is cut where the terminal ends.
fn table(table: &Table) -> Vec<String> {
    if table.rows.is_empty() {
        return Vec::new();
    }
    let widths: Vec<usize> = table
        .columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let cells = table.rows.iter().filter_map(|row| row.get(index)).map(|cell| width(cell));
            cells.chain([width(column.name)]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&table.columns).zip(&widths).map(|((cell, column), width)| {
            if column.right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        shorten(format!("  {}", padded.collect::<Vec<_>>().join("  ")).trim_end(), COLUMNS)
    };
    let head = line(table.columns.iter().map(|column| column.name).collect());
    let rows = table.rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [head].into_iter().chain(rows).collect()
}
