//! `ctwatch drops`: the live stream.
//! Every number comes from the watch and goes through the state; every word goes through the view.

use anyhow::Result;
use jiff::Timestamp;

use super::live::stop::Stop;
use super::live::{self, Follower, Loop, Seen, resolve_netns};
use super::{VERSION, event_loop, view};
use crate::cli::{Config, DropsConfig, TableFullBy};
use crate::contract::Notice;
use crate::error::Exit;
use crate::kernel::roots::Roots;
use crate::model::{Backend, Insert, Loss, Sample};
use crate::probe::diagnostics;
use crate::probe::plan::{ProbeOptions, RawTpReentrancy};
use crate::state::State;
use crate::view::View;

/// Runs it.
pub fn run(config: &Config, drops: &DropsConfig) -> Result<Exit> {
    let roots = config.roots();
    event_loop()?.block_on(stream(config, drops, roots))
}

async fn stream(config: &Config, drops: &DropsConfig, roots: Roots) -> Result<Exit> {
    // Wrong usage is told before anything waits or is loaded.
    let wanted_netns = resolve_netns(&drops.netns)?;
    let mut view = view(drops.format, &config.look, wanted_netns.clone());
    let mut stop = Stop::new()?;
    let log_level = if config.verbosity >= 2 { diagnostics::DEBUG } else { 0 };
    let settings = |backend| drops.settings(backend, wanted_netns.clone());
    let attached = live::attach(
        &roots,
        drops.backend,
        log_level,
        |backend, found| wishes(drops, backend, found.raw_tracepoints, settings(backend).wants_events()),
        |notice| Ok(view.notice(notice)?),
        &mut stop,
    );
    let Some(mut attached) = attached.await? else { return Ok(Exit::Done) };
    view.start(&attached.start(VERSION, &roots))?;
    let mut shown = Shown { state: State::new(settings(attached.backend)), view };
    stop.after(drops.duration);
    attached.watch.start_census();
    Loop::default().run(&mut attached.watch, &mut shown, &mut stop, drops.interval).await?;
    live::finish(&mut attached.watch, &mut shown)?;
    shown.view.end(&shown.state.end(Timestamp::now()))?;
    Ok(Exit::Done)
}

/// What is seen goes into the state, and what that says to the view.
pub(super) struct Shown {
    pub state: State,
    pub view: Box<dyn View>,
}

impl Follower for Shown {
    fn loss(&mut self, loss: &Loss) -> Result<()> {
        match self.state.loss(loss) {
            Some(event) => Ok(self.view.event(&event)?),
            None => Ok(()),
        }
    }

    fn insert(&mut self, insert: &Insert) -> Result<()> {
        match self.state.insert(insert) {
            Some(event) => Ok(self.view.event(&event)?),
            None => Ok(()),
        }
    }

    fn sample(&mut self, sample: &Sample) -> Result<Seen> {
        let tick = self.state.sample(sample);
        self.view.tick(&tick)?;
        Ok(Seen { unexplained: tick.unexplained, lost_events: tick.lost_events })
    }

    fn notice(&mut self, notice: &Notice) -> Result<()> {
        Ok(self.view.notice(notice)?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.view.flush()?)
    }
}

fn wishes(
    drops: &DropsConfig,
    backend: Backend,
    raw_tracepoints: RawTpReentrancy,
    loss_events: bool,
) -> Option<ProbeOptions> {
    let kprobes = match backend {
        Backend::Kprobe => true,
        Backend::Tracepoint => false,
        Backend::Counters => return None,
    };
    Some(ProbeOptions {
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
