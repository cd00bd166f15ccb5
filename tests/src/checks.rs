//! Collects every mismatch of a scenario, so that one failure report holds all the numbers.
//! It may not decide what is right: scenarios say what they expect, this only compares.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Write};

use anyhow::{Result, bail};

/// Of how many differing keys the numbers are shown.
const SHOWN_KEYS: usize = 10;

/// Comparisons made so far, and the figures worth showing when all hold.
#[derive(Default)]
pub struct Checks {
    failures: Vec<String>,
    figures: String,
}

impl Checks {
    /// No comparison made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// `got`, what ctwatch says, must equal `want`, what was counted independently.
    pub fn equal<T: PartialEq + Debug>(&mut self, what: &str, got: T, want: T) {
        if got != want {
            self.failures.push(format!("{what}: got {got:?}, counted {want:?}"));
        }
    }

    /// Two maps must be the same; only the keys that differ are reported.
    pub fn equal_maps<K: Ord + Debug>(
        &mut self,
        what: &str,
        got: &BTreeMap<K, u64>,
        want: &BTreeMap<K, u64>,
    ) {
        let mut keys: Vec<_> = got.keys().chain(want.keys()).collect();
        keys.sort();
        keys.dedup();
        let differing: Vec<_> = keys
            .into_iter()
            .filter_map(|key| {
                let (g, w) = (got.get(key).copied().unwrap_or(0), want.get(key).copied().unwrap_or(0));
                (g != w).then(|| format!("{key:?}: got {g}, counted {w}"))
            })
            .collect();
        if !differing.is_empty() {
            let shown = differing.iter().take(SHOWN_KEYS).map(String::as_str).collect::<Vec<_>>().join("; ");
            let more = differing.len().saturating_sub(SHOWN_KEYS);
            let more = if more > 0 { format!("; and {more} more keys") } else { String::new() };
            self.failures.push(format!("{what}: {shown}{more}"));
        }
    }

    /// A condition that must hold, with the numbers that show why it did not.
    pub fn that(&mut self, holds: bool, why_not: impl Into<String>) {
        if !holds {
            self.failures.push(why_not.into());
        }
    }

    /// A figure shown in the scenario's line.
    pub fn figure(&mut self, name: &str, value: impl Display) {
        let gap = if self.figures.is_empty() { "" } else { " " };
        let _ = write!(self.figures, "{gap}{name}={value}");
    }

    /// The figures if everything held, else all mismatches in one error.
    pub fn finish(self) -> Result<String> {
        if self.failures.is_empty() {
            return Ok(self.figures);
        }
        bail!("{} [{}]", self.failures.join(" | "), self.figures);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mismatches_are_reported_with_the_figures() {
        let mut checks = Checks::new();
        checks.figure("sent", 7);
        checks.equal("drop", 1, 2);
        checks.equal_maps("ports", &BTreeMap::from([(53, 1), (80, 2)]), &BTreeMap::from([(53, 1), (443, 3)]));
        checks.that(false, "rows were empty");
        let text = checks.finish().unwrap_err().to_string();
        assert_eq!(
            text,
            "drop: got 1, counted 2 | ports: 80: got 2, counted 0; 443: got 0, counted 3 | rows were empty [sent=7]"
        );
    }
}
