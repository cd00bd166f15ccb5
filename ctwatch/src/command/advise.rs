//! `ctwatch advise`: measures a window, reads the machine and its firewall, and says what would help.
//! It changes nothing: what it prints is for the reader to run.

mod around;
mod inside;
mod recorded;

use std::io::stdout;
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::live::stop::Stop;
use super::live::{backend, resolve_netns};
use super::preflight::look;
use super::{VERSION, event_loop};
use crate::advise::case::Case;
use crate::advise::measure::Measure;
use crate::advise::report::{self, Advice, Source};
use crate::cli::{AdviceFormat, Advise, BackendChoice, Config};
use crate::conntrack::census;
use crate::conntrack::module;
use crate::error::{Exit, Failure, Mark as _};
use crate::kernel::Kernel;
use crate::kernel::roots::Roots;
use crate::machine::Host;
use crate::model::{Backend, Loss};
use crate::netns::{self, Netns};
use crate::probe::plan::ProbeOptions;
use crate::watch::{Watch, WatchConfig};
use crate::{stderr, view};
use around::{Senders, case, look_around};

/// Between two looks at the counters.
const EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the events.
const LOOK_AT_EVENTS: Duration = Duration::from_millis(100);
/// Events taken at once.
const BATCH: usize = 1 << 14;

/// Runs it.
pub fn run(config: &Config, advise: &Advise) -> Result<Exit> {
    if let Some(path) = &advise.recording {
        return recorded::run(config, advise, path);
    }
    event_loop()?.block_on(measure_and_advise(config, advise))
}

async fn measure_and_advise(config: &Config, advise: &Advise) -> Result<Exit> {
    let roots = config.roots();
    let own = netns::own()?;
    let wanted = resolve_netns(advise.netns.as_slice())?.and_then(|ids| ids.first().copied()).unwrap_or(own);
    if module::loaded(&roots).is_none() {
        return Err(Failure::cannot_watch(
            "nf_conntrack is not loaded: nothing is tracked here, so no table can be full and there is nothing to \
             advise",
        )
        .into());
    }
    let places = netns::discover()?;
    let place = places
        .get(&wanted)
        .cloned()
        .ok_or_else(|| Failure::usage(format!("--netns: netns {} is gone", wanted.inode())))?;
    let mut stop = Stop::new()?;
    let Some(Watched { mut measure, senders, measured_by, mut notes }) =
        watch(config, advise, &roots, &place, &mut stop).await?
    else {
        return Ok(Exit::Done);
    };
    let host = Host { roots, ..Host::default() };
    let found = netns::run_inside(&place, || look_around(&host, &place, &mut measure, &senders))
        .with_context(|| format!("looking at {}", place.name.as_deref().unwrap_or("the netns")))?;
    notes.extend(found.notes.iter().cloned());
    let case = case(found, &measure, &place, own, advise.times);
    let source = Source {
        version: VERSION,
        time: Timestamp::now(),
        netns: place.id,
        name: place.name.clone(),
        window_s: measure.seconds(),
        measured_by,
        notes,
    };
    show(config, advise, &case, source)
}

/// Prints what follows from the case.
fn show(config: &Config, advise: &Advise, case: &Case, source: Source) -> Result<Exit> {
    let mut report = report::report(case, source, advise.what_if.as_ref());
    let chosen = choose(&report, advise)?;
    match advise.format {
        AdviceFormat::Sh => {
            let items: Vec<_> = report.items.iter().filter(|item| chosen.contains(&item.id)).collect();
            view::sh::write(stdout().lock(), &report, &items).context("writing the script")?;
        }
        AdviceFormat::Report(format) => {
            report.items.retain(|item| chosen.contains(&item.id));
            super::view(format, &config.look, None).advice(&report).context("writing the advice")?;
        }
    }
    Ok(Exit::Done)
}

/// Which pieces were asked for; for a script the best one if none was.
fn choose(report: &Advice, advise: &Advise) -> Result<Vec<String>> {
    let all = || report.items.iter().map(|item| item.id.clone());
    let unknown: Vec<&String> = advise.items.iter().filter(|id| !all().any(|known| known == **id)).collect();
    if let Some(id) = unknown.first() {
        let known: Vec<String> = all().collect();
        let known = if known.is_empty() { "there is none now".to_owned() } else { known.join(", ") };
        return Err(Failure::usage(format!("--item {id}: there is no such piece of advice; {known}")).into());
    }
    if !advise.items.is_empty() {
        return Ok(advise.items.clone());
    }
    Ok(match advise.format {
        AdviceFormat::Report(_) => all().collect(),
        AdviceFormat::Sh => {
            let best = report.items.iter().find(|item| !item.commands.now.is_empty());
            best.map(|item| item.id.clone()).into_iter().collect()
        }
    })
}

/// What a window gave.
struct Watched {
    measure: Measure,
    senders: Senders,
    measured_by: &'static str,
    notes: Vec<String>,
}

/// Watches for the length of the window; `None` if it was ended before.
async fn watch(
    config: &Config,
    advise: &Advise,
    roots: &Roots,
    place: &Netns,
    stop: &mut Stop,
) -> Result<Option<Watched>> {
    let kernel = Kernel::read(roots);
    let found = look(roots, &kernel, None);
    let (backend, reason) = match backend::choose(BackendChoice::Auto, &found) {
        Ok((backend, reason)) => (backend, reason),
        Err(error) => (Backend::Counters, Some(format!("{error:#}"))),
    };
    let kprobes = backend == Backend::Kprobe;
    let wishes = (backend != Backend::Counters).then_some(ProbeOptions {
        kprobes,
        flows: kprobes,
        insert_events: false,
        loss_events: true,
        detail: false,
        owners: true,
        invalid: false,
        pair: false,
        raw_tracepoints: found.raw_tracepoints,
    });
    let settings = WatchConfig { roots: roots.clone(), wishes, log_level: 0 };
    let (mut watch, began) =
        Watch::start(settings, kernel).or_cannot_watch(|| "starting the watch on conntrack".to_owned())?;
    let mut notes = began.notes;
    if !kprobes {
        notes.push(format!(
            "flows can't be counted here ({}): arrivals are read from the timeouts of the entries that are there",
            reason.unwrap_or_else(|| format!("{} backend", backend.name()))
        ));
    }
    if config.verbosity > 0 {
        stderr::line(format_args!("measuring for {:.0} s", advise.window.as_secs_f64()));
    }
    let timeouts = netns::run_inside(place, || Ok(census::read_timeouts()))?;
    let mut measure = Measure::new(place.id, advise.window.as_secs_f64(), timeouts, kprobes);
    let mut senders = Senders::default();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = interval(LOOK_AT_EVENTS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while measure.seconds() < advise.window.as_secs_f64() - EVERY.as_secs_f64() / 2.0 {
        tokio::select! {
            biased;
            _ = stop.wait() => return Ok(None),
            _ = ticks.tick() => {
                watch.drain(BATCH, |loss| take(loss, &mut measure, &mut senders));
                watch.follow_module()?;
                measure.sample(&watch.sample()?);
            }
            _ = looks.tick() => {
                watch.drain(BATCH, |loss| take(loss, &mut measure, &mut senders));
            }
        }
    }
    watch.flush_pending(|loss| take(loss, &mut measure, &mut senders));
    Ok(Some(Watched { measure, senders, measured_by: if kprobes { "kprobe" } else { "census" }, notes }))
}

fn take(loss: &Loss, measure: &mut Measure, senders: &mut Senders) {
    measure.loss(&loss.event);
    senders.note(loss);
}
