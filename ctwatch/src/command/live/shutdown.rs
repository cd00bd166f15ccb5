//! What ends a run from outside: signals, and a duration that is over.
//! Says which it was; what follows from it is each command's business. Where that takes too long, its [`Guard`] ends it.

use std::time::Duration;

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind};
use tokio::time::sleep_until;

use crate::command::guard::{Guard, Signals, listen};

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
    guard: Guard,
}

impl Shutdown {
    pub(in crate::command) fn new() -> Result<Self> {
        Self::guarded(Guard::new()?)
    }

    /// As [`Shutdown::new`], for a command that reads recordings: a signal ends all reading.
    pub(in crate::command) fn of_reader() -> Result<Self> {
        Self::guarded(Guard::of_reader()?)
    }

    fn guarded(guard: Guard) -> Result<Self> {
        let (signals, hangup) = (Signals::new()?, listen(SignalKind::hangup())?);
        Ok(Self { signals, hangup, on_hangup: StopReason::Signal, at: None, guard })
    }

    /// As [`Shutdown::new`], where SIGHUP is no end.
    pub(in crate::command) fn with_reopen_on_hangup() -> Result<Self> {
        Ok(Self { on_hangup: StopReason::Reopen, ..Self::new()? })
    }

    /// See [`Guard::end_within`].
    pub(in crate::command) fn end_within(&self, patience: Duration) -> Duration {
        self.guard.end_within(patience)
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
