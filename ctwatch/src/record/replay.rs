//! A run of a recording, tick by tick, as input for `state`, with the notices a reader needs along the way.
//! No clock and no view: playback speed and presentation are up to the caller.

mod baseline;
mod notices;

use std::collections::HashMap;

use anyhow::Result;

use super::delta_decoder::DeltaDecoder;
use super::reader::{RecordedRun, Recording, Stored, Ticks};
use super::rows::Names;
use super::span::Span;
use crate::contract::Notice;
use crate::model::{Loss, NetnsId, Sample};
use baseline::Baseline;
use notices::ReplayNotices;

/// One tick.
#[derive(Debug)]
pub struct Step {
    /// Notices to show before it.
    pub notices: Vec<Notice>,
    /// Losses in it that were recorded individually.
    pub losses: Vec<Loss>,
    /// There were more losses than that.
    pub is_sampled: bool,
    /// Everything counted at its end.
    pub sample: Sample,
    /// CLOCK_MONOTONIC at its end, microseconds.
    pub mono_us: i64,
    /// It is in the requested span. Earlier ticks have to go into `state`, too: they determine what occupies the table.
    pub is_shown: bool,
}

/// One run.
#[derive(Debug)]
pub struct Replay<'a> {
    recording: &'a Recording,
    ticks: Ticks<'a>,
    names: HashMap<NetnsId, Names>,
    span: Span,
    wants_losses: bool,
    decoder: DeltaDecoder,
    baseline: Baseline,
    notices: ReplayNotices,
    done: bool,
}

impl<'a> Replay<'a> {
    /// The part of a run in this span, with individual losses if they are wanted.
    ///
    /// # Errors
    /// The file is damaged. The same goes for the methods below.
    pub fn new(recording: &'a Recording, run: &RecordedRun, span: Span, wants_losses: bool) -> Result<Self> {
        Ok(Self {
            recording,
            ticks: recording.ticks(run, i64::MIN..=i64::MAX)?,
            names: recording.names(run.id)?,
            span,
            wants_losses,
            decoder: DeltaDecoder::default(),
            baseline: Baseline::default(),
            notices: ReplayNotices::new(recording, run)?,
            done: false,
        })
    }

    /// The names of this run's namespaces.
    #[must_use]
    pub const fn names(&self) -> &HashMap<NetnsId, Names> {
        &self.names
    }

    /// The next tick.
    ///
    /// # Errors
    /// See [`Replay::new`].
    pub fn step(&mut self) -> Result<Option<Step>> {
        if self.done {
            return Ok(None);
        }
        let Some(stored) = self.ticks.next().transpose()? else {
            self.done = true;
            return Ok(None);
        };
        if self.span.is_after(stored.tick.time) {
            self.done = true;
            self.notices.cut_short();
            return Ok(None);
        }
        let Stored { id, first, level: _, tick } = &stored;
        self.decoder.add(tick);
        let mut sample = self.decoder.sample(tick, &self.names);
        let is_shown = self.baseline.is_set() || self.span.is_after_from(tick.time);
        let mut step = Step {
            notices: self.notices.before(&stored, is_shown),
            losses: Vec::new(),
            is_sampled: false,
            mono_us: tick.mono_us,
            is_shown,
            sample: if is_shown {
                self.baseline.set();
                self.baseline.subtract(&mut sample);
                sample
            } else {
                self.baseline.take(&mut sample);
                sample
            },
        };
        if is_shown && self.wants_losses && tick.events_seen > 0 {
            step.losses = self.recording.losses(*first..=*id)?.into_iter().map(|(_, loss)| loss).collect();
            step.is_sampled = (step.losses.len() as u64) < tick.events_seen;
            self.notices.count_events(step.losses.len() as u64, tick.events_seen);
        }
        Ok(Some(step))
    }

    /// Notices to show at the end: how the run ended, and what is missing.
    #[must_use]
    pub fn closing_notices(&self) -> Vec<Notice> {
        self.notices.closing_notices()
    }
}
