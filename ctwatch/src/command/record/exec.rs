//! The command that `--exec` names: with ctwatch's rights, and the trigger's JSON on its stdin.
//! It may fail, hang, print without an end or leave children behind, and triggers may come in a storm: the recording goes on,
//! and what runs beside it is bounded in number, time and output.

mod hook;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::command::live::{Shutdown, StopReason};
use crate::record::rows::EndReason;
use crate::text::counted;

/// How many may run at a time,
const AT_ONCE: usize = 4;
/// and how many incidents wait for their turn. Of those beyond it is said that they had no command.
const WAITING: usize = 16;

/// How long the end of a run waits for commands that still run, where nobody asked for the end,
const PATIENCE: Duration = hook::TIME;
/// and where a signal did.
const PATIENCE_AT_SIGNAL: Duration = Duration::from_secs(3);
/// How long those take to end that are told to.
const KILLING: Duration = Duration::from_secs(3);
/// Until one that couldn't be started is tried again.
const AGAIN: Duration = Duration::from_millis(200);
/// Between two looks at those that run.
const POLL: Duration = Duration::from_millis(20);

/// Commands that run, and those that will.
pub(super) struct Commands {
    words: Option<Vec<String>>,
    sender: Sender<Result<(), String>>,
    ended: Receiver<Result<(), String>>,
    running: usize,
    waiting: VecDeque<String>,
    skipped: u64,
    /// When one that couldn't be started is tried again.
    again_at: Option<Instant>,
    stop: Arc<AtomicBool>,
}

impl Commands {
    pub fn new(words: Option<Vec<String>>) -> Self {
        let (sender, ended) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        Self { words, sender, ended, running: 0, waiting: VecDeque::new(), skipped: 0, again_at: None, stop }
    }

    /// Starts it, if there is one; in its turn, if too many run.
    pub fn start(&mut self, json: String) -> Result<(), String> {
        if self.words.is_none() {
            return Ok(());
        }
        if self.waiting.len() < WAITING {
            self.waiting.push_back(json);
            return self.start_next();
        }
        self.skipped += 1;
        // The others are told of together, once there is room again.
        if self.skipped > 1 {
            return Ok(());
        }
        Err(format!(
            "--exec: {AT_ONCE} still run and {WAITING} wait: incidents have no command until these are done"
        ))
    }

    fn start_next(&mut self) -> Result<(), String> {
        let Some(words) = self.words.as_ref().filter(|_| self.running < AT_ONCE) else { return Ok(()) };
        let Some(json) = self.waiting.front().cloned() else { return Ok(()) };
        let (words, stop, sender) = (words.clone(), Arc::clone(&self.stop), self.sender.clone());
        // Also starting it may take its time.
        let started = std::thread::Builder::new()
            .name("exec".to_owned())
            .stack_size(256 << 10)
            .spawn(move || drop(sender.send(hook::run(&words, &json, &stop))));
        match started {
            Ok(_) => {
                self.waiting.pop_front();
                self.running += 1;
                self.again_at = None;
                Ok(())
            }
            // It waits for its turn, as others do; that it does is said once.
            Err(error) => match self.again_at.replace(Instant::now() + AGAIN) {
                None => {
                    Err(format!("--exec: starting a thread that waits for it, tried again later: {error}"))
                }
                Some(_) => Ok(()),
            },
        }
    }

    /// What became of one that has ended; those that wait get its place.
    pub fn ended(&mut self) -> Option<Result<(), String>> {
        if let Ok(ended) = self.ended.try_recv() {
            self.running -= 1;
            let started = self.start_next();
            return Some(ended.and(started));
        }
        if self.again_at.is_some_and(|at| Instant::now() >= at)
            && let Err(text) = self.start_next()
        {
            return Some(Err(text));
        }
        if self.skipped > 1 && self.waiting.is_empty() {
            let skipped = std::mem::take(&mut self.skipped);
            return Some(Err(format!(
                "--exec: {} had no command, as too many still ran",
                counted(skipped, "incident", "incidents")
            )));
        }
        if self.waiting.is_empty() {
            self.skipped = 0;
        }
        None
    }

    /// How long the end of a run may wait for them.
    pub fn patience(reason: EndReason) -> Duration {
        if reason == EndReason::Signal { PATIENCE_AT_SIGNAL } else { PATIENCE }
    }

    /// Waits until then for those that run or wait, and ends the rest. A signal cuts that short.
    pub async fn wait(&mut self, mut until: Instant, shutdown: &mut Shutdown, mut failed: impl FnMut(&str)) {
        shutdown.after(None);
        loop {
            while let Some(ended) = self.ended() {
                if let Err(text) = ended {
                    failed(&text);
                }
            }
            if self.running == 0 && self.waiting.is_empty() {
                return;
            }
            let now = Instant::now();
            if now >= until {
                if self.stop.swap(true, Ordering::Relaxed) {
                    // They were told to end, and didn't.
                    return;
                }
                if !self.waiting.is_empty() {
                    failed(&format!(
                        "--exec: {} had no command, as the run ended",
                        counted(self.waiting.len() as u64, "incident", "incidents")
                    ));
                    self.waiting.clear();
                }
                until = now + KILLING;
            }
            tokio::select! {
                reason = shutdown.wait() => if reason == StopReason::Signal {
                    until = until.min(now + PATIENCE_AT_SIGNAL);
                },
                () = sleep(POLL) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sh(script: &str) -> Commands {
        Commands::new(Some(["sh", "-c", script].map(str::to_owned).into()))
    }

    /// Waits for all; returns what is said of those that failed.
    fn ends(commands: &mut Commands, within: Duration) -> Vec<String> {
        let until = Instant::now() + within;
        let mut said = Vec::new();
        while commands.running > 0 || !commands.waiting.is_empty() || commands.skipped > 1 {
            assert!(Instant::now() < until, "they don't end");
            said.extend(commands.ended().and_then(Result::err));
            std::thread::sleep(Duration::from_millis(5));
        }
        said
    }

    #[test]
    fn a_storm_of_triggers_runs_a_few_at_a_time_and_says_what_it_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let script =
            format!("touch {at}/on.$$; ls {at} | grep -c on. >> {at}/most; sleep 0.2; rm {at}/on.$$");
        let mut commands = sh(&script);
        let said: Vec<String> = (0..200).filter_map(|_| commands.start("{}".to_owned()).err()).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        let said = ends(&mut commands, Duration::from_secs(60));
        assert_eq!(said, ["--exec: 180 incidents had no command, as too many still ran"]);
        let most = fs::read_to_string(folder.path().join("most")).unwrap();
        assert_eq!(most.lines().count(), AT_ONCE + WAITING);
        let most: Vec<usize> = most.lines().map(|line| line.parse().unwrap()).collect();
        assert!(most.iter().all(|most| *most <= AT_ONCE), "{most:?}");
        // Later ones run again.
        commands.start("{}".to_owned()).unwrap();
        assert_eq!(ends(&mut commands, Duration::from_secs(20)), [""; 0]);
    }
}
