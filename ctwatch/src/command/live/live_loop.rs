//! One thread, one loop: events, ticks, signals, and the reconciliation with the kernel's counters.
//! Whatever comes first is served first, but a signal never waits for events.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::io::unix::AsyncFd;
use tokio::time::{MissedTickBehavior, interval};

use super::reconcile::{self, Reconciler};
use super::{LiveSink, Shutdown, StopReason, notices};
use crate::children::threads;
use crate::watch::{Observed, Watch};

/// The kernel wakes us when much is waiting; in between the ring is emptied this often.
const EVENT_POLL: Duration = Duration::from_millis(100);
/// From the kernel's counter to our program it is microseconds, but a virtual CPU may be taken away meanwhile. Waited for
/// at the end of a run only where something is unexplained.
const LOSS_IN_FLIGHT: Duration = Duration::from_millis(100);
/// Events taken at once before ticks and signals get their turn.
const BATCH: usize = 1 << 14;

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::command) enum Ended {
    /// By a signal, or because the time is up.
    Stopped(StopReason),
    /// The sink had seen enough.
    Done,
}

/// What the loop remembers between two runs.
#[derive(Debug, Default)]
pub(in crate::command) struct LiveLoop {
    lost_before: u64,
    lacked_threads: bool,
    reconciler: Reconciler,
}

impl LiveLoop {
    /// Follows the watch until a signal comes, the time is up, or the sink has seen enough.
    pub async fn run(
        &mut self,
        watch: &mut Watch,
        sink: &mut dyn LiveSink,
        shutdown: &mut Shutdown,
        every: Duration,
    ) -> Result<Ended> {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut polls = interval(EVENT_POLL);
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ring = watch.ring()?;
        loop {
            tokio::select! {
                biased;
                reason = shutdown.wait() => return Ok(Ended::Stopped(reason)),
                _ = ticks.tick() => {
                    drain(watch, sink)?;
                    // Each look takes threads, and what is half seen can't be seen again. Counters go on: the next tick that is
                    // possible has all of it.
                    if self.lacks_threads(sink)? {
                        continue;
                    }
                    if let Some(change) = watch.follow_module()? {
                        ring = watch.ring()?;
                        sink.notice(&notices::module_changed(change))?;
                    }
                    watch.follow_doors();
                    self.tick(watch, sink)?;
                    if sink.is_done() {
                        return Ok(Ended::Done);
                    }
                }
                () = readable(ring.as_ref()) => drop(drain(watch, sink)?),
                _ = polls.tick() => {
                    drain(watch, sink)?;
                    sink.poll()?;
                }
            }
        }
    }

    /// Whether no thread can be started now, which is said once for each time it begins.
    fn lacks_threads(&mut self, sink: &mut dyn LiveSink) -> Result<bool> {
        let lacks = threads::try_one().is_err_and(|error| threads::is_for_now(&error));
        if lacks && !self.lacked_threads {
            sink.notice(&notices::too_few_threads())?;
        }
        self.lacked_threads = lacks;
        Ok(lacks)
    }

    fn tick(&mut self, watch: &mut Watch, sink: &mut dyn LiveSink) -> Result<()> {
        let outcome = sink.sample(&watch.sample()?)?;
        if self.reconciler.observe(outcome.unexplained) {
            watch.reconcile();
            sink.notice(&notices::losses_without_tuple())?;
        }
        if outcome.lost_events > self.lost_before {
            sink.notice(&notices::events_lost(outcome.lost_events - self.lost_before))?;
            self.lost_before = outcome.lost_events;
        }
        if watch.take_crowding() {
            sink.notice(&notices::netns_crowded())?;
        }
        if watch.take_unnumbered() {
            sink.notice(&notices::netns_unnumbered())?;
        }
        if watch.take_too_many() {
            sink.notice(&notices::netns_too_many())?;
        }
        if let Some(reason) = watch.take_census_error() {
            sink.notice(&notices::no_census(&reason))?;
        }
        Ok(())
    }
}

/// The rest of the events, and last samples until all is explained.
pub(in crate::command) fn finish(watch: &mut Watch, sink: &mut dyn LiveSink) -> Result<()> {
    // In a storm events never end; what the ring holds now is what belongs to this run.
    let end = Instant::now() + Duration::from_millis(200);
    while drain(watch, sink)? == BATCH && Instant::now() < end {}
    flush_pending(watch, sink)?;
    // The interval that was cut short: ticks add up to the summary.
    let mut outcome = sink.sample(&watch.sample()?)?;
    // A loss that is in flight arrives meanwhile.
    for _ in 1..reconcile::STABLE_OBSERVATIONS {
        if outcome.unexplained.is_zero() {
            break;
        }
        thread::sleep(LOSS_IN_FLIGHT);
        outcome = sink.sample(&watch.sample()?)?;
    }
    if !outcome.unexplained.is_zero() {
        watch.reconcile();
        sink.notice(&notices::losses_without_tuple())?;
        sink.sample(&watch.sample()?)?;
    }
    Ok(())
}

/// Hands over the losses that wait for an answer, with or without it.
pub(in crate::command) fn flush_pending(watch: &mut Watch, sink: &mut dyn LiveSink) -> Result<()> {
    let mut result = Ok(());
    watch.flush_pending(|loss| {
        if result.is_ok() {
            result = sink.loss(loss);
        }
    });
    result
}

/// Takes events; returns how many there were.
fn drain(watch: &mut Watch, sink: &mut dyn LiveSink) -> Result<usize> {
    let mut result = Ok(());
    let taken = watch.drain(BATCH, |seen| {
        if result.is_ok() {
            result = match seen {
                Observed::Loss(loss) => sink.loss(loss),
                Observed::Insert(insert) => sink.insert(insert),
            };
        }
    });
    result?;
    if taken > 0 {
        sink.flush()?;
    }
    Ok(taken)
}

/// Waits until the ring buffer says it holds much.
async fn readable(ring: Option<&AsyncFd<OwnedFd>>) {
    match ring {
        Some(ring) => match ring.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The regular poll finds the events anyway.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
