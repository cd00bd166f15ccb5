//! `ctwatch drops`: the live stream. One thread, one loop: events, ticks, signals.
//! Every number comes from the watch and goes through the state; every word goes through the view.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::{VERSION, backend, view};
use crate::cli::{Config, Drops, NetnsSpec, TableFullBy};
use crate::conntrack::netns;
use crate::error::{Exit, Failure, Mark as _};
use crate::event::{Loss, NetnsId};
use crate::kernel::Kernel;
use crate::kernel::preflight::look;
use crate::kernel::roots::Roots;
use crate::probe::diagnostics;
use crate::probe::plan::{RawTracepoints, Wishes};
use crate::state::report::{Hook, Notice, SCHEMA, Start};
use crate::state::{Backend, State};
use crate::view::View;
use crate::watch::missed::{self, Missed};
use crate::watch::{Change, Settings, Watch, conntrack_module};

/// The kernel wakes us when much is waiting; in between we look this often.
const LOOK_AT_EVENTS: Duration = Duration::from_millis(100);
/// How often to see whether conntrack has been loaded.
const LOOK_FOR_CONNTRACK: Duration = Duration::from_millis(250);
/// From the kernel's counter to our program it is microseconds, but a CPU may be taken away meanwhile.
const FOR_A_LOSS_ON_ITS_WAY: Duration = Duration::from_millis(20);
/// Events taken at once before ticks and signals get their turn.
const BATCH: usize = 1 << 14;

/// Runs it.
pub fn run(config: &Config, drops: &Drops) -> Result<Exit> {
    let roots = Roots { proc: config.proc_root.clone(), sys: config.sys_root.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("starting the event loop")?;
    runtime.block_on(stream(config, drops, roots))
}

/// What ends a run from outside.
pub(super) struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    at: Option<tokio::time::Instant>,
}

impl Stop {
    pub(super) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            at: None,
        })
    }

    /// The duration counts from here: waiting and attaching don't belong to it.
    fn after(&mut self, duration: Option<Duration>) {
        self.at = duration.map(|duration| tokio::time::Instant::now() + duration);
    }

    /// Waits for a signal or the end of the duration. Safe to cancel.
    pub(super) async fn wait(&mut self) {
        let at = self.at;
        let time_is_up = async {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            () = time_is_up => {}
        }
    }
}

async fn stream(config: &Config, drops: &Drops, roots: Roots) -> Result<Exit> {
    // Wrong usage is told before anything waits or is loaded.
    let wanted_netns = resolve_netns(&drops.netns)?;
    let mut view = view(drops.format, &config.look, wanted_netns.clone());
    let mut stop = Stop::new()?;
    let mut kernel = Kernel::read(&roots);
    let mut found = look(&roots, &kernel, None);
    let (mut backend, mut reason) = backend::choose(drops.backend, &found)?;
    if conntrack_module(&roots).is_none() {
        if !wait_for_conntrack(&roots, view.as_mut(), &mut stop).await? {
            return Ok(Exit::Done);
        }
        // Before it was loaded its functions could not be looked for.
        kernel = Kernel::read(&roots);
        found = look(&roots, &kernel, None);
        (backend, reason) = backend::choose(drops.backend, &found)?;
    }
    let mut state = State::new(drops.settings(backend, wanted_netns));
    let settings = Settings {
        roots: roots.clone(),
        wishes: wishes(drops, backend, found.raw_tracepoints, state.wants_events()),
        log_level: if config.verbosity >= 2 { diagnostics::DEBUG } else { 0 },
    };
    let (mut watch, began) =
        Watch::start(settings, kernel).or_cannot_watch(|| "starting the watch on conntrack".to_owned())?;
    let mut notes = began.notes;
    notes.extend(reason);
    view.start(&Start {
        schema: SCHEMA,
        version: VERSION.to_owned(),
        time: Timestamp::now(),
        kernel_release: roots.release(),
        backend: backend.name(),
        backend_reason: (!notes.is_empty()).then(|| notes.join("; ")),
        hooks: began
            .attachments
            .into_iter()
            .map(|one| Hook { function: one.function, kind: one.kind.name().to_owned() })
            .collect(),
        since_boot: began.since_boot,
    })?;
    stop.after(drops.duration);
    watch.start_census();
    watch_until(&mut watch, &mut state, view.as_mut(), &mut stop, drops.interval).await?;
    finish(&mut watch, &mut state, view.as_mut())?;
    Ok(Exit::Done)
}

fn wishes(
    drops: &Drops,
    backend: Backend,
    raw_tracepoints: RawTracepoints,
    loss_events: bool,
) -> Option<Wishes> {
    let kprobes = match backend {
        Backend::Kprobe => true,
        Backend::Tracepoint => false,
        Backend::Counters => return None,
    };
    Some(Wishes {
        kprobes,
        flows: kprobes && (drops.count_flows || drops.insert_events),
        insert_events: drops.insert_events,
        loss_events,
        detail: drops.drop_events || drops.insert_events,
        owners: drops.drop_events || drops.by.needs_owners(),
        invalid: drops.filter.wants_invalid(),
        pair: drops.table_full == TableFullBy::InitConntrack,
        raw_tracepoints,
    })
}

