//! What came of all rule sets: how much is advised, how much is refused though harmless, and for which reasons.

use std::collections::BTreeMap;
use std::fmt;

use super::trial::{Answer, Harm, Verdict, is_unseen};

/// So many reasons are printed.
const REASONS: usize = 25;

/// Sums.
#[derive(Default)]
pub struct Tally {
    sets: u64,
    unloadable: u64,
    advised: u64,
    /// Advised where no flow of the piece's own passes: it shows little.
    advised_idle: u64,
    nothing: u64,
    refused: u64,
    refused_harmless: u64,
    /// Harmless to these flows, but for a limit, a mark or a helper, which they can't show.
    refused_unseen: u64,
    counterexamples: BTreeMap<&'static str, u64>,
    bad: u64,
    /// Flows that passed without any exemption, and all.
    passing: [usize; 2],
    /// By an objection's kind, and by its words: harmful, harmless.
    kinds: BTreeMap<String, [u64; 2]>,
    reasons: BTreeMap<String, [u64; 2]>,
}

impl Tally {
    /// Adds a set's answers, and how many sets were thrown away before it.
    pub fn add(&mut self, unloadable: u32, answers: &[Answer]) {
        self.sets += 1;
        self.unloadable += u64::from(unloadable);
        for answer in answers {
            self.passing[0] += answer.passing;
            self.passing[1] += answer.flows;
            match &answer.verdict {
                Verdict::Advised => {
                    self.advised += 1;
                    self.advised_idle += u64::from(answer.own_flows == 0);
                }
                Verdict::Nothing => self.nothing += 1,
                Verdict::Refused(objections) => {
                    self.refused += 1;
                    let harmless = answer.is_harmless();
                    let unseen = objections.iter().any(|(kind, text)| is_unseen(*kind, text));
                    self.refused_harmless += u64::from(answer.is_refused_without_need());
                    self.refused_unseen += u64::from(harmless && unseen);
                    let mut kinds: Vec<_> = objections.iter().map(|(kind, _)| format!("{kind:?}")).collect();
                    let mut texts: Vec<_> =
                        objections.iter().map(|(_, text)| without_numbers(text)).collect();
                    for list in [&mut kinds, &mut texts] {
                        list.sort_unstable();
                        list.dedup();
                    }
                    for kind in kinds {
                        self.kinds.entry(kind).or_default()[usize::from(harmless)] += 1;
                    }
                    for text in texts {
                        self.reasons.entry(text).or_default()[usize::from(harmless)] += 1;
                    }
                }
            }
            if answer.is_counterexample() {
                self.bad += 1;
                let mut names: Vec<_> = answer.harms.iter().map(name).collect();
                names.dedup();
                for name in names {
                    *self.counterexamples.entry(name).or_default() += 1;
                }
            }
        }
    }

    /// Pieces that were advised and did harm, or were wrongly said to be untracked.
    pub fn counterexamples(&self) -> u64 {
        self.bad
    }
}

fn name(harm: &Harm) -> &'static str {
    match harm {
        Harm::Broken { .. } => "broken",
        Harm::Opened { .. } => "opened",
        Harm::Tracked { .. } => "tracked",
        Harm::Failed(_) => "failed",
        Harm::Undo(_) => "undo",
    }
}

/// The words of a reason without its rule and its numbers.
fn without_numbers(text: &str) -> String {
    let words = text.split(" [").next().unwrap_or(text);
    words.split(|c: char| c.is_ascii_digit()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("N")
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rule sets ({} more were refused by the tools): {} pieces advised ({} without a flow of their own), {} untracked \
             already, {} refused",
            self.sets, self.unloadable, self.advised, self.advised_idle, self.nothing, self.refused
        )?;
        writeln!(
            f,
            "{:.0} % of the flows passed before",
            100.0 * self.passing[0] as f64 / self.passing[1].max(1) as f64
        )?;
        let harmless = self.refused_harmless + self.advised.saturating_sub(self.bad + self.advised_idle);
        if harmless > 0 {
            writeln!(
                f,
                "refused though harmless to these flows: {} of {harmless} harmless ones that have flows, {:.1} %; {} more for a limit, a \
                 mark or a helper, which flows don't show",
                self.refused_harmless,
                100.0 * self.refused_harmless as f64 / harmless as f64,
                self.refused_unseen
            )?;
        }
        for (title, list) in [("kind", &self.kinds), ("reason", &self.reasons)] {
            let mut rows: Vec<_> = list.iter().collect();
            rows.sort_by_key(|(_, [_, harmless])| std::cmp::Reverse(*harmless));
            writeln!(f, "{:>8} {:>8}  {title}", "harmful", "harmless")?;
            for (words, [harmful, harmless]) in rows.iter().take(REASONS) {
                writeln!(f, "{harmful:>8} {harmless:>8}  {words}")?;
            }
        }
        for (name, count) in &self.counterexamples {
            writeln!(f, "counterexamples {name}: {count}")?;
        }
        Ok(())
    }
}
