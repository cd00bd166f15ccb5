//! What each section of the postmortem says.
//! Words and numbers only; what isn't known is said to be unknown.

use jiff::tz::TimeZone;

use super::document::{Block, Chapter, Clock, Section, TextTable, name};
use super::model::{Estimate, Host, causes};
use super::trust::{data_quality, prevention, reconciliation};
use crate::text::{duration, percent, rate, thousands};

/// Rows of the timeline where there are no plots.
const MOMENTS: usize = 12;

pub(super) fn chapter(host: &Host, zone: &TimeZone) -> Chapter {
    let clock = Clock::new(zone, host);
    let mut lead =
        vec![format!("{}, kernel {}, {} backend", host.file, or(&host.kernel_release), or(&host.backend))];
    let Some(span) = host.span else {
        lead.push("No tick of the recording is in this span: there is nothing to report.".to_owned());
        return Chapter { title: name(host), lead, sections: Vec::new() };
    };
    lead.push(format!(
        "{} to {}, {} watched",
        clock.full(span.from),
        clock.full(span.to),
        duration(span.watched_s)
    ));
    let mut sections = vec![
        Section { title: "What happened", blocks: summary(host, &clock) },
        Section { title: "Timeline", blocks: vec![Block::Plots(timeline(host, &clock))] },
    ];
    if host.story.first_loss.is_some() {
        sections.push(Section { title: "Each cause apart", blocks: by_cause(host) });
        sections.push(Section { title: "Who suffered", blocks: victims(host) });
    }
    sections.extend([
        Section { title: "Who filled the table", blocks: occupants(host, &clock) },
        Section { title: "Losses and fill", blocks: by_fill(host) },
        Section { title: "What changed", blocks: changed(host, &clock) },
        Section { title: "The kernel's counters beside ours", blocks: reconciliation(host) },
        Section { title: "What would have prevented it", blocks: prevention(host) },
        Section { title: "How sure this is", blocks: data_quality(host, &clock) },
    ]);
    Chapter { title: name(host), lead, sections }
}

fn or(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("unknown")
}

fn summary(host: &Host, clock: &Clock) -> Vec<Block> {
    let story = &host.story;
    let mut list = Vec::new();
    let time = |time| clock.time(time);
    if story.first_loss.is_none() {
        list.push("Nothing was lost in this time.".to_owned());
    }
    if let Some(first) = story.first_sign {
        let fill = story
            .fill_at_first_sign
            .map_or_else(String::new, |fill| format!(", the table {} full", percent(fill)));
        list.push(format!("First sign: {}{fill}", time(first)));
    }
    if let Some(full) = story.full_at {
        list.push(format!("Table full: {}", time(full)));
    } else if let (None, Some(peak)) = (story.full_at, &story.peak) {
        list.push(format!("The table was never full at the end of a tick; {} at most", percent(peak.fill)));
    }
    if let (Some(first), Some(last)) = (story.first_loss, story.last_loss) {
        list.push(format!("First loss: {}", time(first)));
        list.push(format!("Last loss: {}", time(last)));
        list.push(format!(
            "It lasted {}, {} of them with losses",
            duration(story.lasted_s),
            duration(story.losing_s)
        ));
        list.push(format!(
            "Lost: {} packets, and {} entries thrown out before their time",
            thousands(story.packets_lost),
            thousands(story.entries_lost)
        ));
    }
    if let Some(peak) = &story.peak {
        list.push(format!(
            "Fullest: {} with {} of {} ({}) at {}",
            peak.netns,
            thousands(peak.count.into()),
            thousands(peak.max.into()),
            percent(peak.fill),
            time(peak.time)
        ));
    }
    for incident in &host.incidents {
        let until = incident.ceased.map_or_else(String::new, |ceased| format!(", until {}", time(ceased)));
        list.push(format!(
            "Incident {}: {} at {}{until}",
            incident.number,
            incident.condition,
            time(incident.time)
        ));
    }
    vec![Block::List(list)]
}

