//! From a recording to the postmortem's data: one pass over its ticks, then the sampled events of those that lost something.
//! Reads the recording, decides nothing about looks.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::Result;
use ctwatch_common::Cause;
use ctwatch_common::slot::SlotKind;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::at::At;
use super::clock::Clock;
use super::model::{
    Arrivals, Band, Certainty, Change, Fill, Gap, Host, IncidentLine, NoFill, NoticeLine, Occupant, Span,
    Step, Story, Unevictable, Unlimited, VictimPort, Victims, Worst,
};
use super::names::{AllNames, name, unsigned};
use super::scan::{BANDS, Moment, OCCUPANTS, TickScan};
use super::states::{States, nearest};
use super::{Request, advice, facts::facts, sampled};
use crate::contract::{Agreements, Counted, Unexplained};
use crate::error::Failure;
use crate::foreign::Shown as _;
use crate::model::{Backend, KernelCounters, NetnsId, ServicePort, WallMono};
use crate::record::anonymize::Anonymizer;
use crate::record::reader::RecordedRun;
use crate::record::rows::Names;
use crate::record::rows::{EndReason, Incident};
use crate::record::{Recording, span};

/// Rows of a table of services.
const PORTS: usize = 12;
/// Tables that are told of.
const TABLES: usize = 16;
/// A pause between two runs that is no gap, seconds.
const BETWEEN_RUNS_S: f64 = 2.0;

