//! SIGINT and SIGTERM end every command, whatever it is busy with: a reader that takes nothing, a disk that doesn't answer, a
//! recording that takes minutes. What listens is a thread of its own. A command that hears the signal itself has time to put
//! things in order; once that takes too long, or the signal is sent again, the process ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use super::atomic_outputs::remove_drafts;
use super::event_loop;
use crate::error::Exit;
use crate::record::stop_reading;
use crate::stderr;

/// How long an orderly end may take where nothing else is said,
const PATIENCE: Duration = Duration::from_secs(10);
/// and where nothing but recordings is read.
const PATIENCE_WITH_READERS: Duration = Duration::from_millis(500);
/// `timeout`, `sudo` and terminals send a signal twice at once; a second one that is meant comes later than this.
const AGAIN: Duration = Duration::from_millis(500);

/// The one of a command. It goes on when this is dropped: what a command does last may take long, too.
pub(super) struct Guard(Arc<State>);

struct State {
    /// Milliseconds an orderly end may take.
    patience: AtomicU64,
    stops_reading: bool,
    has_come: AtomicBool,
}

impl Guard {
    /// From here on a signal doesn't end the process at once.
    pub fn new() -> Result<Self> {
        Self::watching(PATIENCE, false)
    }

    /// The same for a command that reads recordings: all reading ends with an error when a signal comes.
    pub fn of_reader() -> Result<Self> {
        Self::watching(PATIENCE_WITH_READERS, true)
    }

    fn watching(patience: Duration, stops_reading: bool) -> Result<Self> {
        let patience = AtomicU64::new(millis(patience));
        let state = Arc::new(State { patience, stops_reading, has_come: AtomicBool::new(false) });
        let of_thread = Arc::clone(&state);
        let (sender, begun) = channel();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                // An event loop of its own: the command's may be held up by whatever it writes to or reads from.
                let listening = event_loop().and_then(|events| {
                    let signals = events.block_on(async { Signals::new() })?;
                    Ok((events, signals))
                });
                let (events, mut signals) = match listening {
                    Ok(both) => both,
                    Err(error) => return drop(sender.send(Err(error))),
                };
                let _ = sender.send(Ok(()));
                events.block_on(of_thread.wait(&mut signals));
                end();
            })
            .context("starting a thread that waits for signals")?;
        begun.recv().context("waiting for signals")??;
        Ok(Self(state))
    }

    /// How long an orderly end may take after a signal. None at all: whatever goes on then is cut short, so this is for
    /// what leaves nothing half done but its output.
    /// Returns how long it could take until now.
    pub fn end_within(&self, patience: Duration) -> Duration {
        Duration::from_millis(self.0.patience.swap(millis(patience), Ordering::Relaxed))
    }

    /// Whether a signal came.
    pub fn has_come(&self) -> bool {
        self.0.has_come.load(Ordering::Relaxed)
    }
}

impl State {
    /// Returns once the end takes too long.
    async fn wait(&self, signals: &mut Signals) {
        signals.any().await;
        let since = Instant::now();
        self.has_come.store(true, Ordering::Relaxed);
        if self.stops_reading {
            stop_reading();
        }
        loop {
            let patience = Duration::from_millis(self.patience.load(Ordering::Relaxed));
            tokio::select! {
                () = sleep(patience.saturating_sub(since.elapsed())) => break,
                () = signals.any() => if since.elapsed() >= AGAIN { break },
            }
        }
    }
}

/// The process ends here, and nothing half done is left behind.
fn end() {
    let text = if remove_drafts() {
        "error: ended by a signal; incomplete files were removed"
    } else {
        "error: ended by a signal before it was done: what it was writing is incomplete"
    };
    stderr::line(text);
    stderr::settle();
    std::process::exit(Exit::Failed as i32);
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// SIGINT and SIGTERM, in whichever event loop this is made.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn new() -> Result<Self> {
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for either. Safe to cancel.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A signal as an event loop hears it.
pub(super) fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("listening for signals")
}
