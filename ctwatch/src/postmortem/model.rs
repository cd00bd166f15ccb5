//! The postmortem as data: what every format shows, and the JSON contract of docs/schema/report.json.
//! Fields are added, never renamed or given another meaning within one schema number.

use ctwatch_common::Cause;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::at::At;
use super::clock::Clock;
use super::headline::Facts;
use super::series::Point;
use crate::advise::report::Advice;
use crate::contract::{Agreements, Counted, Unexplained, millis, optional_millis, optional_rounded, rounded};
use crate::foreign::Foreign;
use crate::model::{Backend, KernelCounters, ServicePort};

/// The report.
#[derive(Debug, Serialize)]
pub struct Postmortem {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) schema: u32,
    pub(super) version: &'static str,
    /// One a file, in the order given.
    pub(super) hosts: Vec<Host>,
}

/// What one recording says.
#[derive(Debug, Serialize)]
pub(super) struct Host {
    /// What happened in one sentence; its times are UTC.
    pub headline: String,
    #[serde(skip)]
    pub facts: Facts,
    pub file: Foreign,
    pub host: Option<Foreign>,
    pub kernel_release: Option<Foreign>,
    pub backend: Option<Backend>,
    /// What was looked at; null if no tick is in it.
    pub span: Option<Span>,
    /// The incident asked for, or all in the span.
    pub incidents: Vec<IncidentLine>,
    /// What happened.
    pub story: Story,
    /// Losses by cause, those without a port of their own included.
    pub counted: Counted,
    /// Affected services, flows, sources and processes.
    pub victims: Victims,
    /// What filled the table at the worst moment; null if there is no table.
    pub worst: Option<Worst>,
    /// Each table that lost something or was at least half full, at its own worst moment, worst first.
    pub tables: Vec<Worst>,
    /// How many more there are.
    pub more_tables: usize,
    /// Losses by the fill of the fullest table.
    pub by_fill: Vec<Band>,
    /// Those that came while no table had a limit, or none was known; null if there was no such time.
    pub no_fill: Option<NoFill>,
    /// Changes of settings, before and during the incident.
    pub changes: Vec<Change>,
    /// New entries by service, before onset and from the first loss to the last.
    pub arrivals: Vec<Arrivals>,
    pub kernel_counters: KernelCounters,
    pub in_kernel_terms: KernelCounters,
    pub unexplained: Unexplained,
    pub agreement: Agreements,
    /// What would have prevented the losses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<Advice>,
    /// Why there is no advice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_advice: Option<String>,
    pub certainty: Certainty,
    /// For the panels.
    pub timeline: Vec<Point>,
}

impl Host {
    /// What it is called: by its name, else by the recording's.
    pub fn title(&self) -> &Foreign {
        self.host.as_ref().unwrap_or(&self.file)
    }