/// The loop, until a signal or the duration ends it.
async fn watch_until(
    watch: &mut Watch,
    state: &mut State,
    view: &mut dyn View,
    stop: &mut Stop,
    every: Duration,
) -> Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let mut looks = interval(LOOK_AT_EVENTS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ring = watch.ring()?;
    let mut lost_before = 0;
    let mut missed = Missed::default();
    loop {
        tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            _ = ticks.tick() => {
                drain(watch, state, view, BATCH)?;
                if let Some(change) = watch.follow_module()? {
                    ring = watch.ring()?;
                    view.notice(&notice_of(change))?;
                }
                let tick = state.sample(&watch.sample()?);
                if missed.look(tick.unexplained) {
                    watch.settle();
                    view.notice(&settled())?;
                }
                if tick.lost_events > lost_before {
                    view.notice(&events_lost(tick.lost_events - lost_before))?;
                    lost_before = tick.lost_events;
                }
                if let Some(reason) = watch.census_trouble() {
                    view.notice(&no_census(&reason))?;
                }
                view.tick(&tick)?;
            }
            () = readable(ring.as_ref()) => drop(drain(watch, state, view, BATCH)?),
            _ = looks.tick() => drop(drain(watch, state, view, BATCH)?),
        }
    }
}

/// The rest of the events, a last sample, the summary.
fn finish(watch: &mut Watch, state: &mut State, view: &mut dyn View) -> Result<()> {
    // In a storm events never end; what the ring holds now is what belongs to this run.
    let end = Instant::now() + Duration::from_millis(200);
    while drain(watch, state, view, BATCH)? == BATCH && Instant::now() < end {}
    let mut written = Ok(());
    watch.drain_rest(|loss| show(state, view, loss, &mut written));
    written?;
    // The interval that was cut short: ticks add up to the summary.
    let mut tick = state.sample(&watch.sample()?);
    view.tick(&tick)?;
    // A loss that is on its way arrives meanwhile.
    for _ in 1..missed::LOOKS {
        if tick.unexplained.is_zero() {
            break;
        }
        thread::sleep(FOR_A_LOSS_ON_ITS_WAY);
        tick = state.sample(&watch.sample()?);
        view.tick(&tick)?;
    }
    if !tick.unexplained.is_zero() {
        watch.settle();
        view.notice(&settled())?;
        view.tick(&state.sample(&watch.sample()?))?;
    }
    view.end(&state.end(Timestamp::now()))?;
    Ok(())
}

/// Takes events; returns how many there were.
fn drain(watch: &mut Watch, state: &mut State, view: &mut dyn View, limit: usize) -> Result<usize> {
    let mut written = Ok(());
    let taken = watch.drain(limit, |loss| show(state, view, loss, &mut written));
    written?;
    if taken > 0 {
        view.flush()?;
    }
    Ok(taken)
}

fn show(state: &mut State, view: &mut dyn View, loss: &Loss, written: &mut std::io::Result<()>) {
    if let Some(event) = state.loss(loss)
        && written.is_ok()
    {
        *written = view.event(&event);
    }
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

/// Waits until conntrack is there; false if the run was ended meanwhile.
async fn wait_for_conntrack(roots: &Roots, view: &mut dyn View, stop: &mut Stop) -> Result<bool> {
    view.notice(&Notice {
        time: Timestamp::now(),
        code: "waiting_for_conntrack",
        text: "nf_conntrack is not loaded, so nothing is tracked and nothing can be lost to it; waiting until a \
               firewall rule or `modprobe nf_conntrack` loads it"
            .to_owned(),
    })?;
    loop {
        tokio::select! {
            () = stop.wait() => return Ok(false),
            () = tokio::time::sleep(LOOK_FOR_CONNTRACK) => {
                if conntrack_module(roots).is_some() {
                    return Ok(true);
                }
            }
        }
    }
}

fn notice_of(change: Change) -> Notice {
    let (code, text) = match change {
        Change::Unloaded => {
            ("conntrack_unloaded", "nf_conntrack was unloaded; waiting until it is loaded again".to_owned())
        }
        Change::Reattached => (
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
            NetnsSpec::Name(name) => {
                netns::find(&places, name).map_err(|error| Failure::usage(format!("--netns: {error:#}")).into())
            }
            NetnsSpec::Inode(id) if places.contains_key(id) => Ok(*id),
            NetnsSpec::Inode(NetnsId(inode)) => Err(Failure::usage(format!(
                "--netns: no process and no name leads to a netns with inode {inode}; `lsns -t net` lists them"
            ))
            .into()),
            NetnsSpec::Pid(pid) => netns::id_of(format!("/proc/{pid}/ns/net").as_ref()).or_usage(|| {
                format!("--netns pid:{pid}: there is no such process, or it may not be looked at")
            }),
        })
        .collect::<Result<Vec<_>>>()
        .map(Some)
}
