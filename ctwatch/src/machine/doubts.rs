//! Processes that call themselves something that decides advice, and aren't believed: said once each, and no more than a few.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Host, Notes};
use crate::files::patience::Unanswered;
use crate::process::claim::{Claim, Doubt};
use crate::process::handle::Process;

/// Said of each name; of others only how many there are.
const SAID: usize = 3;
/// All processes of telling names together may take so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was doubted, by what they call themselves.
#[derive(Debug)]
pub(super) struct Doubts {
    until: Instant,
    found: BTreeMap<&'static str, (usize, Vec<String>)>,
}

impl Doubts {
    pub(super) fn new() -> Self {
        Self { until: Instant::now() + PATIENCE, found: BTreeMap::new() }
    }

    /// What a process says, if it may be what it claims to be. Whoever takes too long has
    /// said nothing.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        host: &Host,
        pid: u32,
        claim: &'static Claim,
        look: impl FnOnce(&Process) -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let calls_itself = claim.name;
        if Instant::now() >= self.until {
            self.add(calls_itself, pid, "too many call themselves so for all to be looked at");
            return None;
        }
        let judge = host.judge;
        let said = Process::look(&host.roots, pid, move |process| match judge(process, claim) {
            Ok(()) => look(process).map(Ok),
            Err(doubt) => Some(Err(doubt)),
        });
        match said {
            Ok(Some(Ok(said))) => return Some(said),
            Ok(Some(Err(doubt))) => self.doubt(calls_itself, pid, &doubt),
            // It has ended.
            Ok(None) => {}
            Err(Unanswered::TooLong) => self.add(calls_itself, pid, "its files don't answer"),
            Err(Unanswered::TooMany) => {
                self.add(calls_itself, pid, "others' files don't answer, and no more are asked");
            }
        }
        None
    }

    fn doubt(&mut self, calls_itself: &'static str, pid: u32, doubt: &Doubt) {
        self.add(calls_itself, pid, &doubt.to_string());
    }

    fn add(&mut self, calls_itself: &'static str, pid: u32, why: &str) {
        let (more, said) = self.found.entry(calls_itself).or_default();
        if said.len() < SAID {
            said.push(format!(
                "a process calls itself {calls_itself} (pid {pid}) and is not believed, so what it says is left out: {why}"
            ));
        } else {
            *more += 1;
        }
    }

    pub(super) fn tell(self, notes: &mut Notes) {
        for (calls_itself, (more, said)) in self.found {
            said.into_iter().for_each(|note| notes.add(note));
            if more > 0 {
                notes.add(format!(
                    "{more} more processes call themselves {calls_itself} and are not believed"
                ));
            }
        }
    }
}
