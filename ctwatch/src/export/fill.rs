//! From a recording to rows: everything in it, checked, run by run and tick by tick.
//! Reads only what is asked for; memory doesn't grow with the recording.

mod drops;

use std::collections::HashMap;

use anyhow::Result;
use ctwatch_common::Cause;
use ctwatch_common::slot::{SlotKey, SlotKind};
use jiff::Timestamp;

use super::{ExportTable, Sink, Value};
use crate::contract::fill;
use crate::foreign::Foreign;
use crate::model::{Census, NetnsId, PortParts, Protocol, ServicePort};
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;
use crate::record::reader::{RecordedRun, Stored};
use crate::record::rows::{Names, NetnsSetting, Setting};
use crate::record::rules::Packed;
use crate::record::span::Span;
use crate::record::tick::NetnsTick;
use drops::Drops;

/// What to export.
#[derive(Debug)]
pub struct Choice {
    /// These tables.
    pub tables: Vec<ExportTable>,
    /// What happened in this span. Runs and first readings of settings from before it are included.
    pub span: Span,
    /// Replaces what identifies somebody.
    pub anonymizer: Option<Anonymizer>,
}

impl Choice {
    fn wants(&self, table: ExportTable) -> bool {
        // Machine snapshots are full of addresses and names.
        self.tables.contains(&table) && !(table == ExportTable::Machine && self.anonymizer.is_some())
    }
}

/// Exports a recording.
///
/// # Errors
/// The recording is damaged, or a row can't be written.
pub fn export(recording: &Recording, mut choice: Choice, sink: &mut dyn Sink) -> Result<()> {
    for recorded in recording.runs()? {
        if choice.span.is_after(recorded.run.started.time) {
            break;
        }
        let mut names = recording.names(recorded.id)?;
        if let Some(anonymizer) = &mut choice.anonymizer {
            // Replacements are numbered in the order of ids, not that of a hash table.
            let mut ids: Vec<NetnsId> = names.keys().copied().collect();
            ids.sort();
            ids.iter()
                .filter_map(|id| names.get_mut(id).map(|names| anonymizer.names(names)).map(drop))
                .count();
        }
        let run = Run { recording, recorded: &recorded, names: &names };
        run.about(&mut choice, sink)?;
        run.ticks(&mut choice, sink)?;
    }
    sink.finish()
}

/// One run.
struct Run<'a> {
    recording: &'a Recording,
    recorded: &'a RecordedRun,
    names: &'a HashMap<NetnsId, Names>,
}

/// A row of values of different types.
macro_rules! row {
    ($($value:expr),+ $(,)?) => { [$(Value::from($value)),+] };
}
use row;

