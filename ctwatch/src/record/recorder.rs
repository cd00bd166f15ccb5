//! Assembles what is recorded each tick, and decides when an incident begins and ends.
//! Fed by a watch or anything that looks like one; writes through the writer thread only.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use anyhow::Result;

use super::delta_encoder::DeltaEncoder;
use super::kept_settings::KeptSettings;
use super::limits;
use super::rows::{EndReason, Incident, MachineSnapshot, Names, NetnsSetting, Notice, RunEnd, StoredListing};
use super::rules::StoredRules;
use super::sampler::{COARSE, DETAILED, Sampler};
use super::sysctls::Sysctls;
use super::tick::Tick;
use super::trigger::{Condition, Measured, Trigger, Turn};
use super::writer::Batch;
use super::writer_thread::{IncidentNumber, WriterThread};
use crate::contract::Tick as Report;
use crate::kernel::roots::Roots;
use crate::model::{Loss, NetnsId, Sample, WallMono};
use crate::state::{State, StateConfig};

/// Interval between readings of the settings, microseconds: each reads some forty files.
const SETTINGS_EVERY_US: i64 = 5_000_000;

/// How long an incident waits for its number, microseconds; after that it is announced without one.
const NUMBER_WITHIN_US: i64 = 5_000_000;

/// How to record.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Conditions that trigger incidents.
    pub when: Vec<Condition>,
    /// How long before a trigger detail is kept.
    pub before: Duration,
    /// How long after its condition clears detail is kept.
    pub after: Duration,
    /// Time between two ticks.
    pub interval: Duration,
}

/// A trigger fired.
#[derive(Clone, Debug, PartialEq)]
pub struct Fired {
    /// Which condition.
    pub condition: String,
    /// The tick it fired in.
    pub tick: i64,
    /// That tick's end.
    pub at: WallMono,
    /// What was measured in it.
    pub measured: Measured,
}

/// What came of a sample.
#[derive(Debug)]
pub struct Outcome {
    /// What `drops` would show.
    pub report: Report,
    /// Triggers that fired.
    pub fired: Vec<Fired>,
}

/// Records.
#[derive(Debug)]
pub struct Recorder {
    plan: Plan,
    state: State,
    encoder: DeltaEncoder,
    sampler: Sampler,
    sysctls: Sysctls,
    kept_settings: KeptSettings,
    names: HashMap<NetnsId, Names>,
    triggers: Vec<(Trigger, Option<Incident>)>,
    /// To be written with the next tick.
    pending: Batch,
    /// `None` between two files, and after opening the next one failed.
    writer: Option<WriterThread>,
    next_tick: i64,
    /// Ticks whose detail a trigger would keep: number, and end in microseconds.
    recent: VecDeque<(i64, i64)>,
    settings_at: Option<i64>,
    held_up: bool,
    /// It was said that slots or namespaces have no room.
    is_full: bool,
    incidents: u64,
    /// Triggers that fired and have no number yet.
    unnumbered: Vec<Fired>,
    /// Triggers that have one.
    numbered: Vec<(Fired, i64)>,
}

impl Recorder {
    /// Records into a file whose next tick has this number.
    #[must_use]
    pub fn new(
        plan: Plan,
        settings: StateConfig,
        roots: &Roots,
        writer: WriterThread,
        next_tick: i64,
    ) -> Self {
        let triggers = plan.when.iter().map(|when| (Trigger::new(when.clone(), plan.after), None)).collect();
        let limit = if plan.when.is_empty() { COARSE } else { DETAILED };
        Self {
            plan,
            state: State::new(settings),
            encoder: DeltaEncoder::default(),
            sampler: Sampler::new(limit),
            sysctls: Sysctls::new(roots),
            kept_settings: KeptSettings::default(),
            names: HashMap::new(),
            triggers,
            pending: Batch::default(),
            writer: Some(writer),
            next_tick,
            recent: VecDeque::new(),
            settings_at: None,
            held_up: false,
            is_full: false,
            incidents: 0,
            unnumbered: Vec::new(),
            numbered: Vec::new(),
        }
    }

    /// Takes a loss.
    pub fn loss(&mut self, loss: &Loss) {
        self.sampler.add(loss);
    }

