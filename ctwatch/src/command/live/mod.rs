//! The loop that `drops` and `record` share: one thread, one loop, events, ticks, signals.
//! It hands over what the watch gives; what is made of it is its follower's business.

pub(super) mod backend;
mod reconcile;
pub(super) mod stop;

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::time::{MissedTickBehavior, interval};

use super::live::stop::{Call, Stop};
use super::preflight::{Preflight, look};
use crate::cli::{BackendChoice, NetnsSpec};
use crate::conntrack::module;
use crate::contract::{Hook, Notice, SCHEMA, Start, Unexplained};
use crate::error::{Failure, Mark as _};
use crate::kernel::Kernel;
use crate::kernel::roots::Roots;
use crate::model::{Backend, Insert, Loss, NetnsId, Sample};
use crate::netns;
use crate::probe::plan::ProbeOptions;
use crate::watch::{ModuleChange, Observed, StartInfo, Watch, WatchConfig};
use reconcile::Missed;

/// The kernel wakes us when much is waiting; in between we look this often.
const LOOK_AT_EVENTS: Duration = Duration::from_millis(100);
/// How often to see whether conntrack has been loaded.
const LOOK_FOR_CONNTRACK: Duration = Duration::from_millis(250);
/// From the kernel's counter to our program it is microseconds, but a CPU may be taken away meanwhile.
const FOR_A_LOSS_ON_ITS_WAY: Duration = Duration::from_millis(20);
/// Events taken at once before ticks and signals get their turn.
const BATCH: usize = 1 << 14;

/// What a follower makes of a sample, as far as the loop has to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub unexplained: Unexplained,
    pub lost_events: u64,
}

/// Who is told what the watch sees, live or replayed.
pub(super) trait Follower {
    /// A loss; may be kept back until [`Follower::flush`].
    fn loss(&mut self, loss: &Loss) -> Result<()>;
    /// A flow that got an entry, where that is asked for.
    fn insert(&mut self, insert: &Insert) -> Result<()> {
        let _ = insert;
        Ok(())
    }
    /// An interval is over.
    fn sample(&mut self, sample: &Sample) -> Result<Seen>;
    /// Something the reader should know.
    fn notice(&mut self, notice: &Notice) -> Result<()>;
    /// No more losses for the moment.
    fn flush(&mut self) -> Result<()>;
    /// Called often, whatever happens: for what was begun aside.
    fn look(&mut self) -> Result<()> {
        Ok(())
    }
    /// Whether it has seen enough.
    fn is_done(&self) -> bool {
        false
    }
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By a call from outside.
    Called(Call),
    /// The follower had seen enough.
    Done,
}

/// A watch that runs.
pub(super) struct Attached {
    pub watch: Watch,
    pub backend: Backend,
    began: StartInfo,
    reason: Option<String>,
}

/// Chooses a backend, waits for conntrack and attaches; `None` if the run was ended before. `wishes` says what is wanted
/// of a backend, `waiting` is told that conntrack isn't there.
pub(super) async fn attach(
    roots: &Roots,
    choice: BackendChoice,
    log_level: u8,
    wishes: impl FnOnce(Backend, &Preflight) -> Option<ProbeOptions>,
    waiting: impl FnOnce(&Notice) -> Result<()>,
    stop: &mut Stop,
) -> Result<Option<Attached>> {
    let mut kernel = Kernel::read(roots);
    let mut found = look(roots, &kernel, None);
    let (mut backend, mut reason) = backend::choose(choice, &found)?;
    if module::loaded(roots).is_none() {
        waiting(&waiting_for_conntrack())?;
        if !conntrack_comes(roots, stop).await {
            return Ok(None);
        }
        // Before it was loaded its functions could not be looked for.
        kernel = Kernel::read(roots);
        found = look(roots, &kernel, None);
        (backend, reason) = backend::choose(choice, &found)?;
    }
    let settings = WatchConfig { roots: roots.clone(), probe_options: wishes(backend, &found), log_level };
    let (watch, began) =
        Watch::start(settings, kernel).or_cannot_watch(|| "starting the watch on conntrack".to_owned())?;
    Ok(Some(Attached { watch, backend, began, reason }))
}

impl Attached {
    /// What is told first.
    pub fn start(&self, version: &str, roots: &Roots) -> Start {
        let notes: Vec<&str> =
            self.began.notes.iter().chain(self.reason.as_ref()).map(String::as_str).collect();
        let hook = |one: &crate::probe::plan::Attachment| Hook {
            function: one.function.clone(),
            kind: one.kind.name().to_owned(),
        };
        Start {
            schema: SCHEMA,
            version: version.to_owned(),
            time: Timestamp::now(),
            kernel_release: roots.release(),
            backend: self.backend.name(),
            backend_reason: (!notes.is_empty()).then(|| notes.join("; ")),
            hooks: self.began.attachments.iter().map(hook).collect(),
            since_boot: self.began.since_boot,
        }
    }
}

/// What the loop remembers between two calls.
#[derive(Debug, Default)]
pub(super) struct Loop {
    lost_before: u64,
    missed: Missed,
}

