//! `ctwatch drops`: the live stream.
//! Every number comes from the watch and goes through the state; every word goes through the view.

use std::io::{IsTerminal as _, stdout};

use anyhow::Result;
use jiff::Timestamp;

use super::live::{self, AttachRequest, LiveLoop, LiveSession, LiveSink, Shutdown, TickOutcome};
use super::output::Output;
use super::{confine, event_loop, netns_spec, view_of_ticks};
use crate::cli::{BackendChoice, Config, DropsConfig, TableFullBy};
use crate::contract::{End, Notice};
use crate::error::Exit;
use crate::kernel::roots::Roots;
use crate::kernel::standing::Standing;
use crate::model::{Backend, Insert, Loss, Sample};
use crate::probe::diagnostics;
use crate::probe::plan::ProbeOptions;
use crate::sandbox::{Files, Work};
use crate::state::State;
use crate::view::View;

/// Runs it.
pub fn run(config: &Config, drops: &DropsConfig) -> Result<Exit> {
    let roots = config.roots();
    let lists_only = drops.backend == BackendChoice::Forced(Backend::Counters);
    let work = if lists_only { Work::Lists } else { Work::Watches };
    let standing = confine(config, work, &Files::default());
    event_loop()?.block_on(stream(config, drops, roots, &standing))
}

async fn stream(config: &Config, drops: &DropsConfig, roots: Roots, standing: &Standing) -> Result<Exit> {
    // Wrong usage is told before anything waits or is loaded.
    let wanted_netns = netns_spec::resolve(&drops.netns)?;
    let (out, output) = Output::open()?;
    let mut view = view_of_ticks(out, drops.format, &config.look, wanted_netns.clone(), drops.interval);
    let mut shutdown = Shutdown::new()?;
    let log_level = if config.verbosity >= 2 { diagnostics::DEBUG } else { 0 };
    let config_of = |backend| drops.settings(backend, wanted_netns.clone());
    let request = AttachRequest { roots: &roots, choice: drops.backend, standing, log_level };
    let options = |backend: Backend, unasked: ProbeOptions| ProbeOptions {
        flows: unasked.kprobes && (drops.count_flows || drops.insert_events),
        insert_events: drops.insert_events,
        loss_events: config_of(backend).wants_events(),
        event_details: drops.drop_events || drops.insert_events,
        owners: drops.drop_events || drops.by.needs_owners(),
        invalid: drops.filter.wants_invalid(),
        trace_init_conntrack: drops.table_full == TableFullBy::InitConntrack,
        ..unasked
    };
    let waiting = |notice: &Notice| Ok(view.notice(notice)?);
    let Some(mut session) = LiveSession::attach(request, options, waiting, &mut shutdown).await? else {
        return output.finish().map(|()| Exit::Done);
    };
    if !stdout().is_terminal() {
        // A reader of rows alone hears of it, too.
        session.tell_if_counters_must_do(drops.backend);
    }
    view.start(&session.start_record(&roots))?;
    let mut shown = Shown { state: State::new(config_of(session.backend)), view, output: Some(output) };
    shutdown.after(drops.duration);
    session.watch.start_census();
    LiveLoop::default().run(&mut session.watch, &mut shown, &mut shutdown, drops.interval).await?;
    live::finish(&mut session.watch, &mut shown)?;
    shown.end(&shown.state.end(Timestamp::now()))?;
    Ok(Exit::Done)
}

/// What is seen goes into the state, and what that says to the view.
pub(super) struct Shown {
    pub state: State,
    pub view: Box<dyn View>,
    /// Where nobody waits for the reader.
    pub output: Option<Output>,
}

impl Shown {
    /// The summary, which waits a while for its reader.
    pub fn end(&mut self, end: &End) -> Result<()> {
        let Some(output) = &mut self.output else { return Ok(self.view.end(end)?) };
        if let Some(notice) = output.last_words() {
            self.view.notice(&notice)?;
        }
        self.view.end(&End { unwritten_lines: output.left_out(), ..end.clone() })?;
        output.finish()
    }
}

impl LiveSink for Shown {
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

    fn sample(&mut self, sample: &Sample) -> Result<TickOutcome> {
        if let Some(notice) = self.output.as_mut().and_then(Output::news) {
            self.view.notice(&notice)?;
        }
        let tick = self.state.sample(sample);
        self.view.tick(&tick)?;
        Ok(TickOutcome { unexplained: tick.unexplained, lost_events: tick.lost_events })
    }

    fn notice(&mut self, notice: &Notice) -> Result<()> {
        Ok(self.view.notice(notice)?)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.view.flush()?)
    }

    fn poll(&mut self) -> Result<()> {
        // A reader who went is noticed.
        self.flush()
    }
}
