//! The command that `--exec` names: run as ctwatch runs, with the trigger's JSON on its stdin.
//! It may fail or hang; the recording goes on.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long the end of a run waits for commands that still run.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commands that run.
pub(super) struct Commands {
    words: Option<Vec<String>>,
    sender: Sender<Result<(), String>>,
    ended: Receiver<Result<(), String>>,
    running: usize,
}

impl Commands {
    pub fn new(words: Option<Vec<String>>) -> Self {
        let (sender, ended) = channel();
        Self { words, sender, ended, running: 0 }
    }

    /// Starts it, if there is one.
    pub fn start(&mut self, json: String) -> Result<(), String> {
        let Some([program, arguments @ ..]) = self.words.as_deref() else { return Ok(()) };
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("--exec {program}: {what}: {error}");
        // What it prints is no line of ours: stdout is for those who read JSON.
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(std::io::stderr())
            .spawn()
            .map_err(|error| failed("starting it", &error))?;
        let (sender, name) = (self.sender.clone(), program.clone());
        let thread = std::thread::Builder::new().name("exec".to_owned()).stack_size(256 << 10);
        let spawned = thread.spawn(move || {
            if let Some(mut stdin) = child.stdin.take() {
                // It may not care for it.
                let _ = stdin.write_all(json.as_bytes()).and_then(|()| stdin.write_all(b"\n"));
            }
            let ended = match child.wait() {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(format!("--exec {name}: it ended with {status}")),
                Err(error) => Err(format!("--exec {name}: waiting for it: {error}")),
            };
            let _ = sender.send(ended);
        });
        spawned.map_err(|error| failed("starting a thread that waits for it", &error))?;
        self.running += 1;
        Ok(())
    }

    /// What became of one that has ended.
    pub fn ended(&mut self) -> Option<Result<(), String>> {
        let ended = self.ended.try_recv().ok();
        self.running -= usize::from(ended.is_some());
        ended
    }

    /// Waits for those that still run.
    pub fn wait(&mut self, mut failed: impl FnMut(&str)) {
        let until = Instant::now() + PATIENCE;
        while self.running > 0 {
            match self.ended.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(ended) => {
                    self.running -= 1;
                    if let Err(text) = ended {
                        failed(&text);
                    }
                }
                Err(_) => {
                    failed(&format!(
                        "--exec: it still runs after {} s, and is left alone",
                        PATIENCE.as_secs()
                    ));
                    return;
                }
            }
        }
    }
}