/// The timeline in few rows.
fn timeline(host: &Host, clock: &Clock) -> TextTable {
    let points = &host.timeline;
    let each = points.len().div_ceil(MOMENTS).max(1);
    let rows = points.chunks(each).filter_map(|chunk| {
        let last = chunk.last()?;
        let fill = chunk.iter().filter_map(|point| point.fill).reduce(f64::max);
        let lost: i64 = chunk.iter().flat_map(|point| point.lost.values()).sum();
        let arrived: i64 = chunk.iter().flat_map(|point| point.arrived.values()).sum();
        let seconds: f64 = chunk.iter().map(|point| point.seconds).sum();
        Some(vec![
            clock.time(last.time),
            fill.map_or_else(|| "?".to_owned(), percent),
            thousands(lost.max(0).unsigned_abs()),
            if host.certainty.counts_flows {
                rate(arrived as f64 / seconds.max(1e-3))
            } else {
                "?".to_owned()
            },
        ])
    });
    TextTable::new(&["until", ">fill, at most", ">packets lost", ">new entries/s"], rows.collect())
}

fn by_cause(host: &Host) -> Vec<Block> {
    let rows = causes(&host.counted)
        .map(|(cause, losses)| {
            vec![
                cause.name().to_owned(),
                thousands(losses),
                cause.unit().name().to_owned(),
                meaning(cause).to_owned(),
            ]
        })
        .collect();
    vec![Block::Table(TextTable::new(&["cause", ">lost", "of", "which means"], rows))]
}

const fn meaning(cause: ctwatch_common::Cause) -> &'static str {
    use ctwatch_common::Cause::*;
    match cause {
        TableFull => "no room for a new flow",
        NoMemory => "no memory for an entry",
        Clash => "two CPUs made the same entry",
        ChainTooLong => "too many in one hash bucket",
        Dying => "its entry died before it was in",
        TcpRace => "a closing flow was reopened",
        Other => "fits no other cause",
        Evicted => "thrown out for a new flow",
        GcEvicted => "thrown out by gc, nearly full",
        Invalid => "passed untracked",
    }
}

fn victims(host: &Host) -> Vec<Block> {
    let victims = &host.victims;
    let rows = victims
        .ports
        .iter()
        .map(|row| {
            let port = row.port.map_or_else(|| "port unknown".to_owned(), |port| port.to_string());
            vec![
                thousands(row.losses),
                row.unit.to_owned(),
                format!("{port} {}", row.service.unwrap_or_default()).trim_end().to_owned(),
                match row.loopback {
                    Some(true) => "loopback".to_owned(),
                    _ => String::new(),
                },
                row.netns.clone(),
                row.cause.to_owned(),
            ]
        })
        .collect();
    let mut blocks =
        vec![Block::Table(TextTable::new(&[">lost", "of", "service", "path", "netns", "cause"], rows))];
    let certainty = &host.certainty;
    if certainty.events_kept == 0 {
        blocks.push(Block::Text("No single loss was kept, so flows and processes are not known.".to_owned()));
        return blocks;
    }
    blocks.push(Block::Text(if certainty.events_kept < certainty.events_seen {
        format!(
            "Flows, sources and processes come from a sample, {} of {} events; each stands for as many as its tick lost.",
            thousands(certainty.events_kept),
            thousands(certainty.events_seen)
        )
    } else {
        format!("Flows, sources and processes come from all {} events.", thousands(certainty.events_kept))
    }));
    let of = |column: &'static str, rows: &[Estimate]| {
        let row = |row: &Estimate| {
            vec![thousands(row.about.round() as u64), thousands(row.events), row.what.clone()]
        };
        Block::Table(TextTable::new(&[">about", ">events", column], rows.iter().map(row).collect()))
    };
    blocks.push(of("flows", &victims.flows));
    blocks.push(of("sources", &victims.sources));
    blocks.push(of("processes", &victims.processes));
    blocks
}