    /// How its times are written in this zone.
    pub fn clock(&self, zone: &TimeZone) -> Clock {
        Clock::of_span(zone, self.span.map(|span| (span.from.time, span.to.time)))
    }
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Span {
    pub from: At,
    pub to: At,
    /// Time that ticks account for.
    #[serde(serialize_with = "rounded")]
    pub watched_s: f64,
    pub ticks: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct IncidentLine {
    pub number: i64,
    pub condition: Foreign,
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    #[serde(serialize_with = "optional_millis")]
    pub ceased: Option<Timestamp>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Story {
    /// The onset: 90 % full, or something was lost. Times are ends of ticks.
    #[serde(serialize_with = "optional_millis")]
    pub first_sign: Option<Timestamp>,
    /// The fill then.
    #[serde(serialize_with = "optional_rounded")]
    pub fill_at_first_sign: Option<f64>,
    #[serde(serialize_with = "optional_millis")]
    pub full_at: Option<Timestamp>,
    #[serde(serialize_with = "optional_millis")]
    pub first_loss: Option<Timestamp>,
    #[serde(serialize_with = "optional_millis")]
    pub last_loss: Option<Timestamp>,
    /// From the beginning of the first tick with losses to the end of the last one.
    #[serde(serialize_with = "rounded")]
    pub lasted_s: f64,
    /// Of that, in ticks that lost something.
    #[serde(serialize_with = "rounded")]
    pub losing_s: f64,
    pub packets_lost: u64,
    pub entries_lost: u64,
    /// The highest fill.
    pub peak: Option<Fill>,
    /// The most entries of a table without a limit; null if each has one.
    pub unlimited: Option<Unlimited>,
}

impl Story {
    /// From the beginning of the first tick with losses to the end of the last one.
    pub fn losing(&self) -> Option<(Timestamp, Timestamp)> {
        let last = self.last_loss?;
        Some((last - SignedDuration::from_secs_f64(self.lasted_s), last))
    }
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Fill {
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    pub netns: Foreign,
    pub count: u32,
    pub max: u32,
    #[serde(serialize_with = "rounded")]
    pub fill: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Unlimited {
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    pub netns: Foreign,
    pub count: u32,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Victims {
    /// From exact counters.
    pub ports: Vec<VictimPort>,
    /// From sampled events, as all that follow.
    pub flows: Vec<Estimate>,
    pub sources: Vec<Estimate>,
    pub processes: Vec<Estimate>,
}

#[derive(Debug, Serialize)]
pub(super) struct VictimPort {
    pub netns: Foreign,
    /// Null where the tuple was missed.
    pub port: Option<ServicePort>,
    pub service: Option<&'static str>,
    pub loopback: Option<bool>,
    pub cause: &'static str,
    pub unit: &'static str,
    pub losses: u64,
}

/// Losses of something only events know.
#[derive(Debug, Serialize)]
pub(super) struct Estimate {
    pub what: String,
    /// Packets, scaled up from the sample.
    #[serde(serialize_with = "rounded")]
    pub about: f64,
    /// Events it was seen in.
    pub events: u64,
}

/// The worst moment.
#[derive(Debug, Serialize)]
pub(super) struct Worst {
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    pub netns: Foreign,
    pub count: Option<u32>,
    pub max: Option<u32>,
    #[serde(serialize_with = "rounded")]
    pub lost_per_s: f64,
    pub occupants: Vec<Occupant>,
    /// Assured entries at the nearest census, which a full table can't make room of; null if there was none.
    pub unevictable: Option<Unevictable>,
    /// They are as the table was listed, because it hadn't been by then; else counted since.
    pub as_listed: bool,
    /// Nothing came or went uncounted, and the kernel counted as many.
    pub exact: bool,
    /// The nearest census or listing, which tells the parts in TIME_WAIT; null if there is none in the run.
    #[serde(serialize_with = "optional_millis")]
    pub listed_at: Option<Timestamp>,
    /// Seconds from it to the worst moment; negative if it came later.
    #[serde(serialize_with = "optional_rounded")]
    pub listed_s_before: Option<f64>,
}

/// Entries that a full table can't make room of.
#[derive(Debug, Serialize)]
pub(super) struct Unevictable {
    pub entries: u64,
    /// Of so many.
    pub of: u64,
    #[serde(serialize_with = "millis")]
    pub at: Timestamp,
}

#[derive(Debug, Serialize)]
pub(super) struct Occupant {
    /// Null: all others.
    pub port: Option<ServicePort>,
    pub service: Option<&'static str>,
    pub entries: u64,
    /// Of the table.
    #[serde(serialize_with = "rounded")]
    pub share: f64,
    /// In TIME_WAIT in the nearest census or listing; null if it has no such state, or wasn't in it.
    #[serde(serialize_with = "optional_rounded")]
    pub time_wait: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Band {
    /// From this fill on, to the next band.
    pub from: f64,
    /// Time the fullest table was in it.
    #[serde(serialize_with = "rounded")]
    pub seconds: f64,
    pub packets_lost: u64,
    pub entries_lost: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct NoFill {
    #[serde(serialize_with = "rounded")]
    pub seconds: f64,
    pub packets_lost: u64,
    pub entries_lost: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Change {
    #[serde(rename = "time")]
    pub at: At,
    pub name: Foreign,
    pub before: Option<Foreign>,
    pub value: Option<Foreign>,
}

#[derive(Debug, Serialize)]
pub(super) struct Arrivals {
    pub port: ServicePort,
    pub service: Option<&'static str>,
    /// New entries per second; null if there was no time before.
    #[serde(serialize_with = "optional_rounded")]
    pub before_per_s: Option<f64>,
    /// Null if nothing was lost.
    #[serde(serialize_with = "optional_rounded")]
    pub during_per_s: Option<f64>,
}

/// Data quality.
#[derive(Debug, Default, Serialize)]
pub(super) struct Certainty {
    /// Causes were inferred, not seen, in one of the runs at least.
    pub inferred: bool,
    pub lost_events: u64,
    /// Losses without a known port.
    pub without_port: u64,
    pub ambiguous: u64,
    pub events_seen: u64,
    pub events_kept: u64,
    pub thinned_ticks: u64,
    /// Sums of the oldest ticks, whose times are unknown.
    pub dropped_ticks: u64,
    /// Between ticks or runs.
    pub gaps: Vec<Gap>,
    pub clock_steps: Vec<Step>,
    /// Runs without an end record.
    pub unfinished_runs: Vec<String>,
    /// Runs that ended because something failed.
    pub broken_runs: Vec<String>,
    pub notices: Vec<NoticeLine>,
    pub counts_flows: bool,
    /// No program was there: only the kernel counted.
    #[serde(skip)]
    pub kernel_only: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Gap {
    pub from: At,
    #[serde(serialize_with = "rounded")]
    pub seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Step {
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    #[serde(serialize_with = "rounded")]
    pub seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct NoticeLine {
    #[serde(serialize_with = "millis")]
    pub time: Timestamp,
    pub code: Foreign,
    pub text: Foreign,
}

/// Causes in their order, of which something was counted.
pub(super) fn causes(counted: &Counted) -> impl Iterator<Item = (Cause, u64)> {
    Cause::ALL.into_iter().map(|cause| (cause, counted.of(cause))).filter(|(_, losses)| *losses > 0)
}