    /// Takes a notice. One that is longer than any should be, as names in it may make it, is cut: no reader takes it.
    pub fn notice(&mut self, at: WallMono, code: &str, text: &str) {
        let end = text.floor_char_boundary(limits::NOTICE);
        let text = if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() };
        self.pending.notices.push(Notice { at, code: code.into(), text: text.into() });
    }

    /// Takes a snapshot of the machine and of a table.
    pub fn found(&mut self, listing: Option<StoredListing>, facts: Option<MachineSnapshot>) {
        self.pending.listings.extend(listing);
        match facts {
            // No reader takes it.
            Some(facts) if facts.json.len() > limits::FACTS => {
                let text = format!(
                    "what is known of the machine takes {} bytes, more than a recording keeps: it is left out",
                    facts.json.len()
                );
                self.notice(facts.at, "facts_too_large", &text);
            }
            facts => self.pending.facts.extend(facts),
        }
    }

    /// Takes a rule set that is new or changed.
    pub fn rules(&mut self, rules: StoredRules) {
        self.pending.rules.push(rules);
    }

    /// Takes settings of another netns that are new or changed.
    pub fn netns_settings(&mut self, settings: impl IntoIterator<Item = NetnsSetting>) {
        let was_cut = self.kept_settings.is_cut();
        for setting in settings {
            self.pending.netns_settings.extend(self.kept_settings.keep(setting));
        }
        if self.kept_settings.is_cut() && !was_cut {
            self.notice(
                WallMono::now(),
                "settings_cut",
                "settings of other netns are longer, or change more often, than a recording keeps: some are unknown from here on",
            );
        }
    }

    /// Takes the sample at the end of an interval.
    ///
    /// # Errors
    /// Writing failed: [`Recorder::finish`] says why.
    pub fn sample(&mut self, sample: &Sample) -> Result<Outcome> {
        let at = WallMono { time: sample.time, mono_us: sample.mono_us };
        let mono_us = sample.mono_us;
        let report = self.state.sample(sample);
        if self.settings_at.is_none_or(|last| mono_us - last >= SETTINGS_EVERY_US) {
            self.settings_at = Some(mono_us);
            self.pending.settings.extend(self.sysctls.changes(at));
        }
        let fired = self.run_triggers(&report, at);
        self.unnumbered.extend(fired.iter().cloned());
        for netns in self.writer.iter().flat_map(WriterThread::forgotten) {
            self.kept_settings.forget(netns);
        }
        if self.writer.as_ref().is_some_and(WriterThread::is_full)
            && !std::mem::replace(&mut self.is_full, true)
        {
            let (slots, netns) = (super::SLOTS, super::NETNS);
            let text = format!(
                "this run has more ports or namespaces than a recording keeps apart ({slots} and {netns}): totals stay exact, \
                 but for namespaces beyond that no single losses, table listings, firewall rules or settings are kept. A \
                 new file (SIGHUP) starts afresh"
            );
            self.notice(at, "slots_full", &text);
        }
        if self.keeps_up() {
            let mut tick = self.encoder.tick(sample);
            let unexplained = &report.unexplained;
            tick.unexplained = [
                unexplained.drop,
                unexplained.early_drop,
                unexplained.insert_failed,
                unexplained.chaintoolong,
            ];
            self.learn_names(sample);
            self.write(tick)?;
            self.held_up = false;
        } else if !std::mem::replace(&mut self.held_up, true) {
            self.notice(at, "disk_slow", "the disk can't keep up: ticks get longer, and no counts are lost");
        }
        Ok(Outcome { report, fired })
    }

    fn write(&mut self, mut tick: Tick) -> Result<()> {
        let (seen, events) = self.sampler.take();
        tick.events_seen = seen;
        let before_us = self.plan.before.as_micros() as i64;
        self.recent.push_back((self.next_tick, tick.mono_us));
        while self.recent.front().is_some_and(|(_, mono_us)| tick.mono_us - mono_us > before_us) {
            self.recent.pop_front();
        }
        self.next_tick += 1;
        let batch = Batch { tick: Some(tick), events, ..std::mem::take(&mut self.pending) };
        self.writer.as_ref().map_or(Ok(()), |writer| writer.send(batch))
    }

    /// Records names of namespaces that are new or changed.
    fn learn_names(&mut self, sample: &Sample) {
        for netns in &sample.netns {
            let names = Names { name: netns.name.clone(), container: netns.container.clone() };
            if self.names.get(&netns.id) != Some(&names) {
                self.pending.names.insert(netns.id, names.clone());
                self.names.insert(netns.id, names);
            }
        }
        // Of those that went nothing more is told.
        if self.names.len() > 2 * sample.netns.len() + 64 {
            let there: HashSet<NetnsId> = sample.netns.iter().map(|netns| netns.id).collect();
            self.names.retain(|id, _| there.contains(id));
        }
    }

    fn run_triggers(&mut self, report: &Report, at: WallMono) -> Vec<Fired> {
        let tick = self.next_tick;
        let after = ticks_in(self.plan.after, self.plan.interval);
        let before_us = self.plan.before.as_micros() as i64;
        let is_detail = |(_, mono_us): &&(i64, i64)| at.mono_us - mono_us <= before_us;
        let detail_from = self.recent.iter().find(is_detail).map_or(tick, |(number, _)| *number);
        let mut fired = Vec::new();
        for (trigger, incident) in &mut self.triggers {
            let condition = trigger.condition().to_string();
            match (trigger.check(report, at.mono_us as f64 / 1e6), &mut *incident) {
                (Turn::Fired(measured), _) => {
                    self.incidents += 1;
                    let new = Incident {
                        condition: condition.as_str().into(),
                        tick,
                        at,
                        measured: serde_json::to_string(&measured).unwrap_or_default(),
                        detail_from,
                        detail_to: tick + after,
                        ceased: None,
                    };
                    self.pending.incidents.push(new.clone());
                    *incident = Some(new);
                    fired.push(Fired { condition, tick, at, measured });
                }
                // Now and then, so that little is lost if the recorder is killed.
                (Turn::Holds, Some(incident)) if tick + after - incident.detail_to > after / 8 => {
                    incident.detail_to = tick + after;
                    self.pending.incidents.push(incident.clone());
                }
                (Turn::Over, Some(over)) => {
                    over.detail_to = tick;
                    over.ceased =
                        Some(at.time - jiff::SignedDuration::try_from(self.plan.after).unwrap_or_default());
                    self.pending.incidents.push(over.clone());
                    *incident = None;
                }
                _ => {}
            }
        }
        fired
    }

    /// Whether the next tick will be written; if not, it is merged into the one after it.
    #[must_use]
    pub fn keeps_up(&self) -> bool {
        self.writer.as_ref().is_none_or(WriterThread::has_room)
    }

    /// Incidents so far.
    #[must_use]
    pub const fn incidents(&self) -> u64 {
        self.incidents
    }

    /// Incidents now in the file, with their numbers there; without a number if writing failed or takes too long. Each is
    /// returned once.
    pub fn numbered(&mut self, mono_us: i64) -> Vec<(Fired, Option<i64>)> {
        let news: Vec<IncidentNumber> = self.writer.iter().flat_map(WriterThread::numbers).collect();
        self.learn_numbers(news);
        let is_open = self.writer.is_some();
        let too_long = |one: &mut Fired| !is_open || mono_us - one.at.mono_us > NUMBER_WITHIN_US;
        let known =
            std::mem::take(&mut self.numbered).into_iter().map(|(fired, number)| (fired, Some(number)));
        known.chain(self.unnumbered.extract_if(.., too_long).map(|fired| (fired, None))).collect()
    }

    fn learn_numbers(&mut self, news: impl IntoIterator<Item = IncidentNumber>) {
        for IncidentNumber { condition, tick, number } in news {
            let is_it = |fired: &Fired| fired.tick == tick && fired.condition == condition;
            if let Some(index) = self.unnumbered.iter().position(is_it) {
                self.numbered.push((self.unnumbered.remove(index), number));
            }
        }
    }

    /// Whether an incident is open, including the time kept after it.
    #[must_use]
    pub fn has_open_incident(&self) -> bool {
        self.triggers.iter().any(|(_, incident)| incident.is_some())
    }

    /// The state with its totals.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Ends the file: writes what was deferred, and why the run ended.
    ///
    /// # Errors
    /// Writing failed, now or earlier.
    pub fn finish(&mut self, reason: EndReason) -> Result<()> {
        let at = WallMono::now();
        for (_, incident) in &mut self.triggers {
            if let Some(incident) = incident {
                incident.detail_to = self.next_tick;
                self.pending.incidents.push(incident.clone());
            }
        }
        let tick = self.encoder.flush_deferred(at.time, at.mono_us);
        self.next_tick += i64::from(tick.is_some());
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        let numbers = writer.take_numbers();
        // If that failed, finishing says why.
        let _ = writer.send(Batch { tick, ..std::mem::take(&mut self.pending) });
        let finished = writer.finish(RunEnd { at, reason, last_tick: self.next_tick - 1 });
        self.learn_numbers(numbers.into_iter().flatten());
        finished
    }

    /// Continues in another file, after [`Recorder::finish`]. Open incidents continue there.
    pub fn continue_in(&mut self, writer: WriterThread, next_tick: i64) {
        self.writer = Some(writer);
        self.next_tick = next_tick;
        self.encoder.begin_file();
        self.sysctls.forget();
        self.kept_settings = KeptSettings::default();
        self.settings_at = None;
        self.is_full = false;
        self.names.clear();
        self.recent.clear();
        for (_, incident) in &mut self.triggers {
            if let Some(incident) = incident {
                (incident.tick, incident.detail_from) = (next_tick, next_tick);
                incident.detail_to = next_tick + ticks_in(self.plan.after, self.plan.interval);
                self.pending.incidents.push(incident.clone());
            }
        }
    }
}

fn ticks_in(time: Duration, interval: Duration) -> i64 {
    (time.as_secs_f64() / interval.as_secs_f64()).ceil() as i64
}