pub(super) fn host(
    path: &Path,
    request: &Request,
    (span, zone): (span::Span, &TimeZone),
    version: &'static str,
    mut anonymizer: Option<&mut Anonymizer>,
) -> Result<Host> {
    let recording = Recording::open(path)?;
    let runs = recording.runs()?;
    let timeline = recording.timeline()?;
    let incidents = incidents(&recording, &runs)?;
    let chosen = request.incident.map(|number| choose(path, &incidents, number, zone)).transpose()?;
    let chosen_ticks = chosen.as_ref().map(|(_, _, one)| one.detail_from..=one.detail_to);
    let mut scan = TickScan::default();
    let (mut names, mut certainty, mut changes) = (AllNames::new(), Certainty::default(), Vec::new());
    let mut ticks: Option<RangeInclusive<i64>> = None;
    let mut before: Option<At> = None;
    let mut last_run = None;
    let mut scanned = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        if chosen.as_ref().is_some_and(|(of, ..)| *of != run.id) {
            continue;
        }
        let is_inside = |id: i64, time: Timestamp| {
            chosen_ticks.as_ref().is_none_or(|ticks| ticks.contains(&id)) && span.contains(time)
        };
        scan.begin_run(timeline.place_us(run.id, 0));
        scanned.push(run.id);
        let until = chosen_ticks.as_ref().map_or(i64::MAX, |ticks| *ticks.end());
        let (mut touched, mut last) = (false, None);
        let is_first = scan.from.is_none();
        // Where what is told of this run begins.
        let mut since_us = i64::MIN;
        for stored in recording.ticks(run, i64::MIN..=until)? {
            let stored = stored?;
            let inside = is_inside(stored.id, stored.tick.time);
            scan.add(&stored, inside);
            let end = scan.place(WallMono { time: stored.tick.time, mono_us: stored.tick.mono_us });
            if inside {
                if !touched {
                    since_us = begins_us(&span, end, last, scan.from.filter(|_| is_first));
                }
                touched = true;
                let from = ticks.as_ref().map_or(stored.first, |ticks| *ticks.start());
                ticks = Some(from..=stored.id);
            }
            last = Some(end);
        }
        scan.end_run();
        if !touched {
            before = last.or(before);
            continue;
        }
        names.extend(names_of(&recording, run, anonymizer.as_deref_mut())?);
        about_run(
            run,
            index + 1 == runs.len(),
            before.map(|before| (before, scan.place(run.run.started))),
            &mut certainty,
        );
        before = last.or(before);
        let cut = Cut { has_end: span.to.is_some() || request.incident.is_some(), since_us };
        about_settings(&recording, run, cut, &scan, &mut changes, &mut certainty)?;
        certainty.kernel_only |= run.run.backend == Backend::Counters;
        certainty.inferred |= run.run.backend == Backend::Tracepoint;
        last_run = Some(run);
    }
    let unit_is_packets = packets(&scan) > 0;
    let (kept, flows, sources, processes) =
        sampled::estimate(&recording, &scan.lossy, unit_is_packets, anonymizer.as_deref_mut())?;
    certainty.events_kept = kept;
    let (advice, no_advice) = match &ticks {
        Some(ticks) => advice::of(&recording, version, ticks.clone(), anonymizer.as_deref_mut()),
        None => (None, None),
    };
    let shown = incidents.into_iter().filter(|(_, number, one)| {
        request.incident.map_or_else(
            || ticks.as_ref().is_some_and(|ticks| ticks.contains(&one.tick)),
            |wanted| wanted == *number,
        )
    });
    let incidents = shown.map(|(_, number, one)| IncidentLine {
        number,
        condition: one.condition,
        time: one.at.time,
        ceased: one.ceased,
    });
    let incidents = incidents.collect();
    let describes = last_run.or(runs.last());
    fill_in(&scan, &mut certainty, describes);
    let victims = Victims { ports: victim_ports(&scan, &names), flows, sources, processes };
    let counted = Counted(scan.counted.map(unsigned));
    let kernel_counters = KernelCounters::from_array(scan.kernel.map(unsigned));
    let in_kernel_terms = counted.in_kernel_terms();
    let unexplained = Unexplained::from_array(scan.unexplained);
    let (theirs, ours) = (kernel_counters.as_array(), in_kernel_terms.as_array());
    let unheard = std::array::from_fn(|counter| scan.unheard && ours[counter] > theirs[counter]);
    let (mut file, mut host) = (path.shown(), describes.and_then(|run| run.run.host.clone()));
    if let Some(anonymizer) = anonymizer {
        file = "recording".into();
        host = host.map(|host| anonymizer.host(host.raw()).into());
        for notice in &mut certainty.notices {
            notice.text = "text left out".into();
        }
    }
    let states_of = |moment: &Moment| {
        let run = scanned.get(moment.run as usize - 1).copied();
        let listings = run.map(|run| recording.listing_heads(run)).transpose()?.unwrap_or_default();
        let offset_us = timeline.place_us(run.unwrap_or_default(), 0);
        let place = |at: WallMono| At { time: at.time, place_us: offset_us.saturating_add(at.mono_us) };
        nearest(moment.states.as_deref(), &listings, moment.netns, moment.at, place, |head| {
            recording.listing(run.unwrap_or_default(), head)
        })
    };
    let states = scan.worst.as_ref().map(states_of).transpose()?.flatten();
    let (tables, more_tables) = tables(&scan, &names, states_of)?;
    let worst = scan.worst.as_ref().map(|moment| worst(moment, states.as_ref(), &names));
    let facts = facts(&scan, &names, &certainty, worst.as_ref(), states.as_ref());
    let span = scan.from.zip(scan.to).map(|(from, to)| Span {
        from,
        to,
        watched_s: scan.watched_s,
        ticks: scan.ticks,
    });
    Ok(Host {
        headline: facts.sentence(&Clock::of_span(
            &TimeZone::UTC,
            scan.from.zip(scan.to).map(|(from, to)| (from.time, to.time)),
        )),
        facts,
        file,
        host,
        kernel_release: describes.map(|run| run.run.kernel_release.clone()),
        backend: describes.map(|run| run.run.backend),
        span,
        incidents,
        story: story(&scan, &names),
        victims,
        worst,
        tables,
        more_tables,
        by_fill: bands(&scan),
        no_fill: no_fill(&scan),
        changes,
        arrivals: arrivals(&scan),
        kernel_counters,
        in_kernel_terms,
        counted,
        unexplained,
        agreement: Agreements::new(&unexplained, unheard),
        advice,
        no_advice,
        certainty,
        timeline: scan.series.points(),
    })
}

