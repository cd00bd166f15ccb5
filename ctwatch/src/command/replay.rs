//! `ctwatch replay`: a recording through the state and the views of `drops`, as fast as it was or faster.
//! Each run of a recording is a watch of its own: from its start record to its summary.

use std::collections::HashMap;
use std::io::stdout;
use std::time::Duration;

use anyhow::{Result, bail};
use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::drops::Shown;
use super::live::LiveSink as _;
use super::live::Shutdown;
use super::{confine, event_loop, view_of_ticks};
use crate::cli::{Config, NetnsSpec, ReplayConfig, Speed};
use crate::contract::{Notice, SCHEMA, Start};
use crate::error::{Exit, Failure};
use crate::foreign::Shown as _;
use crate::model::{HOST_NETNS, NetnsId};
use crate::record::reader::RecordedRun;
use crate::record::replay::Replay;
use crate::record::rows::Names;
use crate::record::span::Span;
use crate::record::{Fault, Recording, ticks_read};
use crate::sandbox::{Files, Work};
use crate::state::{State, StateConfig};
use crate::stderr::Progress;
use crate::text::{did_you_mean, thousands};

/// Runs it.
pub fn run(config: &Config, arguments: &ReplayConfig) -> Result<Exit> {
    confine(config, Work::Reads, &Files::read([&arguments.file]));
    event_loop()?.block_on(replay(config, arguments))
}

async fn replay(config: &Config, arguments: &ReplayConfig) -> Result<Exit> {
    // It waits for whoever reads, as nothing goes on meanwhile: what isn't read soon after a signal, nobody reads.
    let mut shutdown = Shutdown::of_reader()?;
    let recording = Recording::open(&arguments.file)?;
    let runs = recording.runs()?;
    let span = match recording.bounds(&runs)? {
        Some(bounds) => {
            let span = Span::of(arguments.from, arguments.to, bounds, &config.look.time_zone);
            span.map_err(Failure::usage)?
        }
        None => bail!("replaying {}: it contains no runs", arguments.file.shown()),
    };
    let names = runs.iter().map(|run| recording.names(run.id)).collect::<Result<Vec<_>>>()?;
    known_netns(&arguments.netns, &names)?;
    let mut before = None;
    let show =
        || Progress::show(|| format!("reading up to where it begins: {} ticks", thousands(ticks_read())));
    let mut progress = Some(show());
    for (run, names) in runs.iter().zip(&names) {
        // It may hold nothing of the span.
        if span.is_after(run.run.started.time) {
            break;
        }
        let netns = selected(&arguments.netns, names);
        let settings = settings(arguments, run, netns.clone());
        let shown = Shown {
            view: view_of_ticks(
                stdout(),
                arguments.format,
                &config.look,
                netns,
                Duration::from_micros(run.run.interval_us.unsigned_abs()),
            ),
            state: State::new(settings),
            output: None,
        };
        let mut player = Player { shown, began: None, elapsed_s: 0.0, last: run.run.started.time };
        let wants_losses = player.shown.state.wants_events();
        let replay = Replay::new(&recording, run, span, wants_losses)?;
        let is_over = player.play(replay, run, before, arguments.speed, &mut shutdown, &mut progress).await?;
        before = Some(player.last);
        if is_over {
            break;
        }
    }
    Ok(Exit::Done)
}

/// Shows one run.
struct Player {
    shown: Shown,
    /// When its first tick was shown, and its monotonic time.
    began: Option<(Instant, i64)>,
    elapsed_s: f64,
    /// When its last tick ended.
    last: Timestamp,
}

impl Player {
    /// Returns whether it was ended from outside. `before` is when the run before this one ended.
    async fn play(
        &mut self,
        mut replay: Replay<'_>,
        run: &RecordedRun,
        before: Option<Timestamp>,
        speed: Speed,
        shutdown: &mut Shutdown,
        progress: &mut Option<Progress>,
    ) -> Result<bool> {
        let mut called = false;
        loop {
            let step = match replay.step() {
                Ok(Some(step)) => step,
                Ok(None) => break,
                Err(error) if is_stopped(&error) => {
                    called = true;
                    break;
                }
                Err(error) => return Err(error),
            };
            self.last = step.sample.time;
            if !step.is_shown {
                self.shown.state.advance(&step.sample);
                called = pause(shutdown, None).await;
                if called {
                    break;
                }
                continue;
            }
            if self.began.is_none() {
                // From here on it shows by itself how far it is.
                drop(progress.take());
                self.start(run, before, step.sample.time, step.sample.interval_s)?;
            }
            let (at, mono_us) = *self.began.get_or_insert((Instant::now(), step.mono_us));
            let since =
                Duration::from_micros(u64::try_from(step.mono_us.saturating_sub(mono_us)).unwrap_or(0));
            called = pause(shutdown, speed.scaled(since).and_then(|since| at.checked_add(since))).await;
            if called {
                break;
            }
            for notice in &step.notices {
                self.shown.notice(notice)?;
            }
            if step.is_sampled {
                self.shown.state.mark_sampled();
            }
            for loss in &step.losses {
                self.shown.loss(loss)?;
            }
            self.elapsed_s += step.sample.interval_s;
            self.shown.sample(&step.sample)?;
        }
        if self.began.is_some() {
            if !called {
                for notice in replay.closing_notices() {
                    self.shown.notice(&notice)?;
                }
            }
            let mut end = self.shown.state.end(self.last);
            end.duration_s = self.elapsed_s;
            self.shown.view.end(&end)?;
        }
        Ok(called)
    }

