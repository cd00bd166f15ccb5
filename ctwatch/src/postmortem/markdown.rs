//! The postmortem in Markdown with GitHub's tables, for a wiki or an issue.
//! What stands in the recording is escaped: a process may be called anything.

use super::document::{Block, Document, TextTable};

pub(super) fn render(document: &Document) -> String {
    let mut out = format!("# {}\n", escaped(&document.title));
    match document.headlines.as_slice() {
        [headline] => out += &format!("\n**{}**\n", escaped(headline)),
        headlines => {
            out.push('\n');
            out.extend(headlines.iter().map(|headline| format!("- **{}**\n", escaped(headline))));
        }
    }
    if let Some(comparison) = &document.comparison {
        out += &format!("\n{}", table(comparison));
    }
    for host in &document.hosts {
        out += &format!("\n## {}\n", escaped(&host.title));
        for text in &host.lead {
            out += &format!("\n{}\n", escaped(text));
        }
        for section in &host.sections {
            out += &format!("\n### {}\n", section.title);
            for text in section.blocks.iter().map(block).filter(|text| !text.is_empty()) {
                out += &format!("\n{text}");
            }
        }
    }
    out
}

fn block(block: &Block) -> String {
    match block {
        Block::Text(text) => format!("{}\n", escaped(text)),
        Block::List(items) => items.iter().map(|item| format!("- {}\n", escaped(item))).collect(),
        Block::Code(commands) => {
            let lines = commands.iter().flat_map(|command| command.lines());
            lines.map(|line| format!("    {}\n", plain(line))).collect()
        }
        Block::Table(one) | Block::Plots(one) => table(one),
    }
}

fn table(table: &TextTable) -> String {
    if table.rows.is_empty() {
        return String::new();
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = line(table.columns.iter().map(|column| column.name.to_owned()).collect());
    let rule = line(
        table.columns.iter().map(|column| if column.right { "---:" } else { "---" }.to_owned()).collect(),
    );
    let rows = table.rows.iter().map(|row| line(row.iter().map(|cell| escaped(cell)).collect()));
    [head, rule].into_iter().chain(rows).collect()
}

fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in plain(text).chars() {
        match letter {
            '<' => out += "&lt;",
            '&' => out += "&amp;",
            '\\' | '|' | '*' | '`' | '[' | ']' => out.extend(['\\', letter]),
            other => out.push(other),
        }
    }
    out
}
