//! What is asked of ctwatch in an environment, and what came of it in a cell's words: works, in part, refuses.
//! Words are ctwatch's own, cut where its first clause ends.

use std::fmt;
use std::process::Output;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Environment;

/// How long a cell's words may be.
const LONGEST: usize = 200;

const NOTHING: &str = "nothing is wrong";

/// A command of ctwatch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// `ctwatch check`
    Check,
    /// `ctwatch drops`
    Drops,
    /// `ctwatch table`
    Table,
    /// `ctwatch advise`
    Advise,
    /// `ctwatch record`
    Record,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// All that it does on a host for root.
    Works,
    /// Something of it; what is missing, in its words.
    InPart(String),
    /// Nothing, with exit code 3 or 2 and these words.
    Refuses(String),
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Works => f.write_str("works"),
            Self::InPart(words) => write!(f, "in part: {words}"),
            Self::Refuses(words) => write!(f, "refuses: {words}"),
        }
    }
}

impl Asked {
    /// All, in the order of the columns.
    pub const ALL: [Self; 5] = [Self::Check, Self::Drops, Self::Table, Self::Advise, Self::Record];

    /// The command.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Drops => "drops",
            Self::Table => "table",
            Self::Advise => "advise",
            Self::Record => "record",
        }
    }

    fn line(self) -> &'static [&'static str] {
        match self {
            Self::Check => &["ctwatch", "check", "--format", "json"],
            Self::Drops => &["ctwatch", "drops", "--format", "json", "--duration", "2s"],
            Self::Table => &["ctwatch", "table", "--by", "netns", "--format", "json"],
            Self::Advise => &["ctwatch", "advise", "--window", "3s", "--format", "json"],
            Self::Record => &[
                "sh",
                "-c",
                "d=$(mktemp -d) && ctwatch record -o $d/a.ctw --duration 2s > /dev/null; code=$?; \
                 if [ $code = 0 ]; then ctwatch export $d/a.ctw --to ndjson --table runs; fi; rm -r $d; exit $code",
            ],
        }
    }

    /// Runs it there, and says what came of it.
    ///
    /// # Errors
    /// It ended in another way than an exit code of ctwatch's, or said something that it never says.
    pub fn in_environment(self, environment: &Environment) -> Result<Cell> {
        let output = environment.run(self.line())?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => self
                .worked(environment, &output)
                .with_context(|| format!("{}: {}: {stderr}", environment.name, self.name())),
            // `check` says it on stdout.
            Some(3) if self == Self::Check => {
                Ok(Cell::Refuses(format!("exit code 3; {}", wrong_items(&json(&output)?))))
            }
            Some(2 | 3) => Ok(Cell::Refuses(quoted(stderr.trim().trim_start_matches("error: ")))),
            code => bail!("{}: {}: {code:?}: {stderr}", environment.name, self.name()),
        }
    }

    fn worked(self, environment: &Environment, output: &Output) -> Result<Cell> {
        let value = json(output)?;
        let missing: Option<String> = match self {
            Self::Check => {
                let backend = value["backend"].as_str().context("exit code 0 without a backend")?;
                let wrong = wrong_items(&value);
                (backend != "kprobe" || wrong != NOTHING).then(|| format!("{backend}; {wrong}"))
            }
            Self::Drops | Self::Record => {
                let backend = value["backend"].as_str().context("no backend")?;
                let reason = value["backend_reason"].as_str().unwrap_or("no reason");
                (backend != "kprobe").then(|| format!("{backend}, {}", quoted(reason)))
            }
            Self::Table => of_tables(&value),
            Self::Advise => {
                let notes = value["notes"].as_array().context("no notes")?;
                let note =
                    notes.iter().filter_map(Value::as_str).find(|note| note.contains("can't be counted"));
                (value["measured_by"] != "kprobe").then(|| quoted(note.unwrap_or("no note")))
            }
        };
        let elsewhere = environment.own_netns.then(|| match self {
            Self::Check => None,
            Self::Drops | Self::Record if missing.is_none() => {
                Some("counts for all netns; of those that it can't enter, the host's too, the judge and the table are \"not readable\"")
            }
            _ => Some("of its own netns alone"),
        });
        let words: Vec<String> = missing.into_iter().chain(elsewhere.flatten().map(str::to_owned)).collect();
        Ok(if words.is_empty() { Cell::Works } else { Cell::InPart(words.join("; ")) })
    }
}

/// What of the tables that there are isn't listed.
fn of_tables(report: &Value) -> Option<String> {
    if report["own_netns_only"] == true {
        return Some("only this netns".to_owned());
    }
    let skipped = report["skipped"].as_array()?.first()?;
    Some(format!("not all netns: {}", quoted(skipped["reason"].as_str().unwrap_or("no reason"))))
}

/// The items of `check` that are not as they should be.
fn wrong_items(check: &Value) -> String {
    let items = check["items"].as_array().into_iter().flatten();
    let wrong: Vec<String> = items
        .filter(|item| item["ok"] == false)
        .filter_map(|item| Some(format!("`{}`", item["name"].as_str()?)))
        .collect();
    if wrong.is_empty() { NOTHING.to_owned() } else { format!("no {}", wrong.join(", ")) }
}

/// The first record that was written.
fn json(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .next()
        .with_context(|| format!("nothing was written: {}", String::from_utf8_lossy(&output.stderr)))?;
    serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))
}

/// Its words up to the end of the first clause, as a cell of a table takes them.
fn quoted(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let clause = line.split_once("; ").map_or(line, |(first, _)| first);
    let words: String = clause.chars().take(LONGEST).collect();
    let more = if words.len() < clause.len() { "…" } else { "" };
    format!("\"{}{more}\"", words.replace('|', "\\|").replace('<', "&lt;"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_holds_the_first_clause_and_no_markup() {
        assert_eq!(quoted("missing CAP_BPF; run as root"), "\"missing CAP_BPF\"");
        assert_eq!(quoted("a | b"), "\"a \\| b\"");
        assert!(quoted(&"é".repeat(500)).ends_with("…\""));
    }

    #[test]
    fn items_that_do_not_matter_are_not_wrong() {
        let check = serde_json::json!({ "items": [
            { "name": "bpf", "ok": false }, { "name": "limit", "ok": null }, { "name": "btf", "ok": true }
        ]});
        assert_eq!(wrong_items(&check), "no `bpf`");
    }
}
