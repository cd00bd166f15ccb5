//! The table in docs/kernels.md, between two markers: a row for each kernel, below it what failed and what wasn't there.
//! A kernel that didn't run has a row, too.

use std::fmt::Write;

use super::offers::Offer;
use super::result::Outcome;
use super::suites::Read;
use crate::markers;

/// The command that makes it.
pub const NAME: &str = "kernels";
/// So much of a failure's reason is told.
const LONGEST_REASON: usize = 400;

const HEAD: &str = "| kernel | flavour | series | from | backend | table full seen by | missing | passed | failed | skipped | \
                    Δdrop | counted | day |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";

/// The rows of a table that was written before, each with what it is about.
fn known_rows(document: &str) -> impl Iterator<Item = &str> {
    markers::between(document, NAME).unwrap_or_default().lines().filter(|line| line.starts_with("| "))
}

/// The table. Where this machine has no result, a row that `document` has for the same kernel stays.
pub fn render(offers: &[(Offer, Option<Outcome>)], suites: &[Read], document: &str) -> String {
    let mut text = format!("\n{HEAD}");
    let mut notes: Vec<String> = Vec::new();
    for (offer, outcome) in offers {
        match outcome {
            _ if !offer.is_complete => {
                text += &row_of(offer, vec!["its modules are gone from the mirror".to_owned()])
            }
            Some(outcome) => {
                let ran = what_ran(offer, outcome);
                if ran != offer {
                    notes.push(format!(
                        "- {}: taken instead of {} ({}), which is in the lists, but not to be had",
                        ran.name, offer.name, offer.version
                    ));
                }
                text += &row(ran, outcome);
                notes.extend(notes_on(ran, outcome));
            }
            None => {
                let any = || std::iter::once(offer).chain(&offer.instead);
                let known = known_rows(document)
                    .find_map(|row| Some((row, any().find(|offer| row.starts_with(&first_cell(offer)))?)));
                if let Some((row, offer)) = known {
                    let _ = writeln!(text, "{row}");
                    let about = format!("- {}: ", offer.name);
                    notes.extend(document.lines().filter(|line| line.starts_with(&about)).map(str::to_owned));
                } else {
                    text += &row_of(offer, vec!["not run yet".to_owned()]);
                }
            }
        }
    }
    if !notes.is_empty() {
        let _ = write!(text, "\n{}\n", notes.join("\n"));
    }
    text += "\nThe package lists were made on: ";
    let there: Vec<String> = suites
        .iter()
        .filter_map(|read| {
            let date = read.lists.as_ref().ok()?;
            let none = if read.kernels == 0 { ", no kernels" } else { "" };
            Some(format!("{} {date}{none}", read.suite))
        })
        .collect();
    let _ = writeln!(text, "{}.", there.join("; "));
    for read in suites {
        if let Err(why) = &read.lists {
            let _ = writeln!(text, "\n{}: {why}.", read.suite);
        }
    }
    text.push('\n');
    text
}

/// The kernel that a result is of.
fn what_ran<'a>(offer: &'a Offer, outcome: &Outcome) -> &'a Offer {
    let Some((name, version)) = &outcome.instead else { return offer };
    offer.instead.iter().find(|older| older.name == *name && older.version == *version).unwrap_or(offer)
}

fn first_cell(offer: &Offer) -> String {
    format!("| {} ({}) |", offer.name, offer.version)
}

fn row_of(offer: &Offer, mut cells: Vec<String>) -> String {
    cells.resize(9, String::new());
    let from = if offer.suite == offer.releases[0] {
        offer.releases.join(", ")
    } else {
        format!("{} ({})", offer.releases.join(", "), offer.suite)
    };
    format!("{} {} | {} | {from} | {} |\n", first_cell(offer), offer.flavour, offer.series, cells.join(" | "))
}

fn row(offer: &Offer, outcome: &Outcome) -> String {
    let unknown = || "unknown".to_owned();
    let missing = match &outcome.missing {
        None => unknown(),
        Some(items) if items.is_empty() => "nothing".to_owned(),
        Some(items) => items.iter().map(|item| name_of(item)).collect::<Vec<_>>().join(", "),
    };
    let failed = match (outcome.failed.len(), &outcome.trouble) {
        (0, None) => "0".to_owned(),
        (0, Some(_)) => "**not finished**".to_owned(),
        (count, None) => format!("**{count}**"),
        (count, Some(_)) => format!("**{count}, not finished**"),
    };
    let (kernel, counted) = outcome.drops;
    row_of(
        offer,
        vec![
            outcome.backend.clone().unwrap_or_else(unknown),
            outcome.full_seen_by.clone().unwrap_or_else(unknown),
            missing,
            outcome.passed.to_string(),
            failed,
            outcome.skipped.len().to_string(),
            kernel.to_string(),
            counted.to_string(),
            outcome.day.clone(),
        ],
    )
}

/// What an item is about: what stands before its colon.
fn name_of(item: &str) -> String {
    item.split(':').next().unwrap_or(item).to_owned()
}