fn occupants(host: &Host, clock: &Clock) -> Vec<Block> {
    let Some(worst) = &host.worst else {
        return vec![Block::Text("No table is in the recording.".to_owned())];
    };
    let number =
        |number: Option<u32>| number.map_or_else(|| "?".to_owned(), |number| thousands(number.into()));
    let lost =
        if worst.lost_per_s > 0.0 { format!(", losing {}/s", rate(worst.lost_per_s)) } else { String::new() };
    let mut blocks = vec![Block::Text(format!(
        "The worst moment: {} at {}, {} of {} entries{lost}.",
        worst.netns,
        clock.time(worst.time),
        number(worst.count),
        number(worst.max)
    ))];
    if worst.occupants.is_empty() {
        blocks.push(Block::Text(
            "Who filled it is not known: its table had not been listed by then.".to_owned(),
        ));
        return blocks;
    }
    let rows = worst
        .occupants
        .iter()
        .map(|one| {
            let port = one.port.map_or_else(|| "all others".to_owned(), |port| port.to_string());
            vec![
                thousands(one.entries),
                percent(one.share),
                one.time_wait.map_or_else(String::new, percent),
                format!("{port} {}", one.service.unwrap_or_default()).trim_end().to_owned(),
            ]
        })
        .collect();
    blocks.push(Block::Table(TextTable::new(&[">entries", ">of the table", ">TIME_WAIT", "service"], rows)));
    if !worst.exact {
        blocks.push(Block::Text(
            "These are estimates: something moved while the table was listed, or flows went uncounted."
                .to_owned(),
        ));
    }
    blocks
}

fn by_fill(host: &Host) -> Vec<Block> {
    let total = host.story.packets_lost + host.story.entries_lost;
    let full = host.by_fill.last().map_or(0, |band| band.packets_lost + band.entries_lost);
    let near =
        host.by_fill.iter().filter(|band| band.from >= 0.9).map(|band| band.packets_lost + band.entries_lost);
    let mut blocks = Vec::new();
    if total > 0 {
        let part = |losses: u64| percent(losses as f64 / total as f64);
        blocks.push(Block::Text(format!(
            "{} of the losses came in ticks with a full table, {} with one at least 90 % full.",
            part(full),
            part(near.sum())
        )));
    }
    let rows = host
        .by_fill
        .iter()
        .enumerate()
        .filter(|(_, band)| band.seconds > 0.0)
        .map(|(index, band)| {
            let to = host.by_fill.get(index + 1).map(|next| next.from);
            vec![
                to.map_or_else(
                    || "full".to_owned(),
                    |to| format!("{:.0} to {:.0} %", band.from * 100.0, to * 100.0),
                ),
                duration(band.seconds),
                thousands(band.packets_lost),
                thousands(band.entries_lost),
            ]
        })
        .collect();
    blocks.push(Block::Table(TextTable::new(&["fill", ">time", ">packets lost", ">entries lost"], rows)));
    blocks
}

fn changed(host: &Host, clock: &Clock) -> Vec<Block> {
    let mut blocks = Vec::new();
    if host.changes.is_empty() {
        blocks.push(Block::Text("No setting of conntrack's changed.".to_owned()));
    } else {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "gone".to_owned());
        let rows = host
            .changes
            .iter()
            .map(|one| vec![clock.time(one.time), one.name.clone(), value(&one.before), value(&one.value)]);
        blocks.push(Block::Table(TextTable::new(&["time", "setting", "before", "then"], rows.collect())));
    }
    if !host.certainty.counts_flows {
        blocks.push(Block::Text("Arrivals were not counted.".to_owned()));
    } else if !host.arrivals.is_empty() {
        let shown = |per_s: Option<f64>| per_s.map_or_else(|| "-".to_owned(), rate);
        let rows = host.arrivals.iter().map(|row| {
            let change = match (row.before_per_s, row.during_per_s) {
                (Some(before), Some(during)) if before > 0.0 => format!("x {:.1}", during / before),
                _ => String::new(),
            };
            vec![
                format!("{} {}", row.port, row.service.unwrap_or_default()).trim_end().to_owned(),
                shown(row.before_per_s),
                shown(row.during_per_s),
                change,
            ]
        });
        blocks.push(Block::Text(
            "New entries a second before the first sign, and from the first loss to the last:".to_owned(),
        ));
        blocks.push(Block::Table(TextTable::new(
            &["service", ">before", ">during", ">change"],
            rows.collect(),
        )));
    }
    blocks
}
