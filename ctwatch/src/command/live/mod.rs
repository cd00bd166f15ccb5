//! The one live loop: attach, follow events, ticks and signals, reconcile, end. `drops`, `record` and `advise` share it.
//! It hands over what the watch gives; what is made of it is its sink's business.

pub(super) mod backend;
mod live_loop;
mod notices;
mod reconcile;
mod session;
pub(super) mod shutdown;

use anyhow::Result;

use crate::contract::{Notice, Unexplained};
use crate::model::{Insert, Loss, Sample};
pub(super) use live_loop::{Ended, LiveLoop, finish, flush_pending};
pub(super) use session::{AttachRequest, LiveSession};
pub(super) use shutdown::{Shutdown, StopReason};

/// What a sink made of a sample, as far as the loop has to know.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TickOutcome {
    /// What the kernel counted and ctwatch didn't.
    pub unexplained: Unexplained,
    /// Events that did not fit the ring buffer, so far.
    pub lost_events: u64,
}

/// Who is told what the watch sees, live or replayed.
pub(super) trait LiveSink {
    /// A loss; may be kept back until [`LiveSink::flush`].
    fn loss(&mut self, loss: &Loss) -> Result<()>;
    /// A flow that got an entry, where that is asked for.
    fn insert(&mut self, insert: &Insert) -> Result<()> {
        let _ = insert;
        Ok(())
    }
    /// An interval is over.
    fn sample(&mut self, sample: &Sample) -> Result<TickOutcome>;
    /// Something the reader should know.
    fn notice(&mut self, notice: &Notice) -> Result<()>;
    /// No more losses for the moment.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
    /// Called often, whatever happens: for what was begun aside.
    fn poll(&mut self) -> Result<()> {
        Ok(())
    }
    /// Whether it has seen enough.
    fn is_done(&self) -> bool {
        false
    }
}