impl Run<'_> {
    /// Everything but ticks.
    fn about(&self, choice: &mut Choice, sink: &mut dyn Sink) -> Result<()> {
        let id = self.recorded.id;
        if choice.wants(ExportTable::Runs) {
            self.start(choice, sink)?;
        }
        let span = choice.span;
        if choice.wants(ExportTable::Settings) {
            // First readings apply until they change.
            let settings = self.recording.settings(id)?.into_iter().filter(|setting| {
                span.contains(setting.at.time)
                    || (setting.before.is_none() && !span.is_after(setting.at.time))
            });
            for setting in settings {
                const NONE: Value = Value::Null;
                let [time, name, value, before] =
                    row![setting.at.time, setting.name, setting.value, setting.before];
                let row = [Value::from(id), time, name, value, before, NONE, NONE];
                sink.row(ExportTable::Settings, &row)?;
            }
            self.netns_settings(span, sink)?;
        }
        if choice.wants(ExportTable::Incidents) {
            for (number, one) in self.recording.incidents(id)? {
                if span.contains(one.at.time) {
                    let (from, to) = (one.detail_from, one.detail_to);
                    let row = row![
                        id,
                        number,
                        one.at.time,
                        one.condition,
                        one.tick,
                        Value::Json(one.measured.into()),
                        from,
                        to,
                        one.ceased
                    ];
                    sink.row(ExportTable::Incidents, &row)?;
                }
            }
        }
        if choice.wants(ExportTable::Notices) {
            for notice in self.recording.notices(id)? {
                if span.contains(notice.at.time) {
                    // The text may contain names.
                    let text = choice
                        .anonymizer
                        .is_none()
                        .then_some(notice.text)
                        .map_or(Value::Null, Value::Sentence);
                    sink.row(ExportTable::Notices, &row![id, notice.at.time, notice.code, text])?;
                }
            }
        }
        if choice.wants(ExportTable::Machine) {
            for head in self.recording.machine_heads(id)? {
                if span.contains(head.at.time) {
                    let facts = self.recording.machine(id, &head)?;
                    sink.row(
                        ExportTable::Machine,
                        &row![id, facts.at.time, facts.reason.name(), Value::Json(facts.json.into())],
                    )?;
                }
            }
        }
        if choice.wants(ExportTable::Rules) {
            self.rules(span, choice.anonymizer.is_some(), sink)?;
        }
        if choice.wants(ExportTable::Listings) { self.listings(span, sink) } else { Ok(()) }
    }

    fn netns_settings(&self, span: Span, sink: &mut dyn Sink) -> Result<()> {
        let id = self.recorded.id;
        for NetnsSetting { netns, setting } in self.recording.netns_settings(id)? {
            let is_first = setting.before.is_none() && !span.is_after(setting.at.time);
            if span.contains(setting.at.time) || is_first {
                let (number, called) = (netns.inode(), self.name(netns));
                let Setting { at, name, value, before } = setting;
                let row = row![id, at.time, name, value, before, number, called];
                sink.row(ExportTable::Settings, &row)?;
            }
        }
        Ok(())
    }

    /// Rules are full of addresses and names: without them, that there were some is what is left.
    fn rules(&self, span: Span, anonymous: bool, sink: &mut dyn Sink) -> Result<()> {
        let id = self.recorded.id;
        let all = self.recording.rules_heads(id)?;
        // When the next ones of the same netns were read, found from the end.
        let mut later = HashMap::new();
        let mut next: Vec<_> = all.iter().rev().map(|head| later.insert(head.netns, head.at.time)).collect();
        next.reverse();
        for (head, next) in all.iter().zip(next) {
            // The last from before apply until they change.
            let is_before = |time| !span.contains(time) && !span.is_after(time);
            let applies = is_before(head.at.time) && next.is_none_or(|next| !is_before(next));
            if !span.contains(head.at.time) && !applies {
                continue;
            }
            let stored = self.recording.rule_set(id, head)?;
            let packed = stored.rules.as_ref();
            let text = packed.filter(|_| !anonymous).map(Packed::unpack).transpose()?;
            let text = text.map_or(Value::Null, |text| Value::Json(text.into()));
            let (time, reason, netns) = (stored.at.time, stored.reason.name(), stored.netns);
            let bytes = packed.map(|packed| packed.size);
            let row = row![id, time, reason, netns.inode(), self.name(netns), bytes, text];
            sink.row(ExportTable::Rules, &row)?;
        }
        Ok(())
    }

    fn start(&self, choice: &mut Choice, sink: &mut dyn Sink) -> Result<()> {
        let RecordedRun { id, run, end, .. } = self.recorded;
        let mut run = run.clone();
        if let Some(anonymizer) = &mut choice.anonymizer {
            anonymizer.run(&mut run);
        }
        let row = row![
            *id,
            run.host,
            run.boot_id,
            run.version,
            run.kernel_release,
            run.backend.name(),
            run.backend_reason,
            run.interval_us as f64 / 1e6,
            run.counts_flows,
            run.continues,
            run.started.time,
            end.map(|end| end.at.time),
            end.map(|end| end.reason.name()),
        ];
        sink.row(ExportTable::Runs, &row)
    }

    fn listings(&self, span: Span, sink: &mut dyn Sink) -> Result<()> {
        let id = self.recorded.id;
        for head in self.recording.listing_heads(id)? {
            if !span.contains(head.at.time) {
                continue;
            }
            let listing = self.recording.listing(id, &head)?;
            for ((proto, port, direction), collected) in listing.census.services() {
                for (phase, seen) in &collected.phases {
                    let proto = *proto;
                    let PortParts { port, service, icmp_type, icmp_code } =
                        ServicePort { proto, port: *port }.parts();
                    let row = row![
                        id,
                        listing.at.time,
                        listing.reason.name(),
                        listing.netns.inode(),
                        self.name(listing.netns),
                        proto.to_string(),
                        port,
                        service,
                        direction.name(),
                        phase.name(),
                        seen.timeout,
                        seen.entries,
                        seen.entered,
                        listing.census.look_s(),
                        collected.pairs(),
                        icmp_type,
                        icmp_code,
                    ];
                    sink.row(ExportTable::Listings, &row)?;
                }
            }
        }
        Ok(())
    }

    fn ticks(&self, choice: &mut Choice, sink: &mut dyn Sink) -> Result<()> {
        let of_ticks = |table: &ExportTable| *table <= ExportTable::Occupancy && *table != ExportTable::Runs;
        if !choice.tables.iter().any(of_ticks) {
            return Ok(());
        }
        let mut drops = choice.wants(ExportTable::Drops).then(|| Drops::new(self.recorded.run.backend));
        for stored in self.recording.ticks(self.recorded, i64::MIN..=i64::MAX)? {
            let stored = stored?;
            if choice.span.is_after(stored.tick.time) {
                break;
            }
            if !choice.span.is_after_from(stored.tick.time) {
                continue;
            }
            self.tick(&stored, choice, sink)?;
            if let Some(drops) = drops.as_mut().filter(|_| stored.tick.events_seen > 0) {
                for (tick, mut loss) in self.recording.losses(stored.first..=stored.id)? {
                    if let Some(anonymizer) = &mut choice.anonymizer {
                        anonymizer.loss(&mut loss);
                    }
                    let name = self.name(loss.packet.netns);
                    if let Some(row) = drops.row(self.recorded.id, tick, name, &loss) {
                        sink.row(ExportTable::Drops, &row)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn tick(&self, stored: &Stored, choice: &Choice, sink: &mut dyn Sink) -> Result<()> {
        let (run, tick) = (self.recorded.id, &stored.tick);
        let at = At { run, tick: stored.id, time: tick.time, interval_s: tick.interval_us as f64 / 1e6 };
        if choice.wants(ExportTable::Ticks) {
            let [drop, early_drop, insert_failed, chaintoolong] = tick.unexplained;
            let row = row![
                run,
                stored.id,
                stored.first,
                stored.level,
                tick.time,
                tick.mono_us,
                at.interval_s,
                tick.restarted,
                tick.ambiguous,
                tick.lost_events.iter().sum::<i64>(),
                tick.events_seen,
                drop,
                early_drop,
                insert_failed,
                chaintoolong,
            ];
            sink.row(ExportTable::Ticks, &row)?;
        }
        if choice.wants(ExportTable::Fills) {
            for netns in &tick.netns {
                sink.row(ExportTable::Fills, &self.fill(&at, netns))?;
            }
        }
        if choice.wants(ExportTable::Losses) {
            for (key, losses) in &tick.losses {
                if let Some(row) = self.losses(&at, *key, *losses) {
                    sink.row(ExportTable::Losses, &row)?;
                }
            }
            for cause in Cause::ALL {
                let losses = tick.overflow[cause as usize];
                if losses != 0 {
                    sink.row(ExportTable::Losses, &overflow(&at, cause, losses))?;
                }
            }
        }
        if choice.wants(ExportTable::Arrivals) {
            for (key, [inserts, deletes, failed]) in &tick.flows {
                let (netns, proto) = (NetnsId::from_packed(key.netns), Protocol(key.proto));
                let At { run, tick, time, interval_s } = at;
                let (inserts, name) = (inserts - failed, self.name(netns));
                let PortParts { port, service, icmp_type, icmp_code } =
                    ServicePort { proto, port: key.port }.parts();
                let row = row![
                    run,
                    tick,
                    time,
                    interval_s,
                    netns.inode(),
                    name,
                    proto.to_string(),
                    port,
                    service,
                    inserts,
                    *deletes,
                    icmp_type,
                    icmp_code,
                ];
                sink.row(ExportTable::Arrivals, &row)?;
            }
        }
        if choice.wants(ExportTable::Occupancy) {
            for census in &tick.censuses {
                self.occupancy(&at, census, sink)?;
            }
        }
        Ok(())
    }

    fn name(&self, netns: NetnsId) -> Option<Foreign> {
        self.names.get(&netns).and_then(|names| names.name.clone())
    }

    fn fill(&self, at: &At, netns: &NetnsTick) -> [Value; 15] {
        let NetnsTick { id, presence, complete: _, count, peak, max, kernel, width: _ } = *netns;
        let [drop, early_drop, insert_failed, chaintoolong] = kernel;
        let container = self.names.get(&id).and_then(|names| names.container.clone());
        row![
            at.run,
            at.tick,
            at.time,
            id.inode(),
            self.name(id),
            container,
            !presence.is_there(),
            count,
            peak,
            max,
            count.zip(max).and_then(|(count, max)| fill(count, max)),
            drop,
            early_drop,
            insert_failed,
            chaintoolong,
        ]
    }

    fn losses(&self, at: &At, key: SlotKey, losses: i64) -> Option<[Value; 16]> {
        let SlotKind::Loss { cause, loopback, attributed } = key.decode()? else { return None };
        let (netns, proto) = (NetnsId::from_packed(key.netns), Protocol(key.proto));
        let known =
            if attributed { ServicePort { proto, port: key.port }.parts() } else { PortParts::default() };
        let PortParts { port, service, icmp_type, icmp_code } = known;
        Some(row![
            at.run,
            at.tick,
            at.time,
            at.interval_s,
            netns.inode(),
            self.name(netns),
            proto.to_string(),
            port,
            service,
            icmp_type,
            icmp_code,
            attributed.then_some(loopback),
            cause.name(),
            cause.unit().name(),
            losses,
            false,
        ])
    }

    fn occupancy(&self, at: &At, census: &Census, sink: &mut dyn Sink) -> Result<()> {
        for key in &census.keys {
            let proto = key.proto;
            let PortParts { port, service, icmp_type, icmp_code } =
                ServicePort { proto, port: key.port }.parts();
            let row = row![
                at.run,
                at.tick,
                at.time,
                census.netns.inode(),
                self.name(census.netns),
                census.exact,
                proto.to_string(),
                port,
                service,
                key.entries,
                key.assured,
                key.time_wait,
                icmp_type,
                icmp_code,
            ];
            sink.row(ExportTable::Occupancy, &row)?;
        }
        Ok(())
    }
}

/// A position in a recording.
#[derive(Clone, Copy)]
struct At {
    run: i64,
    tick: i64,
    time: Timestamp,
    interval_s: f64,
}

/// Losses without a key (yet).
fn overflow(at: &At, cause: Cause, losses: i64) -> [Value; 16] {
    const NONE: Value = Value::Null;
    let [run, tick, time, interval] = row![at.run, at.tick, at.time, at.interval_s];
    let [cause, unit, losses, overflow] = row![cause.name(), cause.unit().name(), losses, true];
    [run, tick, time, interval, NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE, cause, unit, losses, overflow]
}
