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
const PATIENCE: Duration = Duration::from_secs(5);

/// What was doubted, by what they call themselves.
#[derive(Debug)]
pub(super) struct Doubts {
    until: Instant,
    found: BTreeMap<&'static str, (usize, Vec<String>)>,
    /// Some of those that call themselves so were not looked at.
    pub(super) unseen: bool,
}

impl Doubts {
    pub(super) fn new() -> Self {
        Self { until: Instant::now() + PATIENCE, found: BTreeMap::new(), unseen: false }
    }

    /// No more are asked.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// What a process says, if it may be what it claims to be: that comes first. Whoever takes too long has said nothing, and
    /// what isn't believed is worth a note if it `matters`.
    pub(super) fn ask<T: Send + 'static>(
        &mut self,
        host: &Host,
        pid: u32,
        claim: &'static Claim,
        matters: impl FnOnce(&Process) -> bool + Send + 'static,
        look: impl FnOnce(&Process) -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let calls_itself = claim.name;
        if self.is_over() {
            self.unseen = true;
            self.add(calls_itself, pid, "too many call themselves so for all to be looked at");
            return None;
        }
        let judge = host.judge;
        let said = Process::look(&host.roots, pid, move |process| {
            let before = process.image();
            match judge(process, claim) {
                Ok(()) => {
                    let said = look(process);
                    let after = process.image();
                    let is_same = after == before;
                    // The process that was judged is the one that answered, or it is gone.
                    if is_same { said.map(Ok) } else { after.map(|_| Err(Doubt::Changed)) }
                }
                Err(doubt) => matters(process).then_some(Err(doubt)),
            }
        });
        match said {
            Ok(Some(Ok(said))) => return Some(said),
            Ok(Some(Err(doubt))) => self.doubt(calls_itself, pid, &doubt),
            // It has ended.
            Ok(None) => {}
            Err(Unanswered::TooLong) => {
                self.unseen = true;
                self.add(calls_itself, pid, "its files don't answer");
            }
            Err(Unanswered::TooMany) => {
                self.unseen = true;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::roots::Roots;

    const PROXY: Claim = Claim::of_root("kube-proxy", &["kube-proxy"]);

    fn name(pid: u32) -> String {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
    }

    #[test]
    fn who_becomes_another_program_once_it_is_judged_has_said_nothing() {
        use std::io::BufRead as _;
        use std::process::{Command, Stdio};
        // As sudo does: it starts as root, then runs another user's program.
        let script = "trap 'exec sleep 60' USR1; echo here; while :; do sleep 0.02; done";
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let trusting = Host { roots: Roots::default(), judge: |_, _| Ok(()), ..Host::default() };
        let deceived = Host {
            judge: |process, _| {
                let pid = nix::unistd::Pid::from_raw(process.pid.cast_signed());
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
                while name(process.pid) != "sleep\n" {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Ok(())
            },
            ..trusting.clone()
        };
        let mut doubts = Doubts::new();
        let ask = |doubts: &mut Doubts, host: &Host| {
            doubts.ask(host, child.id(), &PROXY, |_| true, |process| Some(process.arguments()))
        };
        assert!(ask(&mut doubts, &trusting).is_some_and(|said| said[0] == "sh"));
        let said = ask(&mut doubts, &deceived);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(said, None);
        let mut notes = Notes::default();
        doubts.tell(&mut notes);
        assert!(notes.0.iter().any(|note| note.contains("another program")), "{:?}", notes.0);
    }
}
