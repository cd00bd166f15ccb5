//! What ends a run from outside: signals, and a duration that is over.
//! Says which it was; what follows from it is each command's business. Whatever a command waits for meanwhile (a reader of
//! stdout, a disk, a program it started), a signal ends it: at once, or once its end has taken too long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, sleep_until};

use crate::command::event_loop;
use crate::error::Exit;
use crate::stderr;

/// How long an orderly end may take where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(10);
/// `timeout`, `sudo` and terminals send a signal twice at once; whoever means it sends it later than this.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a run stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::command) enum StopReason {
    /// SIGINT or SIGTERM; SIGHUP, too, where it has no other meaning.
    Signal,
    /// SIGHUP, where it means to go on in a new file.
    Reopen,
    /// The duration is over.
    Elapsed,
}

/// Listens for signals, and watches the clock.
pub(in crate::command) struct Shutdown {
    signals: Signals,
    hangup: Signal,
    on_hangup: StopReason,
    at: Option<tokio::time::Instant>,
    patience: Patience,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("listening for signals")
}

impl Shutdown {
    pub(in crate::command) fn new() -> Result<Self> {
        let patience = Patience::default();
        patience.guard()?;
        Ok(Self {
            signals: Signals::new()?,
            hangup: listen(SignalKind::hangup())?,
            on_hangup: StopReason::Signal,
            at: None,
            patience,
        })
    }

    /// As [`Shutdown::new`], where SIGHUP is no end.
    pub(in crate::command) fn with_reopen_on_hangup() -> Result<Self> {
        Ok(Self { on_hangup: StopReason::Reopen, ..Self::new()? })
    }

    /// How long an orderly end may take after a signal. None at all: whatever goes on then is cut short, so this is for
    /// what leaves nothing half done but its output.
    /// Returns how long it could take until now.
    pub(in crate::command) fn end_within(&self, patience: Duration) -> Duration {
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.patience.0.swap(millis, Ordering::Relaxed))
    }

    /// The duration counts from here, also if it did before: attaching doesn't belong to it.
    pub(in crate::command) fn after(&mut self, duration: Option<Duration>) {
        self.at = duration.map(|duration| tokio::time::Instant::now() + duration);
    }

    /// Waits for a signal or the end of the duration. Safe to cancel.
    pub(in crate::command) async fn wait(&mut self) -> StopReason {
        let at = self.at;
        let elapsed = async {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.signals.any() => StopReason::Signal,
            _ = self.hangup.recv() => self.on_hangup,
            () = elapsed => StopReason::Elapsed,
        }
    }
}

/// Milliseconds an orderly end may take.
#[derive(Clone)]
struct Patience(Arc<AtomicU64>);

impl Default for Patience {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(PATIENCE.as_millis() as u64)))
    }
}

impl Patience {
    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    /// Ends the process where the end takes too long, or is asked for again. A thread with an event loop of its own: the
    /// other one may be held up by whatever it writes to or reads from.
    fn guard(&self) -> Result<()> {
        let patience = self.clone();
        let (sender, begun) = channel();
        std::thread::Builder::new()
            .name("end".to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                let started = event_loop().and_then(|events| {
                    let signals = events.block_on(async { Signals::new() })?;
                    Ok((events, signals))
                });
                let (events, mut signals) = match started {
                    Ok(both) => both,
                    Err(error) => return drop(sender.send(Err(error))),
                };
                let _ = sender.send(Ok(()));
                events.block_on(async {
                    signals.any().await;
                    let since = Instant::now();
                    loop {
                        tokio::select! {
                            () = sleep(patience.get().saturating_sub(since.elapsed())) => break,
                            () = signals.any() => if since.elapsed() >= AGAIN { break },
                        }
                    }
                });
                stderr::line(
                    "error: ended by a signal before it was done: what it was writing is incomplete",
                );
                stderr::settle();
                std::process::exit(Exit::Failed as i32);
            })
            .context("starting a thread that waits for signals")?;
        begun.recv().context("waiting for signals")?
    }
}