/// In their order, so that the same recording gives the same numbers.
fn names_of(
    recording: &Recording,
    run: &RecordedRun,
    mut anonymizer: Option<&mut Anonymizer>,
) -> Result<Vec<(NetnsId, Names)>> {
    let mut names: Vec<(NetnsId, Names)> = recording.names(run.id)?.into_iter().collect();
    names.sort_by_key(|(id, _)| *id);
    for (_, names) in &mut names {
        if let Some(anonymizer) = anonymizer.as_deref_mut() {
            anonymizer.names(names);
        }
    }
    Ok(names)
}

fn incidents(recording: &Recording, runs: &[RecordedRun]) -> Result<Vec<(i64, i64, Incident)>> {
    let mut all = Vec::new();
    for run in runs {
        all.extend(recording.incidents(run.id)?.into_iter().map(|(number, one)| (run.id, number, one)));
    }
    Ok(all)
}

fn choose(
    path: &Path,
    incidents: &[(i64, i64, Incident)],
    number: i64,
    zone: &TimeZone,
) -> Result<(i64, i64, Incident)> {
    if let Some(found) = incidents.iter().find(|(_, known, _)| *known == number) {
        return Ok(found.clone());
    }
    let known: Vec<String> = incidents
        .iter()
        .map(|(_, number, one)| {
            let time = one.at.time.to_zoned(zone.clone());
            format!("{number} ({}, {})", one.condition, time.strftime("%Y-%m-%d %H:%M:%S %Z"))
        })
        .collect();
    let known = if known.is_empty() { "it has no incidents".to_owned() } else { known.join(", ") };
    let path = path.shown();
    Err(Failure::usage(format!("--incident {number}: {path} has no such incident; {known}")).into())
}

/// How it ended, and what is missing between the last tick before it and its start.
fn about_run(run: &RecordedRun, is_last: bool, between: Option<(At, At)>, certainty: &mut Certainty) {
    let started = run.run.started.time;
    if let Some((before, began)) = between {
        let seconds = began.since(before);
        if seconds > BETWEEN_RUNS_S {
            certainty.gaps.push(Gap { from: before, seconds });
        }
    }
    match run.end {
        None if is_last => {
            certainty.unfinished_runs.push(format!(
                "the run of {started:.0} has no end record: still running, or recorder or host stopped"
            ));
        }
        None => certainty
            .unfinished_runs
            .push(format!("the run of {started:.0} has no end record: its recorder or host stopped")),
        Some(end) if matches!(end.reason, EndReason::DiskFull | EndReason::Failed) => {
            certainty.broken_runs.push(format!("the run of {started:.0} ended early: {}", end.reason.name()));
        }
        Some(_) => {}
    }
}

/// What part of a run is asked for.
#[derive(Clone, Copy)]
struct Cut {
    /// It ends before the recording does.
    has_end: bool,
    /// Where it begins on the timeline.
    since_us: i64,
}

/// Where the part of a run begins whose first tick ends here: after the tick before it, and where `--from` says, if the wall
/// clock wasn't set in between. Of the first run, if nothing says so, where that tick begins.
fn begins_us(span: &span::Span, end: At, before: Option<At>, first: Option<At>) -> i64 {
    let from = match (span.from, first) {
        (Some(from), _) => end.minus(end.time.duration_since(from).as_secs_f64()).place_us,
        (None, Some(first)) => return first.place_us,
        (None, None) => return i64::MIN,
    };
    before.map_or(i64::MIN, |before| before.place_us.max(from))
}

/// Changes of settings, and notices, up to the end of the span.
fn about_settings(
    recording: &Recording,
    run: &RecordedRun,
    cut: Cut,
    scan: &TickScan,
    changes: &mut Vec<Change>,
    certainty: &mut Certainty,
) -> Result<()> {
    let until_us = scan.to.filter(|_| cut.has_end).map_or(i64::MAX, |until| until.place_us);
    let settings = recording.settings(run.id)?.into_iter().filter(|one| one.before.is_some());
    let changed = settings.map(|one| Change {
        at: scan.place(one.at),
        name: one.name,
        before: one.before,
        value: one.value,
    });
    changes.extend(changed.filter(|one| one.at.place_us <= until_us));
    let notices = recording.notices(run.id)?.into_iter();
    let notices = notices.filter(|one| (cut.since_us..=until_us).contains(&scan.place(one.at).place_us));
    certainty.notices.extend(notices.map(|one| NoticeLine {
        time: one.at.time,
        code: one.code,
        text: one.text,
    }));
    Ok(())
}

