//! The end of a run: what became of each stage, what took longest, which scenarios ran where, and what failed.
//! CI often keeps no more than this.

use std::collections::BTreeMap;
use std::time::Duration;

use super::count::Count;
use super::{Line, Stage};

/// So many of the slowest are named.
const SLOWEST: usize = 10;

/// Prints all of it; true when nothing failed.
pub fn summarize(lines: &[Line], took: Duration) -> bool {
    println!(
        "\n{:<10} {:<7} {:>7} {:>7} {:>8} {:>8}",
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
            "{:<10} {result:<7} {:>7} {:>7} {:>8} {:>8.1}  {}",
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
    let head = format!("\n{:>8} {:<10} the slowest scenarios", "seconds", "stage");
    let rows = all
        .into_iter()
        .take(SLOWEST)
        .map(|(seconds, stage, name)| format!("{seconds:>8.1} {stage:<10} {name}"));
    std::iter::once(head).chain(rows).collect()
}

/// Which scenarios ran on which kernels, when there was more than one.
fn ran_where(lines: &[Line]) -> Vec<String> {
    let guests = lines.iter().filter(|line| matches!(line.stage, Stage::Guest(_)));
    let guests: Vec<&Line> = guests.filter(|line| !line.count.ran.is_empty()).collect();
    if guests.len() < 2 {
        return Vec::new();
    }
    let mut kernels: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, line) in guests.iter().enumerate() {
        for ran in &line.count.ran {
            kernels.entry(&ran.name).or_default().push(index);
        }
    }
    let mut groups: BTreeMap<&Vec<usize>, Vec<&str>> = BTreeMap::new();
    for (name, kernels) in &kernels {
        groups.entry(kernels).or_default().push(name);
    }
    let mut rows = vec![String::new()];
    for (indices, names) in groups {
        let on: Vec<String> = indices.iter().map(|index| guests[*index].stage.name()).collect();
        rows.push(if on.len() == guests.len() {
            format!("{} scenarios ran on each of {}", names.len(), on.join(", "))
        } else {
            format!("{} ran on {} only: {}", names.len(), on.join(", "), names.join(", "))
        });
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::count::Ran;
    use super::*;
    use crate::vm::Series;

    fn line(series: Series, ran: &[(&str, f64)]) -> Line {
        let ran = ran.iter().map(|(name, seconds)| Ran { name: (*name).to_owned(), seconds: *seconds });
        let count = Count { ran: ran.collect(), ..Count::default() };
        Line { stage: Stage::Guest(series), count, took: Duration::ZERO }
    }

    #[test]
    fn the_end_names_the_slowest_and_who_ran_where() {
        let lines = [
            line(Series::V6_1, &[("a", 3.0), ("b", 20.5)]),
            line(Series::V7, &[("a", 4.0)]),
            Line { stage: Stage::Fmt, count: Count::one(true), took: Duration::ZERO },
        ];
        let slowest = slowest(&lines);
        assert_eq!(slowest[1..], ["    20.5 vm-6.1     b", "     4.0 vm-7       a", "     3.0 vm-6.1     a"]);
        let ran = ["", "1 ran on vm-6.1 only: b", "1 scenarios ran on each of vm-6.1, vm-7"];
        assert_eq!(ran_where(&lines), ran);
    }
}
