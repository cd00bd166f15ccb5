//! What ends a run from outside: signals, and a duration that is over.
//! Says which it was; what follows from it is each command's business.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep_until;

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
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    on_hangup: StopReason,
    at: Option<tokio::time::Instant>,
}

impl Shutdown {
    pub(in crate::command) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            on_hangup: StopReason::Signal,
            at: None,
        })
    }

    /// As [`Shutdown::new`], where SIGHUP is no end.
    pub(in crate::command) fn with_reopen_on_hangup() -> Result<Self> {
        Ok(Self { on_hangup: StopReason::Reopen, ..Self::new()? })
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
            _ = self.interrupt.recv() => StopReason::Signal,
            _ = self.terminate.recv() => StopReason::Signal,
            _ = self.hangup.recv() => self.on_hangup,
            () = elapsed => StopReason::Elapsed,
        }
    }
}