impl Loop {
    /// Follows the watch until something from outside calls, or the follower has seen enough.
    pub async fn run(
        &mut self,
        watch: &mut Watch,
        follower: &mut dyn Follower,
        stop: &mut Stop,
        every: Duration,
    ) -> Result<Ended> {
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut looks = interval(LOOK_AT_EVENTS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ring = watch.ring()?;
        loop {
            tokio::select! {
                biased;
                call = stop.wait() => return Ok(Ended::Called(call)),
                _ = ticks.tick() => {
                    drain(watch, follower)?;
                    if let Some(change) = watch.follow_module()? {
                        ring = watch.ring()?;
                        follower.notice(&notice_of(change))?;
                    }
                    self.tick(watch, follower)?;
                    if follower.is_done() {
                        return Ok(Ended::Done);
                    }
                }
                () = readable(ring.as_ref()) => drop(drain(watch, follower)?),
                _ = looks.tick() => {
                    drain(watch, follower)?;
                    follower.look()?;
                }
            }
        }
    }

    fn tick(&mut self, watch: &mut Watch, follower: &mut dyn Follower) -> Result<()> {
        let seen = follower.sample(&watch.sample()?)?;
        if self.missed.look(seen.unexplained) {
            watch.reconcile();
            follower.notice(&settled())?;
        }
        if seen.lost_events > self.lost_before {
            follower.notice(&events_lost(seen.lost_events - self.lost_before))?;
            self.lost_before = seen.lost_events;
        }
        if let Some(reason) = watch.take_census_error() {
            follower.notice(&no_census(&reason))?;
        }
        Ok(())
    }
}

/// The rest of the events, and last samples until all is explained.
pub(super) fn finish(watch: &mut Watch, follower: &mut dyn Follower) -> Result<()> {
    // In a storm events never end; what the ring holds now is what belongs to this run.
    let end = Instant::now() + Duration::from_millis(200);
    while drain(watch, follower)? == BATCH && Instant::now() < end {}
    let mut taken = Ok(());
    watch.flush_pending(|loss| {
        if taken.is_ok() {
            taken = follower.loss(loss);
        }
    });
    taken?;
    // The interval that was cut short: ticks add up to the summary.
    let mut seen = follower.sample(&watch.sample()?)?;
    // A loss that is on its way arrives meanwhile.
    for _ in 1..reconcile::LOOKS {
        if seen.unexplained.is_zero() {
            break;
        }
        thread::sleep(FOR_A_LOSS_ON_ITS_WAY);
        seen = follower.sample(&watch.sample()?)?;
    }
    if !seen.unexplained.is_zero() {
        watch.reconcile();
        follower.notice(&settled())?;
        follower.sample(&watch.sample()?)?;
    }
    Ok(())
}

/// Takes events; returns how many there were.
fn drain(watch: &mut Watch, follower: &mut dyn Follower) -> Result<usize> {
    let mut result = Ok(());
    let taken = watch.drain(BATCH, |seen| {
        if result.is_ok() {
            result = match seen {
                Observed::Loss(loss) => follower.loss(loss),
                Observed::Insert(insert) => follower.insert(insert),
            };
        }
    });
    result?;
    if taken > 0 {
        follower.flush()?;
    }
    Ok(taken)
}

/// Waits until the ring buffer says it holds much.
async fn readable(ring: Option<&AsyncFd<OwnedFd>>) {
    match ring {
        Some(ring) => match ring.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The regular look finds the events anyway.
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn waiting_for_conntrack() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "waiting_for_conntrack",
        text: "nf_conntrack is not loaded, so nothing is tracked and nothing can be lost to it; waiting until a \
               firewall rule or `modprobe nf_conntrack` loads it"
            .to_owned(),
    }
}

/// Waits until conntrack is there; false if the run was ended meanwhile.
async fn conntrack_comes(roots: &Roots, stop: &mut Stop) -> bool {
    loop {
        tokio::select! {
            call = stop.wait() => {
                // There is nothing yet that a SIGHUP could close.
                if call != Call::Hangup {
                    return false;
                }
            }
            () = tokio::time::sleep(LOOK_FOR_CONNTRACK) => {
                if module::loaded(roots).is_some() {
                    return true;
                }
            }
        }
    }
}

fn notice_of(change: ModuleChange) -> Notice {
    let (code, text) = match change {
        ModuleChange::Unloaded => {
            ("conntrack_unloaded", "nf_conntrack was unloaded; waiting until it is loaded again".to_owned())
        }
        ModuleChange::Reattached => (
            "reattached",
            "nf_conntrack was loaded again: attached again, the kernel counts from 0".to_owned(),
        ),
    };
    Notice { time: Timestamp::now(), code, text }
}

fn settled() -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "losses_without_tuple",
        text: "the kernel counted losses whose packets no program saw: they are counted without a tuple"
            .to_owned(),
    }
}

fn no_census(reason: &str) -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "no_census",
        text: format!("no telling who fills the table, nor when it will be full: {reason}"),
    }
}

fn events_lost(count: u64) -> Notice {
    Notice {
        time: Timestamp::now(),
        code: "events_lost",
        text: format!(
            "{count} events did not fit the ring buffer: totals per port stay exact, rows by flow, source, \
             destination, process or container are lower bounds"
        ),
    }
}

/// The namespaces the user named; `None` if none.
pub(super) fn resolve_netns(specs: &[NetnsSpec]) -> Result<Option<Vec<NetnsId>>> {
    if specs.is_empty() {
        return Ok(None);
    }
    let places = netns::discover()?;
    specs
        .iter()
        .map(|spec| match spec {
            NetnsSpec::Host => netns::own(),
            NetnsSpec::Name(name) => netns::find(&places, name)
                .map_err(|error| Failure::usage(format!("--netns: {error:#}")).into()),
            NetnsSpec::Inode(id) if places.contains_key(id) => Ok(*id),
            NetnsSpec::Inode(id) => Err(Failure::usage(format!(
                "--netns: no process and no name leads to {id}; `lsns -t net` lists them"
            ))
            .into()),
            NetnsSpec::Pid(pid) => netns::id_of(format!("/proc/{pid}/ns/net").as_ref()).or_usage(|| {
                format!("--netns pid:{pid}: there is no such process, or it may not be looked at")
            }),
        })
        .collect::<Result<Vec<_>>>()
        .map(Some)
}
