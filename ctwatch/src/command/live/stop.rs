//! What ends a run from outside, or calls for something: signals, and a duration that is over.
//! Says which it was; what follows from it is each command's business.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep_until;

/// What came from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::command) enum Call {
    /// SIGINT or SIGTERM; SIGHUP, too, where it has no other meaning.
    End,
    /// SIGHUP, where it means to begin anew.
    Hangup,
    /// The duration is over.
    TimeIsUp,
}

/// Listens for it.
pub(in crate::command) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    hangup_is: Call,
    at: Option<tokio::time::Instant>,
}

impl Stop {
    pub(in crate::command) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            hangup_is: Call::End,
            at: None,
        })
    }

    /// As [`Stop::new`], where SIGHUP is no end.
    pub(in crate::command) fn but_not_by_hangup() -> Result<Self> {
        Ok(Self { hangup_is: Call::Hangup, ..Self::new()? })
    }

    /// The duration counts from here, also if it did before: attaching doesn't belong to it.
    pub(in crate::command) fn after(&mut self, duration: Option<Duration>) {
        self.at = duration.map(|duration| tokio::time::Instant::now() + duration);
    }

    /// Waits for a signal or the end of the duration. Safe to cancel.
    pub(in crate::command) async fn wait(&mut self) -> Call {
        let at = self.at;
        let time_is_up = async {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Call::End,
            _ = self.terminate.recv() => Call::End,
            _ = self.hangup.recv() => self.hangup_is,
            () = time_is_up => Call::TimeIsUp,
        }
    }
}
