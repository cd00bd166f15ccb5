//! What a run on one kernel showed: made from what the guest printed, kept in the cache so that a long run can go on.
//! What wasn't seen stays empty: an empty answer may not look like a good one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::offers::Offer;
use crate::test::Count;

/// What became of one kernel.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// The day it ran.
    pub day: String,
    /// The scenarios that were asked for.
    pub asked: Vec<String>,
    /// As `uname -r` printed it.
    pub release: Option<String>,
    /// The backend that `ctwatch drops` chose.
    pub backend: Option<String>,
    /// The hooks that see a full table.
    pub full_seen_by: Option<String>,
    /// What `ctwatch check` and the start record say is missing. None when they said nothing at all.
    pub missing: Option<Vec<String>>,
    /// Scenarios that held.
    pub passed: u64,
    /// Each failed scenario and why.
    pub failed: Vec<String>,
    /// Each skipped scenario and why.
    pub skipped: Vec<String>,
    /// How far the kernel's `drop` moved and what ctwatch counted, in the scenarios that say both.
    pub drops: (u64, u64),
    /// Why it ended without a result, or before its time.
    pub trouble: Option<String>,
    /// The kernel never got to run: it is tried again next time.
    pub never_ran: bool,
    /// The name and version of the older kernel that ran, because newer ones couldn't be fetched.
    #[serde(default)]
    pub instead: Option<(String, String)>,
}

impl Outcome {
    /// A kernel that didn't get as far as running anything.
    pub fn never_ran(day: &str, why: String) -> Outcome {
        Outcome { day: day.to_owned(), trouble: Some(why), never_ran: true, ..Outcome::default() }
    }

    /// Reads what the guest printed: `check RECORD`, `start RECORD`, then the lines of the scenario runner.
    pub fn read(said: &str, day: &str, asked: &[&str]) -> Outcome {
        let mut outcome = Outcome {
            day: day.to_owned(),
            asked: asked.iter().map(|name| (*name).to_owned()).collect(),
            ..Outcome::default()
        };
        let mut count = Count::default();
        let record = |text: &str| serde_json::from_str::<Value>(text).ok();
        for line in said.lines() {
            if let Some(check) = line.strip_prefix("check ").and_then(record) {
                outcome.add_check(&check);
            } else if let Some(start) = line.strip_prefix("start ").and_then(record) {
                outcome.add_start(&start);
            } else {
                count.add_scenario(line);
                if let Some(why) = line.strip_prefix("skipped ") {
                    outcome.skipped.push(why.to_owned());
                }
                if let (Some(kernel), Some(counted)) = (figure(line, "Δdrop"), figure(line, "counted")) {
                    outcome.drops.0 += kernel;
                    outcome.drops.1 += counted;
                }
            }
        }
        (outcome.passed, outcome.failed) = (count.passed, count.failures);
        outcome
    }

    fn add_check(&mut self, check: &Value) {
        self.release = text(&check["kernel_release"]);
        let items = check["items"].as_array().into_iter().flatten();
        let missing = items.filter(|item| item["ok"] == Value::Bool(false));
        let missing =
            missing.filter_map(|item| Some(format!("{}: {}", text(&item["name"])?, text(&item["found"])?)));
        self.missing.get_or_insert_default().extend(missing);
    }

    fn add_start(&mut self, start: &Value) {
        self.backend = text(&start["backend"]);
        let hooks: Vec<&Value> = start["hooks"].as_array().into_iter().flatten().collect();
        let (missing, there): (Vec<&Value>, Vec<&Value>) =
            hooks.into_iter().partition(|hook| hook["missing"].is_string());
        let sees_full = |hook: &&&Value| {
            hook["function"]
                .as_str()
                .is_some_and(|name| name == "kfree_skb" || name.starts_with("init_conntrack"))
        };
        let mut seen: Vec<(String, usize)> = Vec::new();
        for hook in there.iter().filter(sees_full) {
            let place = [&hook["function"], &hook["kind"]].map(|part| part.as_str().unwrap_or("?")).join(" ");
            match seen.iter_mut().find(|(known, _)| *known == place) {
                Some((_, times)) => *times += 1,
                None => seen.push((place, 1)),
            }
        }
        let seen: Vec<String> = seen
            .into_iter()
            .map(|(place, times)| if times == 1 { place } else { format!("{place} ×{times}") })
            .collect();
        self.full_seen_by = (!seen.is_empty()).then(|| seen.join(", "));
        self.missing.get_or_insert_default().extend(missing.into_iter().filter_map(|hook| {
            Some(format!(
                "{}: {}",
                text(&hook["function"])?,
                text(&hook["costs"]).or_else(|| text(&hook["missing"]))?
            ))
        }));
    }

