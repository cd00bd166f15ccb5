//! `ctwatch advise`: measures a window, reads the machine and its firewall, and says what would help.
//! It changes nothing: what it prints is for the reader to run.

mod collect;
mod recorded;

use std::io::stdout;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::live::{self, AttachRequest, Ended, LiveLoop, LiveSession, LiveSink, Shutdown, TickOutcome};
use super::{VERSION, confine, event_loop, netns_spec, preflight};
use crate::advise::case::Case;
use crate::advise::measure::Measure;
use crate::advise::refused::FirstTimeouts;
use crate::advise::report::{self, Advice, Source};
use crate::cli::{AdviceFormat, AdviseConfig, BackendChoice, Config};
use crate::conntrack::module;
use crate::conntrack::{addresses, census};
use crate::contract::Notice;
use crate::error::{Exit, Failure};
use crate::kernel::roots::Roots;
use crate::kernel::standing::{OUTSIDE, Standing};
use crate::machine::Host;
use crate::model::{Backend, Locals, Loss, Sample};
use crate::netns::{self, Netns};
use crate::probe::plan::ProbeOptions;
use crate::sandbox::{Files, Work};
use crate::stderr::Progress;
use crate::text::did_you_mean;
use crate::{stderr, view};
use collect::{Senders, case, collect_facts};

/// Between two samples.
const TICK: Duration = Duration::from_secs(1);

/// Runs it.
pub fn run(config: &Config, advise: &AdviseConfig) -> Result<Exit> {
    if let Some(path) = &advise.recording {
        return recorded::run(config, advise, path);
    }
    let standing = confine(config, Work::RunsPrograms, &Files::default());
    event_loop()?.block_on(measure_and_advise(config, advise, &standing))
}

async fn measure_and_advise(config: &Config, advise: &AdviseConfig, standing: &Standing) -> Result<Exit> {
    let roots = config.roots();
    let own = netns::own()?;
    let wanted =
        netns_spec::resolve(advise.netns.as_slice())?.and_then(|ids| ids.first().copied()).unwrap_or(own);
    if module::loaded(&roots).is_none() {
        return Err(if module::is_hidden(&roots) { hidden() } else { not_loaded() });
    }
    let namespaces = netns::discover()?;
    let netns = namespaces
        .get(&wanted)
        .cloned()
        .ok_or_else(|| Failure::usage(format!("--netns: {wanted} is gone")))?;
    let mut shutdown = Shutdown::new()?;
    let Some(Watched { mut measure, senders, measured_by, mut notes }) =
        watch(config, advise, &roots, standing, &netns, &mut shutdown).await?
    else {
        return Ok(Exit::Done);
    };
    // What comes now is read and written in one go, and may wait for programs, /proc and the reader.
    shutdown.end_within(Duration::ZERO);
    let host = Host { roots, ..Host::default() };
    let progress = Progress::show(|| "reading the table, the machine and its firewall".to_owned());
    let found = netns::run_inside(&netns, || collect_facts(&host, &netns, &mut measure, &senders))
        .with_context(|| {
            format!("looking at {}", netns.name.as_ref().map_or("the netns".to_owned(), ToString::to_string))
        })?;
    drop(progress);
    notes.extend(found.notes.iter().cloned());
    let asked = advise.what_if.as_ref().map_or(&[][..], |changes| &changes.notrack);
    let case = case(found, &measure, &netns, own, advise.times, &advise.keep, asked);
    let exempt =
        case.ways_in.iter().filter(|way| case.facts(&way.target).is_some_and(|facts| facts.untracked));
    notes.extend(
        exempt.map(|way| {
            format!("{} is exempt from tracking already: a full table doesn't shut it", way.target)
        }),
    );
    let source = Source {
        version: VERSION,
        time: Timestamp::now(),
        netns: netns.id,
        name: netns.name.clone(),
        window_s: measure.seconds(),
        measured_by,
        notes,
    };
    show(config, advise, &case, source)
}

/// Prints what follows from the case.
fn show(config: &Config, advise: &AdviseConfig, case: &Case, source: Source) -> Result<Exit> {
    let mut report = report::report(case, source, advise.what_if.as_ref());
    let chosen = choose(&report, advise)?;
    match advise.format {
        AdviceFormat::Sh => {
            let items: Vec<_> = report.items.iter().filter(|item| chosen.contains(&item.id)).collect();
            view::sh::write(stdout().lock(), &report, &items).context("writing the script")?;
        }
        AdviceFormat::Report(format) => {
            report.items.retain(|item| chosen.contains(&item.id));
            super::view(format, &config.look).advice(&report).context("writing the advice")?;
        }
    }
    Ok(Exit::Done)
}