/// What the row has no room for.
fn notes_on(offer: &Offer, outcome: &Outcome) -> Vec<String> {
    let missing = outcome.missing.iter().flatten().map(|item| format!("missing {item}"));
    let failed = outcome.failed.iter().map(|why| format!("failed {why}"));
    let skipped = outcome.skipped.iter().map(|why| format!("skipped {why}"));
    let all = outcome.trouble.iter().cloned().chain(failed).chain(skipped).chain(missing);
    all.map(|note| format!("- {}: {}", offer.name, shortened(&note))).collect()
}

/// On one line, and not endless.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::super::offers::Flavour;
    use super::*;

    fn offer(name: &str, releases: &[&str], suite: &str) -> Offer {
        Offer {
            releases: releases.iter().map(|release| (*release).to_owned()).collect(),
            suite: suite.to_owned(),
            name: name.to_owned(),
            version: "6.1.9-1".to_owned(),
            series: "6.1".to_owned(),
            flavour: Flavour::Rt,
            packages: Vec::new(),
            bytes: 0,
            is_complete: true,
            instead: Vec::new(),
        }
    }

    fn held() -> Outcome {
        Outcome {
            day: "2026-01-02".to_owned(),
            backend: Some("kprobe".to_owned()),
            full_seen_by: Some("kfree_skb perf".to_owned()),
            missing: Some(Vec::new()),
            passed: 9,
            drops: (70, 70),
            ..Outcome::default()
        }
    }

    fn suite(name: &str, lists: Result<&str, &str>) -> Read {
        Read { suite: name.to_owned(), lists: lists.map(str::to_owned).map_err(str::to_owned), kernels: 1 }
    }

    #[test]
    fn every_kernel_has_a_row_and_every_failure_a_reason() {
        let failed = Outcome {
            failed: vec!["storm (2.0 s): got 9,\n counted 10".to_owned()],
            missing: Some(vec!["kprobes: none: at all".to_owned()]),
            drops: (10, 9),
            ..held()
        };
        let died = Outcome::never_ran("2026-01-03", "it could not be fetched".to_owned());
        let offers = [
            (offer("a", &["bookworm"], "bookworm-security"), Some(held())),
            (offer("b", &["forky", "sid"], "forky"), Some(failed)),
            (offer("c", &["sid"], "sid"), Some(died)),
            (offer("d", &["sid"], "sid"), None),
            (Offer { is_complete: false, ..offer("e", &["sid"], "sid") }, None),
            (
                Offer { instead: vec![offer("old", &["sid"], "sid")], ..offer("f", &["sid"], "sid") },
                Some(Outcome { instead: Some(("old".to_owned(), "6.1.9-1".to_owned())), ..held() }),
            ),
        ];
        let suites = [suite("bookworm", Ok("2026-01-01")), suite("old", Err("not on this machine's mirror"))];
        let table = render(&offers, &suites, "");
        for line in [
            "| a (6.1.9-1) | rt | 6.1 | bookworm (bookworm-security) | kprobe | kfree_skb perf | nothing | 9 | 0 | 0 | 70 | 70 | 2026-01-02 |",
            "| b (6.1.9-1) | rt | 6.1 | forky, sid | kprobe | kfree_skb perf | kprobes | 9 | **1** | 0 | 10 | 9 | 2026-01-02 |",
            "| c (6.1.9-1) | rt | 6.1 | sid | unknown | unknown | unknown | 0 | **not finished** | 0 | 0 | 0 | 2026-01-03 |",
            "| d (6.1.9-1) | rt | 6.1 | sid | not run yet |  |  |  |  |  |  |  |  |",
            "| e (6.1.9-1) | rt | 6.1 | sid | its modules are gone from the mirror |  |  |  |  |  |  |  |  |",
            "| old (6.1.9-1) | rt | 6.1 | sid | kprobe | kfree_skb perf | nothing | 9 | 0 | 0 | 70 | 70 | 2026-01-02 |",
            "- old: taken instead of f (6.1.9-1), which is in the lists, but not to be had",
            "- b: failed storm (2.0 s): got 9, counted 10",
            "- b: missing kprobes: none: at all",
            "- c: it could not be fetched",
            "The package lists were made on: bookworm 2026-01-01.",
            "old: not on this machine's mirror.",
        ] {
            assert!(table.lines().any(|have| have == line), "no line {line} in\n{table}");
        }
    }

    #[test]
    fn what_another_machine_wrote_stays_until_it_runs_here() {
        let old = "x\n<!-- cargo xtask kernels: begin -->\n| a (6.1.9-1) | rt | old |\n- a: failed x\n| z (1) | gone |\n<!-- cargo xtask kernels: end -->\ny\n";
        let table = render(&[(offer("a", &["sid"], "sid"), None)], &[], old);
        assert!(table.contains("| a (6.1.9-1) | rt | old |") && table.contains("- a: failed x"));
        let new = markers::replace(old, NAME, &table).unwrap();
        assert!(new.starts_with("x\n") && new.ends_with("\ny\n") && !new.contains("gone"));
    }
}
