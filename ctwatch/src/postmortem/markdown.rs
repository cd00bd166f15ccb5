//! The postmortem in Markdown with GitHub's tables, for a wiki or an issue.
//! Nothing that stands in the recording becomes markup: a process may be called anything.

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
            out += &format!("\n{}\n", begun(text));
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
        Block::Text(text) => format!("{}\n", begun(text)),
        Block::List(items) => items.iter().map(|item| format!("- {}\n", begun(item))).collect(),
        Block::Code(commands) => code(commands),
        Block::Table(one) | Block::Plots(one) => table(one),
    }
}

/// Between fences that none of its lines ends.
fn code(commands: &[String]) -> String {
    let longest =
        commands.iter().flat_map(|command| command.split(|letter| letter != '`')).map(str::len).max();
    let fence = "`".repeat(longest.unwrap_or(0).max(2) + 1);
    let lines: String =
        commands.iter().flat_map(|command| command.lines()).map(|line| format!("{line}\n")).collect();
    format!("{fence}\n{lines}{fence}\n")
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

/// A block of text that begins a line: nothing in it is markup, and it begins no list, heading or quotation.
fn begun(text: &str) -> String {
    let text = escaped(text);
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    match rest.chars().next() {
        Some('.' | ')') if digits > 0 => format!("{number}\\{rest}"),
        Some('-' | '+' | '=' | '#' | '>') if digits == 0 => format!("\\{rest}"),
        // Four spaces would begin a block of code.
        Some(' ') if digits == 0 => format!("&#32;{}", &rest[1..]),
        _ => text,
    }
}

/// Text as it reads, whatever it holds: no markup of CommonMark, nor what GitHub makes of bare addresses and mentions.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        let after = letters.peek().copied().unwrap_or(' ');
        match letter {
            '<' => out += "&lt;",
            '&' => out += "&amp;",
            '\\' | '|' | '*' | '`' | '[' | ']' | '~' | '$' | '!' => out.extend(['\\', letter]),
            // Inside of a word it is itself.
            '_' if !(before.is_alphanumeric() && after.is_alphanumeric()) => out += "\\_",
            // "https://x" is a link by itself,
            ':' if after == '/' => out += "\\:",
            // and so is "www.x".
            '.' if out.ends_with("www") || out.ends_with("WWW") => out += "\\.",
            // A mail address or a mention: a parser that looks for these sees two texts.
            '@' => out += "@<!-- -->",
            other => out.push(other),
        }
        before = letter;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads_well_stays_as_it_is() {
        for plain in
            ["nf_conntrack_max", "443/tcp (https)", "net:[1] -> x", "12:03:04", "2 h 5 min", "a-b", "1,204"]
        {
            assert_eq!(begun(plain).replace('\\', ""), plain);
        }
        assert_eq!(escaped("nf_conntrack_max"), "nf_conntrack_max");
        assert_eq!(escaped("12:03:04"), "12:03:04");
    }

    #[test]
    fn markup_is_text() {
        for (text, expected) in [
            ("<b>&amp;", "&lt;b>&amp;amp;"),
            ("![x](y)", "\\!\\[x\\](y)"),
            ("_a_", "\\_a\\_"),
            ("http://x.y", "http\\://x.y"),
            ("www.x.y", "www\\.x.y"),
            ("a@b.c", "a@<!-- -->b.c"),
            ("a|b", "a\\|b"),
        ] {
            assert_eq!(escaped(text), expected);
        }
        for (text, expected) in [
            ("- a", "\\- a"),
            ("+ a", "\\+ a"),
            ("1. a", "1\\. a"),
            ("12) a", "12\\) a"),
            ("# a", "\\# a"),
            ("    a", "&#32;   a"),
            ("===", "\\==="),
            ("> a", "\\> a"),
        ] {
            assert_eq!(begun(text), expected);
        }
    }

    #[test]
    fn a_fence_is_longer_than_those_inside() {
        assert_eq!(code(&["a\n````\nb".to_owned()]), "`````\na\n````\nb\n`````\n");
    }
}