/// Which pieces were asked for; for a script all that commands can do if none was.
fn choose(report: &Advice, advise: &AdviseConfig) -> Result<Vec<String>> {
    let all = || report.items.iter().map(|item| item.id.clone());
    let unknown: Vec<&String> = advise.items.iter().filter(|id| !all().any(|known| known == **id)).collect();
    if let Some(id) = unknown.first() {
        let known: Vec<String> = all().collect();
        let known = if known.is_empty() { "there is none now".to_owned() } else { known.join(", ") };
        let near = did_you_mean(id, all().collect::<Vec<_>>().iter().map(String::as_str));
        let text = format!("--item {id}: there is no such piece of advice; {known}{near}");
        return Err(Failure::usage(text).into());
    }
    if !advise.items.is_empty() {
        return Ok(advise.items.clone());
    }
    Ok(match advise.format {
        AdviceFormat::Report(_) => all().collect(),
        AdviceFormat::Sh => {
            let able = report.items.iter().filter(|item| !item.commands.now.is_empty());
            able.map(|item| item.id.clone()).collect()
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

/// Takes what the live loop sees into the measurement, until the window is over.
struct Measuring {
    measure: Measure,
    senders: Senders,
    window_s: f64,
    notes: Vec<String>,
}

impl LiveSink for Measuring {
    fn loss(&mut self, loss: &Loss) -> Result<()> {
        self.measure.loss(loss);
        self.senders.note(loss);
        Ok(())
    }

    /// Differences from the kernel's counters don't matter here: refusals are counted per service.
    fn sample(&mut self, sample: &Sample) -> Result<TickOutcome> {
        self.measure.sample(sample);
        Ok(TickOutcome::default())
    }

    fn notice(&mut self, notice: &Notice) -> Result<()> {
        self.notes.push(notice.text.sentence().into_owned());
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.measure.seconds() >= self.window_s - TICK.as_secs_f64() / 2.0
    }
}

/// Watches for the length of the window; `None` if it was ended before.
async fn watch(
    config: &Config,
    advise: &AdviseConfig,
    roots: &Roots,
    standing: &Standing,
    netns: &Netns,
    shutdown: &mut Shutdown,
) -> Result<Option<Watched>> {
    let request = AttachRequest { roots, choice: BackendChoice::Auto, standing, log_level: 0 };
    let options = |_, unasked: ProbeOptions| ProbeOptions {
        flows: unasked.kprobes,
        loss_events: true,
        // When each packet was refused, and its ICMP type.
        event_details: true,
        owners: true,
        ..unasked
    };
    let not_loaded = |_: &Notice| Err(not_loaded());
    let Some(LiveSession { mut watch, backend, reason, start }) =
        LiveSession::attach(request, options, not_loaded, shutdown).await?
    else {
        return Ok(None);
    };
    let mut notes = start.notes;
    let counts_flows = backend == Backend::Kprobe;
    if !counts_flows {
        notes.push(format!(
            "flows can't be counted here ({}): arrivals are read from the timeouts of the entries that are there",
            reason.unwrap_or_else(|| format!("{} backend", backend.name()))
        ));
    }
    let window_s = advise.window.as_secs_f64();
    if config.verbosity > 0 {
        stderr::line(format_args!("measuring for {window_s:.0} s"));
    }
    let began = Instant::now();
    let _progress = Progress::show(move || {
        format!(
            "measuring new flows and drops: {:.0} s left",
            (window_s - began.elapsed().as_secs_f64()).max(0.0)
        )
    });
    let (timeouts, first_timeouts, locals) = netns::run_inside(netns, || {
        let locals = Locals::new(&addresses::local_addresses()?);
        Ok((census::read_timeouts(), FirstTimeouts::new(census::read_first(&FirstTimeouts::SYSCTLS)), locals))
    })?;
    let measure = Measure::new(netns.id, window_s, timeouts, counts_flows).of_netns(locals, first_timeouts);
    let mut sink = Measuring { measure, senders: Senders::default(), window_s, notes };
    // The window begins with a sample of its own.
    sink.sample(&watch.sample()?)?;
    if let Ended::Stopped(_) = LiveLoop::default().run(&mut watch, &mut sink, shutdown, TICK).await? {
        return Ok(None);
    }
    live::flush_pending(&mut watch, &mut sink)?;
    let Measuring { measure, senders, window_s: _, notes } = sink;
    let measured_by = if counts_flows { "kprobe" } else { "census" };
    Ok(Some(Watched { measure, senders, measured_by, notes }))
}

/// An error with exit code 3.
fn hidden() -> anyhow::Error {
    Failure::cannot_watch(format!("{}; {}", preflight::HIDDEN, OUTSIDE)).into()
}

fn not_loaded() -> anyhow::Error {
    Failure::cannot_watch(
        "nf_conntrack is not loaded: nothing is tracked here, so no table can be full and there is nothing to advise",
    )
    .into()
}
