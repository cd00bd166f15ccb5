//! What is asked of ctwatch in an environment, and what came of it in a cell's words: works, in part, refuses.
//! Words are ctwatch's own, cut where its first clause ends.

use std::collections::BTreeSet;
use std::fmt;
use std::process::Output;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Environment, Namespaces};

/// How long a cell's words may be.
const LONGEST: usize = 200;

const NOTHING: &str = "nothing is wrong";
const OWN: &str = "its own netns, which is not the host's";

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

/// What a command did in an environment.
pub struct Answer {
    /// In a cell's words.
    pub cell: Cell,
    /// Whether it had the table of the other netns, or, of `check`, says that it can be had; `None` if it says nothing of it.
    pub has_other: Option<bool>,
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
                 if [ $code = 0 ]; then for t in runs fills; do ctwatch export $d/a.ctw --to ndjson --table $t; done; fi; rm -r $d; exit $code",
            ],
        }
    }

    /// Runs it there, and says what came of it.
    ///
    /// # Errors
    /// It ended in another way than an exit code of ctwatch's, or said something that it never says.
    pub fn in_environment(self, environment: &Environment, there_are: &Namespaces) -> Result<Answer> {
        let output = environment.run(self.line())?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => {
                let records = json(&output).with_context(|| stderr.clone())?;
                let cell =
                    self.worked(&records, there_are).with_context(|| format!("{}: {stderr}", self.name()))?;
                Ok(Answer { cell, has_other: self.has_other(&records, there_are) })
            }
            // `check` says it on stdout.
            Some(3) if self == Self::Check => {
                let records = json(&output)?;
                let cell = Cell::Refuses(records.first().map_or_else(String::new, wrong_items));
                Ok(Answer { cell, has_other: self.has_other(&records, there_are) })
            }
            Some(2 | 3) => {
                let cell = Cell::Refuses(quoted(stderr.trim().trim_start_matches("error: ")));
                Ok(Answer { cell, has_other: None })
            }
            code => bail!("{}: {}: {code:?}: {stderr}", environment.name, self.name()),
        }
    }

    /// What of all that there is it had, by what it wrote.
    fn worked(self, records: &[Value], there_are: &Namespaces) -> Result<Cell> {
        let first = records.first().context("nothing was written")?;
        let backend = || first["backend"].as_str().context("no backend");
        let words = match self {
            Self::Check => {
                let (backend, wrong) = (backend()?, wrong_items(first));
                let is_all = backend == "kprobe" && wrong == NOTHING;
                vec![(!is_all).then(|| format!("{backend}; {wrong}"))]
            }
            Self::Drops | Self::Record => {
                let (backend, reason) = (backend()?, first["backend_reason"].as_str().unwrap_or("no reason"));
                let other = (backend != "kprobe").then(|| format!("{backend}, {}", quoted(reason)));
                vec![other, there_are.unseen(counted(records))]
            }
            Self::Table => {
                vec![there_are.unseen(first["tables"].as_array().context("no tables")?.iter())]
            }
            Self::Advise => {
                let mut notes =
                    first["notes"].as_array().context("no notes")?.iter().filter_map(Value::as_str);
                let note = notes.find(|note| note.contains("can't be counted"));
                let other = (first["measured_by"] != "kprobe").then(|| quoted(note.unwrap_or("no note")));
                // It is of one netns, and --netns says which.
                let is_host = first["netns"].as_u64() == Some(there_are.host);
                vec![other, (!is_host).then(|| OWN.to_owned())]
            }
        };
        let words: Vec<String> = words.into_iter().flatten().collect();
        Ok(if words.is_empty() { Cell::Works } else { Cell::InPart(words.join("; ")) })
    }

    /// Whether it had the other netns's table, or says that it can be had.
    fn has_other(self, records: &[Value], there_are: &Namespaces) -> Option<bool> {
        let first = records.first()?;
        match self {
            Self::Check => {
                first["items"].as_array()?.iter().find(|item| item["name"] == "other netns")?["ok"].as_bool()
            }
            Self::Drops | Self::Record => Some(seen(counted(records)).contains(&there_are.other)),
            Self::Table => Some(seen(first["tables"].as_array()?.iter()).contains(&there_are.other)),
            // It is of one netns.
            Self::Advise => None,
        }
    }
}