    /// How many scenarios came to an end.
    pub fn ran(&self) -> usize {
        self.passed as usize + self.failed.len() + self.skipped.len()
    }

    /// All that was asked for ran, and nothing failed.
    pub fn held(&self) -> bool {
        self.trouble.is_none() && self.failed.is_empty() && self.passed > 0
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// The number in ` NAME=NUMBER` of a scenario's line.
fn figure(line: &str, name: &str) -> Option<u64> {
    line.split([' ', '[', ']']).find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}

/// The results in the cache.
pub struct Results {
    dir: PathBuf,
}

impl Results {
    /// Opens the folder.
    pub fn open() -> Result<Results> {
        let dir = super::folder()?.join("results");
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Results { dir })
    }

    /// The last result for exactly this version of the kernel.
    pub fn of(&self, offer: &Offer) -> Option<Outcome> {
        serde_json::from_str(&fs::read_to_string(self.path(offer)).ok()?).ok()
    }

    /// Keeps a result in the place of an older one.
    pub fn keep(&self, offer: &Offer, outcome: &Outcome) -> Result<()> {
        let path = self.path(offer);
        let write = |path: &Path| -> Result<()> {
            let new = path.with_extension("new");
            fs::write(&new, serde_json::to_string_pretty(outcome)?)?;
            Ok(fs::rename(&new, path)?)
        };
        write(&path).with_context(|| format!("keeping the result in {}", path.display()))
    }

    fn path(&self, offer: &Offer) -> PathBuf {
        self.dir.join(format!("{}_{}.json", offer.name, offer.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = r#"check {"type":"check","kernel_release":"6.1.0-rt","items":[{"name":"kernel","ok":true,"found":"Linux"},{"name":"lockdown","ok":null,"found":"unknown"},{"name":"kprobes","ok":false,"found":"none"}]}
start {"type":"start","backend":"kprobe","hooks":[{"function":"kfree_skb","kind":"raw_tracepoint"},{"function":"kfree_skb","kind":"perf"},{"function":"kfree_skb","kind":"perf"},{"function":"nf_ct_delete","kind":"kprobe"},{"function":"gc_worker","kind":"kprobe","missing":"no such symbol","costs":"gc's victims"}]}
kernel 6.1.0-rt on 2 CPUs, 4 of 60 scenarios
ok udp (5.5 s) refused=8704 Δdrop=8704 counted=8704 Δearly_drop=56
FAILED storm (7.0 s): counted.table_full against Δdrop: got 9, counted 10 [refused=10 Δdrop=10 counted=9]
ok netns (2.0 s) refused=5 Δdrop=5
skipped chain: 5.10 has none
1 of 4 scenarios failed on 6.1.0-rt
"#;

    #[test]
    fn a_guests_words_become_a_result() {
        let outcome = Outcome::read(SAID, "2026-01-02", &["udp", "storm"]);
        assert_eq!(outcome.release.as_deref(), Some("6.1.0-rt"));
        assert_eq!(outcome.backend.as_deref(), Some("kprobe"));
        assert_eq!(outcome.full_seen_by.as_deref(), Some("kfree_skb raw_tracepoint, kfree_skb perf ×2"));
        assert_eq!(
            outcome.missing,
            Some(vec!["kprobes: none".to_owned(), "gc_worker: gc's victims".to_owned()])
        );
        assert_eq!((outcome.passed, outcome.failed.len(), outcome.skipped.len()), (2, 1, 1));
        assert!(outcome.failed[0].starts_with("storm (7.0 s): "));
        assert_eq!(outcome.drops, (8714, 8713));
        assert!(!outcome.held());
    }

    #[test]
    fn silence_is_no_good_answer() {
        let outcome = Outcome::read("", "2026-01-02", &["udp"]);
        assert_eq!((outcome.missing.as_ref(), outcome.backend.as_ref()), (None, None));
        assert!(!outcome.held());
    }

    #[test]
    fn a_result_is_read_as_it_was_kept() {
        let outcome = Outcome::read(SAID, "2026-01-02", &["udp", "storm"]);
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }
}