    fn start(
        &mut self,
        run: &RecordedRun,
        before: Option<Timestamp>,
        first: Timestamp,
        interval_s: f64,
    ) -> Result<()> {
        let RecordedRun { id, run, .. } = run;
        self.shown.view.start(&Start {
            schema: SCHEMA,
            version: run.version.clone(),
            time: run.started.time,
            kernel_release: run.kernel_release.clone(),
            backend: run.backend,
            backend_reason: run.backend_reason.clone(),
            hooks: run.report_hooks(),
            since_boot: run.since_boot,
            kernel_counters_from: None,
        })?;
        let host = run.host.as_ref().map(|host| format!(" on {host}")).unwrap_or_default();
        let text = format!("replaying run {id}{host}, started {:.0}", run.started.time);
        self.shown.notice(&Notice { time: run.started.time, code: "replay", text: text.into() })?;
        if let Some(before) = before.filter(|before| *before < run.started.time) {
            let text = format!("not recorded: {before:.0} to {:.0}", run.started.time);
            self.shown.notice(&Notice { time: run.started.time, code: "gap", text: text.into() })?;
        }
        let began = first.as_microsecond() - (interval_s * 1e6) as i64;
        if began > run.started.time.as_microsecond() + 2 * run.interval_us.max(1_000_000) {
            let text = format!("totals count from {first:.0}, not from the start of the run");
            self.shown.notice(&Notice { time: first, code: "span", text: text.into() })?;
        }
        Ok(())
    }
}

/// A signal came while it read.
fn is_stopped(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Fault>(), Some(Fault::Stopped(_)))
}

/// Waits until then, or only looks; returns whether the run is to end.
async fn pause(shutdown: &mut Shutdown, until: Option<Instant>) -> bool {
    let pause = async {
        match until {
            Some(until) => sleep_until(until).await,
            None => tokio::task::yield_now().await,
        }
    };
    tokio::select! {
        biased;
        _ = shutdown.wait() => true,
        () = pause => false,
    }
}

fn settings(arguments: &ReplayConfig, run: &RecordedRun, netns: Option<Vec<NetnsId>>) -> StateConfig {
    StateConfig {
        by: arguments.by,
        filter: crate::state::Filter { netns, ..arguments.filter.clone() },
        top: arguments.top,
        drop_events: arguments.drop_events,
        insert_events: false,
        count_flows: run.run.counts_flows,
        backend: run.run.backend,
    }
}

/// Refuses a netns that no run has.
fn known_netns(wanted: &[NetnsSpec], runs: &[HashMap<NetnsId, Names>]) -> Result<()> {
    for spec in wanted {
        if let NetnsSpec::Pid(pid) = spec {
            let text = format!(
                "--netns pid:{pid}: a recording doesn't contain processes' namespaces; use a name or an inode number"
            );
            return Err(Failure::usage(text).into());
        }
        if !runs.iter().flatten().any(|(id, names)| is(spec, *id, names)) {
            let mut there: Vec<String> =
                runs.iter().flatten().map(|(id, names)| called(*id, names)).collect();
            there.sort();
            there.dedup();
            let near = match spec {
                NetnsSpec::Name(name) => did_you_mean(name, there.iter().map(String::as_str)),
                _ => String::new(),
            };
            let text = format!("--netns: not in this recording{near}; there are {}", there.join(", "));
            return Err(Failure::usage(text).into());
        }
    }
    Ok(())
}

fn called(id: NetnsId, names: &Names) -> String {
    names.name.as_ref().map_or_else(|| id.to_string(), ToString::to_string)
}

fn is(spec: &NetnsSpec, id: NetnsId, names: &Names) -> bool {
    match spec {
        NetnsSpec::Host => names.name.as_ref().is_some_and(|name| *name == HOST_NETNS),
        NetnsSpec::Name(name) => names.name.as_ref().is_some_and(|own| own.is_called(name)),
        NetnsSpec::Inode(number) => number.means(id),
        NetnsSpec::Pid(_) => false,
    }
}

/// The namespaces of a run that were asked for; `None`: all.
fn selected(wanted: &[NetnsSpec], names: &HashMap<NetnsId, Names>) -> Option<Vec<NetnsId>> {
    let chosen =
        |(id, names): (&NetnsId, &Names)| wanted.iter().any(|spec| is(spec, *id, names)).then_some(*id);
    (!wanted.is_empty()).then(|| names.iter().filter_map(chosen).collect())
}