/// What did otherwise with the other netns than `check` says; none if it can't tell.
pub fn against_check(has_other: &[(Asked, Option<bool>)]) -> Option<String> {
    let said = has_other.iter().find(|(asked, _)| *asked == Asked::Check)?.1?;
    let against: Vec<&str> = has_other
        .iter()
        .filter(|(_, did)| did.is_some_and(|did| did != said))
        .map(|(asked, _)| asked.name())
        .collect();
    let verb = if said { "says that tables of other netns can be listed" } else { "says that they can't" };
    (!against.is_empty()).then(|| format!("`check` {verb}, against {}", against.join(", ")))
}

/// The namespaces of these tables.
fn seen<'a>(tables: impl Iterator<Item = &'a Value>) -> BTreeSet<u64> {
    tables.filter_map(|table| table["netns"].as_u64()).collect()
}

/// The tables whose entries were counted: those of each tick of `drops`, or each row of a recording.
fn counted(records: &[Value]) -> impl Iterator<Item = &Value> {
    let has_count = |table: &&Value| table["count"].is_u64() && table["not_readable"] != true;
    records.iter().flat_map(of_record).filter(has_count)
}

/// The tables of a tick; a row of a recording is one.
fn of_record(record: &Value) -> &[Value] {
    record["tables"].as_array().map_or_else(|| std::slice::from_ref(record), Vec::as_slice)
}

impl Namespaces {
    /// Which of those that there are isn't among these.
    fn unseen<'a>(&self, tables: impl Iterator<Item = &'a Value>) -> Option<String> {
        let seen = seen(tables);
        let words = match (seen.contains(&self.host), seen.contains(&self.other)) {
            (true, true) => return None,
            (true, false) => "the host's netns, and no other",
            (false, true) => "not the host's netns",
            (false, false) => OWN,
        };
        Some(words.to_owned())
    }
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

/// The records that were written.
fn json(output: &Output) -> Result<Vec<Value>> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))).collect()
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
    fn a_netns_counts_as_seen_only_where_its_entries_were_counted() {
        let there_are = Namespaces { host: 1, other: 2 };
        let start = serde_json::json!({ "backend": "kprobe" });
        let tick = |count: Option<u64>| {
            serde_json::json!({ "tables": [
                { "netns": 1, "count": 7 }, { "netns": 2, "count": count, "not_readable": count.is_none() }
            ]})
        };
        let worked = |count| Asked::Drops.worked(&[start.clone(), tick(count)], &there_are).unwrap();
        assert_eq!(worked(Some(0)), Cell::Works);
        assert_eq!(worked(None), Cell::InPart("the host's netns, and no other".to_owned()));
    }

    #[test]
    fn what_check_says_of_other_netns_is_held_against_what_drops_and_table_did() {
        let there_are = Namespaces { host: 1, other: 2 };
        let check = |ok: Option<bool>| {
            let records = [serde_json::json!({ "items": [{ "name": "other netns", "ok": ok }] })];
            (Asked::Check, Asked::Check.has_other(&records, &there_are))
        };
        let tables = |inodes: &[u64]| {
            let tables: Vec<Value> =
                inodes.iter().map(|netns| serde_json::json!({ "netns": netns, "count": 7 })).collect();
            [serde_json::json!({ "tables": tables })]
        };
        let did = |asked: Asked, inodes: &[u64]| (asked, asked.has_other(&tables(inodes), &there_are));
        let (drops, table) = (did(Asked::Drops, &[1]), did(Asked::Table, &[1, 2]));
        let says_yes = against_check(&[check(Some(true)), drops, table]).unwrap();
        assert!(says_yes.ends_with("can be listed, against drops"), "{says_yes}");
        let says_no = against_check(&[check(Some(false)), drops, table]).unwrap();
        assert!(says_no.ends_with("can't, against table"), "{says_no}");
        assert_eq!(against_check(&[check(None), drops, table]), None);
        assert_eq!(against_check(&[check(Some(true)), table, (Asked::Drops, None)]), None);
    }

    #[test]
    fn items_that_do_not_matter_are_not_wrong() {
        let check = serde_json::json!({ "items": [
            { "name": "bpf", "ok": false }, { "name": "limit", "ok": null }, { "name": "btf", "ok": true }
        ]});
        assert_eq!(wrong_items(&check), "no `bpf`");
    }
}