fn fill_in(scan: &TickScan, certainty: &mut Certainty, run: Option<&RecordedRun>) {
    certainty.counts_flows = run.is_some_and(|run| run.run.counts_flows);
    certainty.lost_events = unsigned(scan.lost_events);
    certainty.without_port = unsigned(scan.without_port.iter().sum());
    certainty.ambiguous = unsigned(scan.ambiguous);
    certainty.events_seen = scan.events_seen;
    certainty.thinned_ticks = scan.thinned;
    certainty.dropped_ticks = scan.dropped;
    certainty
        .gaps
        .extend(scan.gaps.iter().map(|Gap { from, seconds }| Gap { from: *from, seconds: *seconds }));
    certainty.gaps.sort_by_key(|gap| gap.from.place_us);
    certainty.clock_steps =
        scan.steps.iter().map(|step| Step { time: step.time, seconds: step.seconds }).collect();
}

fn packets(scan: &TickScan) -> i64 {
    let packets = |cause: &Cause| cause.unit().name() == "packets" && *cause != Cause::Invalid;
    Cause::ALL.into_iter().filter(packets).map(|cause| scan.counted[cause as usize]).sum()
}

fn story(scan: &TickScan, names: &AllNames) -> Story {
    let entries = [Cause::Evicted, Cause::GcEvicted].map(|cause| scan.counted[cause as usize]).iter().sum();
    let lasted_s = scan
        .first_loss
        .zip(scan.last_loss)
        .map_or(0.0, |((first, interval), (last, _))| last.since(first) + interval);
    Story {
        first_sign: scan.first_sign.map(|(time, _)| time),
        fill_at_first_sign: scan.first_sign.and_then(|(_, fill)| fill),
        full_at: scan.full_at,
        first_loss: scan.first_loss.map(|(at, _)| at.time),
        last_loss: scan.last_loss.map(|(at, _)| at.time),
        lasted_s,
        losing_s: scan.losing_s,
        packets_lost: unsigned(packets(scan)),
        entries_lost: unsigned(entries),
        peak: scan.peak.map(|(time, netns, count, max)| Fill {
            time,
            netns: name(names, netns),
            count,
            max,
            fill: f64::from(count) / f64::from(max),
        }),
        unlimited: scan.unlimited.map(|(time, netns, count)| Unlimited {
            time,
            netns: name(names, netns),
            count,
        }),
    }
}

/// Each table that lost something or was at least half full, at its worst moment, worst first; and how many more there are.
fn tables(
    scan: &TickScan,
    names: &AllNames,
    states_of: impl Fn(&Moment) -> Result<Option<States>>,
) -> Result<(Vec<Worst>, usize)> {
    let mut moments: Vec<&Moment> = scan.troubled.values().collect();
    let rank = |one: &Moment| (one.lost_per_s, one.fill.unwrap_or(0.0));
    moments.sort_by(|a, b| rank(b).partial_cmp(&rank(a)).unwrap_or(Ordering::Equal));
    let more = moments.len().saturating_sub(TABLES);
    moments.truncate(TABLES);
    let told = moments.into_iter().map(|moment| Ok(worst(moment, states_of(moment)?.as_ref(), names)));
    Ok((told.collect::<Result<_>>()?, more))
}

/// What came while no fill was known, if that was any time.
fn no_fill(scan: &TickScan) -> Option<NoFill> {
    let (seconds, packets, entries) = scan.no_fill;
    (seconds > 0.0).then(|| NoFill {
        seconds,
        packets_lost: unsigned(packets),
        entries_lost: unsigned(entries),
    })
}

