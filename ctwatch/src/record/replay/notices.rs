//! What the reader of a recording should know: its notices, changed settings, incidents, and what is missing from it.
//! Pure except for reading these rows once.

use std::collections::VecDeque;

use anyhow::Result;
use jiff::Timestamp;

use crate::contract::Notice;
use crate::foreign::Foreign;
use crate::record::reader::{RecordedRun, Recording, Stored};
use crate::record::rows::{EndReason, Notice as Recorded};

/// The wall clock was stepped if it moved this much more or less than the monotonic one.
const STEP_US: i64 = 1_000_000;

/// Notices recorded in the run, and those that arise from its ticks.
#[derive(Debug)]
pub(super) struct ReplayNotices {
    /// By CLOCK_MONOTONIC, microseconds.
    recorded: VecDeque<(i64, Notice)>,
    level: u8,
    /// The last tick's end: wall clock, and monotonic in microseconds.
    last: Option<(Timestamp, i64)>,
    kept: u64,
    seen: u64,
    is_cut_short: bool,
    end: Option<(Timestamp, EndReason)>,
    began: Timestamp,
    continues: bool,
    is_first: bool,
}

impl ReplayNotices {
    pub fn new(recording: &Recording, run: &RecordedRun) -> Result<Self> {
        let mut recorded = Vec::new();
        for notice in recording.notices(run.id)? {
            let (code, text) = known(&notice);
            recorded.push((notice.at.mono_us, Notice { time: notice.at.time, code, text }));
        }
        for setting in recording.settings(run.id)? {
            let Some(before) = setting.before else { continue };
            let now = setting.value.as_ref().map_or_else(|| "no such setting".to_owned(), Foreign::to_string);
            let text = format!("{} was {before} and is now {now}", setting.name);
            recorded.push((
                setting.at.mono_us,
                Notice { time: setting.at.time, code: "setting_changed", text: text.into() },
            ));
        }
        for (number, incident) in recording.incidents(run.id)? {
            let text = format!("incident {number}: {}", incident.condition);
            recorded.push((
                incident.at.mono_us,
                Notice { time: incident.at.time, code: "incident", text: text.into() },
            ));
        }
        recorded.sort_by_key(|(mono_us, _)| *mono_us);
        Ok(Self {
            recorded: recorded.into(),
            level: 0,
            last: None,
            kept: 0,
            seen: 0,
            is_cut_short: false,
            end: run.end.map(|end| (end.at.time, end.reason)),
            began: run.run.started.time,
            continues: run.run.continues,
            is_first: true,
        })
    }

    /// Notices to show before a tick.
    pub fn before(&mut self, stored: &Stored, is_shown: bool) -> Vec<Notice> {
        let tick = &stored.tick;
        let mut notices = Vec::new();
        while self.recorded.front().is_some_and(|(mono_us, _)| *mono_us <= tick.mono_us) {
            notices.extend(self.recorded.pop_front().map(|(_, notice)| notice));
        }
        let mut say = |code, text: String| notices.push(Notice { time: tick.time, code, text: text.into() });
        if let Some((wall, mono_us)) = self.last.replace((tick.time, tick.mono_us)) {
            let by = tick.time.as_microsecond() - wall.as_microsecond() - (tick.mono_us - mono_us);
            if by.abs() > STEP_US {
                let by = by as f64 / 1e6;
                say(
                    "clock_stepped",
                    format!(
                        "the wall clock moved {by:+.1} s against CLOCK_MONOTONIC: it was set, or the host slept"
                    ),
                );
            }
        }
        if !is_shown {
            return Vec::new();
        }
        if std::mem::take(&mut self.is_first) && self.continues {
            say("continues", "this run continues from an earlier file; totals count from here".to_owned());
        }
        if stored.level != self.level {
            self.level = stored.level;
            say("thinned", downsampled(stored.level));
        }
        notices
    }

    pub const fn count_events(&mut self, kept: u64, seen: u64) {
        self.kept += kept;
        self.seen += seen;
    }

    /// The span ended before the run did.
    pub const fn cut_short(&mut self) {
        self.is_cut_short = true;
    }

    pub fn closing_notices(&self) -> Vec<Notice> {
        let time = self.last.map_or(self.began, |(time, _)| time);
        let mut notices = Vec::new();
        let mut say = |time, code, text: String| notices.push(Notice { time, code, text: text.into() });
        if self.kept < self.seen {
            let (kept, seen) = (self.kept, self.seen);
            say(
                time,
                "events_sampled",
                format!(
                    "{kept} of {seen} drops were recorded individually: rows by flow, source, destination, process or \
                     container are lower bounds; those by port, protocol, cause and netns come from counters"
                ),
            );
        }
        match self.end {
            _ if self.is_cut_short => {}
            None => say(
                time,
                "no_end",
                "the run has no end record: still running, or recorder or host stopped".to_owned(),
            ),
            Some((ended, EndReason::DiskFull)) => {
                say(ended, "disk_full", "recording ended here: the disk was full".to_owned());
            }
            Some((ended, EndReason::Failed)) => {
                say(ended, "failed", "recording ended here: the recorder failed".to_owned());
            }
            Some((ended, EndReason::Rotated)) => {
                say(ended, "rotated", "the run continues in a later file".to_owned());
            }
            Some((_, EndReason::Signal | EndReason::Duration | EndReason::Once)) => {}
        }
        notices
    }
}

fn downsampled(level: u8) -> String {
    let length = match level {
        0 => return "from here on ticks are as they were recorded".to_owned(),
        1 => "10 s",
        2 => "1 min",
        3 => "10 min",
        _ => {
            return "what follows is the sum of dropped ticks: totals are exact, timing is lost".to_owned();
        }
    };
    format!("from here on ticks are downsampled to {length}: totals are exact, timing is coarser")
}

/// A code of the contract; notices with other codes become `recorded`.
fn known(notice: &Recorded) -> (&'static str, Foreign) {
    let Recorded { code, text, .. } = notice;
    let codes = [
        "waiting_for_conntrack",
        "conntrack_unloaded",
        "reattached",
        "losses_without_tuple",
        "no_census",
        "events_lost",
    ];
    match codes.into_iter().find(|known| *code == *known) {
        Some(known) => (known, text.clone()),
        None => ("recorded", format!("{code}: {}", text.sentence()).into()),
    }
}
