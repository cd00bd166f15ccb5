//! Tables in docs that a command makes: they stand between two comments that name the command.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{progress, workspace};

/// Writes the rows that `cargo xtask NAME` made into the document, in the place of those that were there.
pub fn put(file: &str, name: &str, head: &str, rows: &str) -> Result<()> {
    let path = workspace::root().join(file);
    let document = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let document = replace(&document, name, head, rows).with_context(|| format!("the table in {file}"))?;
    fs::write(&path, document).with_context(|| format!("writing {}", path.display()))?;
    progress::say(&format!("{file} has the table"));
    Ok(())
}

fn replace(document: &str, name: &str, head: &str, rows: &str) -> Result<String> {
    let [begin, end] = ["begin", "end"].map(|what| format!("<!-- cargo xtask {name}: {what} -->"));
    ensure!(
        rows.lines().count() > 1 && rows.lines().all(|row| row.starts_with("| ")),
        "these are no rows: {rows}"
    );
    let (before, rest) = document.split_once(&begin).with_context(|| format!("no line {begin}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no line {end}"))?;
    Ok(format!("{before}{begin}\n\n{head}{rows}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_take_the_place_of_rows_and_nothing_else() {
        let replace = |document: &str, rows: &str| replace(document, "x", "| head |\n|---|\n", rows);
        let document = "a\n<!-- cargo xtask x: begin -->\nold\n<!-- cargo xtask x: end -->\nb\n";
        let new = replace(document, "| x | y |\n| z | w |\n").unwrap();
        assert!(
            new.starts_with("a\n")
                && new.ends_with("b\n")
                && !new.contains("old")
                && new.contains("| z | w |")
        );
        assert_eq!(replace(&new, "| x | y |\n| z | w |\n").unwrap(), new);
        assert!(replace(document, "Error: no runc\n").is_err());
        assert!(replace("no markers", "| x |\n| y |\n").is_err());
    }
}
