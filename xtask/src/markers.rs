//! Tables in docs that a command makes: they stand between two comments that name the command.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{progress, workspace};

/// Writes into the document what `text` makes of it, in the place of what `cargo xtask NAME` had made before.
pub fn put(file: &str, name: &str, text: impl FnOnce(&str) -> String) -> Result<()> {
    let path = workspace::root().join(file);
    let document = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let new = replace(&document, name, &text(&document)).with_context(|| format!("the table in {file}"))?;
    fs::write(&path, new).with_context(|| format!("writing {}", path.display()))
}

/// The same for rows below a head that never changes.
pub fn put_rows(file: &str, name: &str, head: &str, rows: &str) -> Result<()> {
    ensure!(are_rows(rows), "these are no rows: {rows}");
    put(file, name, |_| format!("\n{head}{rows}\n"))?;
    progress::say(&format!("{file} has the table"));
    Ok(())
}

/// What stands between the markers.
pub fn between<'a>(document: &'a str, name: &str) -> Result<&'a str> {
    split(document, name).map(|(_, between, _)| between)
}

/// The document with another text between the markers.
pub fn replace(document: &str, name: &str, text: &str) -> Result<String> {
    let (before, _, after) = split(document, name)?;
    Ok(format!("{before}{text}{after}"))
}

/// Up to and with the first marker, between them, from the second one on.
fn split<'a>(document: &'a str, name: &str) -> Result<(&'a str, &'a str, &'a str)> {
    let [begin, end] = ["begin", "end"].map(|what| format!("<!-- cargo xtask {name}: {what} -->"));
    let first = document.find(&begin).with_context(|| format!("no line {begin}"))? + begin.len();
    let first = first + document[first..].find('\n').map_or(0, |at| at + 1);
    let second = document[first..].find(&end).with_context(|| format!("no line {end} behind it"))? + first;
    Ok((&document[..first], &document[first..second], &document[second..]))
}

fn are_rows(rows: &str) -> bool {
    rows.lines().count() > 1 && rows.lines().all(|row| row.starts_with("| "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_another_and_of_nothing_else() {
        let document = "a\n<!-- cargo xtask x: begin -->\nold\n<!-- cargo xtask x: end -->\nb\n";
        assert_eq!(between(document, "x").unwrap(), "old\n");
        let new = replace(document, "x", "| x | y |\n| z | w |\n").unwrap();
        assert_eq!(new, document.replace("old\n", "| x | y |\n| z | w |\n"));
        assert_eq!(replace(&new, "x", "old\n").unwrap(), document);
        assert!(replace("no markers", "x", "new").is_err() && replace(document, "y", "new").is_err());
        assert!(are_rows("| x | y |\n| z | w |\n"));
        assert!(!are_rows("Error: no runc\n") && !are_rows("| one |\n") && !are_rows(""));
    }
}