fn victim_ports(scan: &TickScan, names: &AllNames) -> Vec<VictimPort> {
    let mut ports: Vec<VictimPort> = scan
        .losses
        .iter()
        .filter_map(|(key, losses)| {
            let SlotKind::Loss { cause, loopback, attributed } = key.decode()? else { return None };
            let port = attributed.then_some(ServicePort::of_slot(*key));
            Some(VictimPort {
                netns: name(names, NetnsId::from_packed(key.netns)),
                port,
                service: port.and_then(ServicePort::service),
                loopback: port.map(|_| loopback),
                cause: cause.name(),
                unit: cause.unit().name(),
                losses: unsigned(*losses),
            })
        })
        .filter(|row| row.losses > 0)
        .collect();
    ports.sort_by(|a, b| b.losses.cmp(&a.losses).then(a.port.cmp(&b.port)));
    ports.truncate(PORTS);
    ports
}

/// What filled the table at the worst moment, and what was in TIME_WAIT when it was listed.
fn worst(moment: &Moment, states: Option<&States>, names: &AllNames) -> Worst {
    let as_listed = moment.occupants.is_empty() && states.is_some();
    let (counted, whole): (Vec<(ServicePort, u64)>, u64) = match states.filter(|_| as_listed) {
        Some(states) => (states.largest(OCCUPANTS), states.total),
        None => {
            let counted: Vec<_> =
                moment.occupants.iter().map(|(port, entries)| (*port, unsigned(*entries))).collect();
            (counted, moment.count.unwrap_or(0).into())
        }
    };
    let listed: u64 = counted.iter().map(|(_, entries)| entries).sum();
    let whole = whole.max(listed).max(1);
    let share = |entries: u64| entries as f64 / whole as f64;
    let row = |(port, entries): &(ServicePort, u64)| Occupant {
        port: Some(*port),
        service: port.service(),
        entries: *entries,
        share: share(*entries),
        time_wait: states.and_then(|states| states.time_wait(*port)),
    };
    let mut occupants: Vec<Occupant> = counted.iter().map(row).collect();
    if !occupants.is_empty() && whole > listed {
        let shown: Vec<ServicePort> = counted.iter().map(|(port, _)| *port).collect();
        occupants.push(Occupant {
            port: None,
            service: None,
            entries: whole - listed,
            share: share(whole - listed),
            time_wait: states.and_then(|states| states.time_wait_of_others(&shown)),
        });
    }
    Worst {
        time: moment.at.time,
        netns: name(names, moment.netns),
        count: moment.count,
        max: moment.max,
        lost_per_s: moment.lost_per_s,
        occupants,
        unevictable: states.and_then(|states| states.assured).map(|(entries, of, at)| Unevictable {
            entries,
            of,
            at: at.time,
        }),
        as_listed,
        exact: moment.exact,
        listed_at: states.map(|states| states.at.time),
        listed_s_before: states.map(|states| moment.at.since(states.at)),
    }
}

fn bands(scan: &TickScan) -> Vec<Band> {
    let bands = BANDS.iter().zip(&scan.bands);
    bands
        .map(|(from, (seconds, packets, entries))| Band {
            from: *from,
            seconds: *seconds,
            packets_lost: unsigned(*packets),
            entries_lost: unsigned(*entries),
        })
        .collect()
}

fn arrivals(scan: &TickScan) -> Vec<Arrivals> {
    let per_s = |(counts, seconds): &(HashMap<ServicePort, i64>, f64), port: &ServicePort| {
        (*seconds > 0.0).then(|| counts.get(port).copied().unwrap_or(0) as f64 / seconds)
    };
    let mut ports: Vec<ServicePort> = scan.before.0.keys().chain(scan.during.0.keys()).copied().collect();
    ports.sort_unstable();
    ports.dedup();
    let mut rows: Vec<Arrivals> = ports
        .into_iter()
        .map(|port| Arrivals {
            port,
            service: port.service(),
            before_per_s: per_s(&scan.before, &port),
            during_per_s: per_s(&scan.during, &port),
        })
        .collect();
    let most = |row: &Arrivals| row.before_per_s.unwrap_or(0.0).max(row.during_per_s.unwrap_or(0.0));
    rows.sort_by(|a, b| most(b).total_cmp(&most(a)));
    rows.truncate(PORTS);
    rows
}
