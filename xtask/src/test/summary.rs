//! The end of a run: what became of each stage, what took longest, which scenarios ran where, and what failed.
//! CI often keeps no more than this.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Line;
use super::count::Count;
use crate::vm::Series;

/// So many of the slowest are named.
const SLOWEST: usize = 10;

/// Prints all of it; true when nothing failed.
pub fn summarize(lines: &[Line], took: Duration) -> bool {
    println!(
        "\n{:<16} {:<7} {:>7} {:>7} {:>8} {:>8}",
        "stage", "result", "passed", "failed", "skipped", "seconds"
    );
    for Line { stage, count, took } in lines {
        let result = match count {
            Count { failed: 1.., .. } => "FAILED",
            Count { passed: 0, skipped: 0, .. } => "-",
            Count { passed: 0, .. } => "skipped",
            _ => "ok",
        };
        let row = format!(
            "{:<16} {result:<7} {:>7} {:>7} {:>8} {:>8.1}  {}",
            stage.name(),
            count.passed,
            count.failed,
            count.skipped,
            took.as_secs_f64(),
            count.note
        );
        println!("{}", row.trim_end());
    }
    for line in slowest(lines).into_iter().chain(ran_where(lines)) {
        println!("{line}");
    }
    for Line { stage, count, .. } in lines {
        for failure in &count.failures {
            println!("FAILED in {}: {failure}", stage.name());
        }
    }
    let passed: u64 = lines.iter().map(|line| line.count.passed).sum();
    let failed: u64 = lines.iter().map(|line| line.count.failed).sum();
    let minutes = took.as_secs_f64() / 60.0;
    println!("\n{passed} passed, {failed} failed in {minutes:.1} minutes");
    failed == 0
}

/// The scenarios that took longest, with their guests.
fn slowest(lines: &[Line]) -> Vec<String> {
    let mut all: Vec<_> = lines
        .iter()
        .flat_map(|line| line.count.ran.iter().map(|ran| (ran.seconds, line.stage.name(), &ran.name)))
        .collect();
    if all.len() <= 1 {
        return Vec::new();
    }
    all.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    let head = format!("\n{:>8} {:<16} the slowest scenarios", "seconds", "stage");
    let rows = all
        .into_iter()
        .take(SLOWEST)
        .map(|(seconds, stage, name)| format!("{seconds:>8.1} {stage:<16} {name}"));
    std::iter::once(head).chain(rows).collect()
}

/// So many of them, in words.
pub fn scenarios(number: usize) -> String {
    format!("{number} {}", if number == 1 { "scenario" } else { "scenarios" })
}

/// Which scenarios ran on which kernels, when there was more than one.
fn ran_where(lines: &[Line]) -> Vec<String> {
    let mut guests: Vec<Series> = Vec::new();
    let mut kernels: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for line in lines.iter().filter(|line| !line.count.ran.is_empty()) {
        let Some(series) = line.stage.series() else { continue };
        // A kernel may have two guests.
        let index = guests.iter().position(|one| *one == series).unwrap_or(guests.len());
        if index == guests.len() {
            guests.push(series);
        }
        for ran in &line.count.ran {
            kernels.entry(&ran.name).or_default().insert(index);
        }
    }
    if guests.len() < 2 {
        return Vec::new();
    }
    let mut groups: BTreeMap<&BTreeSet<usize>, Vec<&str>> = BTreeMap::new();
    for (name, kernels) in &kernels {
        groups.entry(kernels).or_default().push(name);
    }
    let mut rows = vec![String::new()];
    for (indices, names) in groups {
        let on: Vec<String> = indices.iter().map(|index| guests[*index].to_string()).collect();
        rows.push(if on.len() == guests.len() {
            format!("{} ran on each of {}", scenarios(names.len()), on.join(", "))
        } else {
            format!("{} ran on {} only: {}", names.len(), on.join(", "), names.join(", "))
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::Stage;
    use super::super::count::Ran;
    use super::*;

    fn line(stage: Stage, ran: &[(&str, f64)]) -> Line {
        let ran = ran.iter().map(|(name, seconds)| Ran { name: (*name).to_owned(), seconds: *seconds });
        let count = Count { ran: ran.collect(), ..Count::default() };
        Line { stage, count, took: Duration::ZERO }
    }

    #[test]
    fn the_end_names_the_slowest_and_who_ran_where() {
        let lines = [
            line(Stage::Guest(Series::V6_1), &[("a", 3.0), ("b", 20.5)]),
            line(Stage::Guest(Series::V7), &[("a", 4.0)]),
            line(Stage::Waiting(Series::V7), &[("c", 30.0)]),
            Line { stage: Stage::Fmt, count: Count::one(true), took: Duration::ZERO },
        ];
        let slowest = slowest(&lines);
        assert_eq!(
            slowest[1..],
            [
                "    30.0 vm-7-waiting     c",
                "    20.5 vm-6.1           b",
                "     4.0 vm-7             a",
                "     3.0 vm-6.1           a"
            ]
        );
        let ran = ["", "1 ran on 6.1 only: b", "1 scenario ran on each of 6.1, 7", "1 ran on 7 only: c"];
        assert_eq!(ran_where(&lines), ran);
    }
}
