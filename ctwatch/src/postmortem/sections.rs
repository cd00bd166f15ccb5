//! What each section of the postmortem says.
//! Words and numbers only; what isn't known is said to be unknown.

use jiff::tz::TimeZone;

use super::clock::Clock;
use super::document::{Block, Chapter, Section, TextTable};
use super::model::{Change, Estimate, Host, Occupant, Unevictable, Worst, causes};
use super::trust::{data_quality, prevention, reconciliation};
use crate::foreign::Foreign;
use crate::model::{Backend, ServicePort};
use crate::text::{counted, duration, percent, rate, thousands};

/// Rows of the timeline where there are no panels.
const MOMENTS: usize = 12;

pub(super) fn chapter(host: &Host, zone: &TimeZone) -> Chapter {
    let clock = host.clock(zone);
    let mut lead = vec![format!(
        "{}, kernel {}, {} backend",
        host.file,
        or(host.kernel_release.as_ref()),
        or(host.backend.map(Backend::name).as_ref())
    )];
    let Some(span) = host.span else {
        return Chapter { title: host.title().to_string(), lead, sections: Vec::new() };
    };
    lead.push(format!(
        "{} to {}, {} watched",
        clock.full(span.from.time),
        clock.full(span.to.time),
        duration(span.watched_s)
    ));
    let mut sections = vec![
        Section { title: "Summary", blocks: summary(host, &clock) },
        Section { title: "Timeline", blocks: vec![Block::Plots(timeline(host, &clock))] },
    ];
    if host.story.first_loss.is_some() {
        sections.push(Section { title: "Losses by cause", blocks: by_cause(host) });
        sections.push(Section { title: "Affected services", blocks: victims(host) });
    }
    sections.extend([
        Section { title: "Table occupancy", blocks: occupants(host, &clock) },
        Section { title: "Losses by fill level", blocks: by_fill(host) },
        Section { title: "Changes", blocks: changed(host, &clock) },
        Section { title: "Reconciliation with kernel counters", blocks: reconciliation(host) },
        Section { title: "Prevention", blocks: prevention(host) },
        Section { title: "Data quality", blocks: data_quality(host, &clock) },
    ]);
    Chapter { title: host.title().to_string(), lead, sections }
}

fn or(text: Option<&impl ToString>) -> String {
    text.map_or_else(|| "unknown".to_owned(), ToString::to_string)
}

fn summary(host: &Host, clock: &Clock) -> Vec<Block> {
    let story = &host.story;
    let mut list = Vec::new();
    let time = |time| clock.time(time);
    if story.first_loss.is_none() && !host.certainty.kernel_only {
        list.push("Losses: none seen".to_owned());
    }
    if let Some(onset) = story.first_sign {
        let fill = story.fill_at_first_sign.map(|fill| format!(" (table {} full)", percent(fill)));
        list.push(format!("Onset: {}{}", time(onset), fill.unwrap_or_default()));
    }
    match (story.full_at, &story.peak) {
        (Some(full), _) => list.push(format!("Table full: {}", time(full))),
        (None, Some(_)) => list.push("Table full: never at the end of a tick".to_owned()),
        (None, None) if story.unlimited.is_some() => {
            list.push("Table full: never, it has no limit".to_owned())
        }
        (None, None) => list.push("Table full: unknown".to_owned()),
    }
    if let Some((first, last)) = story.losing() {
        list.push(format!("Losses: from {} to {}", time(first), time(last)));
        list.push(format!(
            "Duration: {}, with losses during {}",
            duration(story.lasted_s),
            duration(story.losing_s)
        ));
        list.push(format!(
            "Lost: {} dropped, {} evicted early",
            counted(story.packets_lost, "packet", "packets"),
            counted(story.entries_lost, "entry", "entries")
        ));
    }
    if let Some(peak) = &story.peak {
        list.push(format!(
            "Peak occupancy: {} of {} entries ({}) in {} at {}",
            thousands(peak.count.into()),
            thousands(peak.max.into()),
            percent(peak.fill),
            peak.netns,
            time(peak.time)
        ));
    }
    if let Some(unlimited) = &story.unlimited {
        list.push(format!(
            "Peak occupancy: {}, no limit, in {} at {}",
            counted(unlimited.count.into(), "entry", "entries"),
            unlimited.netns,
            time(unlimited.time)
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

/// The timeline in few rows; changes of settings by their numbers in the section on changes.
fn timeline(host: &Host, clock: &Clock) -> TextTable {
    let points = &host.timeline;
    let each = points.len().div_ceil(MOMENTS).max(1);
    let span = host.span.map(|span| (span.from.place_us, span.to.place_us));
    let is_shown =
        |one: &Change| span.is_some_and(|(from, to)| from < one.at.place_us && one.at.place_us <= to);
    let has_changes = host.changes.iter().any(is_shown);
    let mut from = span.map_or(i64::MIN, |(from, _)| from);
    let rows = points.chunks(each).filter_map(|chunk| {
        let last = chunk.last()?;
        let fill = chunk.iter().filter_map(|point| point.fill).reduce(f64::max);
        let lost: i64 = chunk.iter().flat_map(|point| point.lost.values()).sum();
        let arrived: i64 = chunk.iter().flat_map(|point| point.arrived.values()).sum();
        let seconds: f64 = chunk.iter().map(|point| point.seconds).sum();
        let to = last.at.place_us;
        let is_here = |one: &Change| from < one.at.place_us && one.at.place_us <= to;
        let changes = host.changes.iter().enumerate().filter(|(_, one)| is_here(one));
        let changes: Vec<String> = changes.map(|(index, _)| format!("#{}", index + 1)).collect();
        from = to;
        let mut row = vec![
            clock.time(last.at.time),
            fill.map_or_else(|| no_fill(host).to_owned(), percent),
            thousands(lost.max(0).unsigned_abs()),
            if host.certainty.counts_flows {
                rate(arrived as f64 / seconds.max(1e-3))
            } else {
                "?".to_owned()
            },
        ];
        if has_changes {
            row.push(changes.join(" "));
        }
        Some(row)
    });
    let rows = rows.collect();
    let mut columns = vec!["until", ">peak fill", ">packets lost", ">new entries/s"];
    if has_changes {
        columns.push("setting changed");
    }
    TextTable::new(&columns, rows)
}

/// What stands in place of a fill.
const fn no_fill(host: &Host) -> &'static str {
    if host.story.unlimited.is_some() { "no limit" } else { "?" }
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
    vec![Block::Table(TextTable::new(&["cause", ">lost", "unit", "meaning"], rows))]
}

const fn meaning(cause: ctwatch_common::Cause) -> &'static str {
    use ctwatch_common::Cause::*;
    match cause {
        TableFull => "no room for a new entry",
        NoMemory => "no memory for an entry",
        Clash => "two CPUs inserted the same entry",
        ChainTooLong => "hash chain over the limit",
        Dying => "entry deleted before insertion",
        TcpRace => "closing connection reopened",
        Other => "drop without a known cause",
        Evicted => "evicted to make room",
        GcEvicted => "evicted by gc, table nearly full",
        Invalid => "passed untracked, not lost",
        ExpectFull => "no room for an expected connection",
    }
}

fn victims(host: &Host) -> Vec<Block> {
    let victims = &host.victims;
    let rows = victims
        .ports
        .iter()
        .map(|row| {
            vec![
                thousands(row.losses),
                row.unit.to_owned(),
                row.port.map_or_else(|| "unknown".to_owned(), ServicePort::with_service),
                match row.loopback {
                    Some(true) => "loopback".to_owned(),
                    _ => String::new(),
                },
                row.netns.to_string(),
                row.cause.to_owned(),
            ]
        })
        .collect();
    let mut blocks =
        vec![Block::Table(TextTable::new(&[">lost", "unit", "service", "path", "netns", "cause"], rows))];
    let certainty = &host.certainty;
    if certainty.events_kept == 0 {
        blocks.push(Block::Text(
            "No drop was recorded individually, so flows, sources and processes are unknown.".to_owned(),
        ));
        return blocks;
    }
    blocks.push(Block::Text(if certainty.events_kept < certainty.events_seen {
        format!(
            "Flows, sources and processes are estimates from a sample: {} of {} events were kept, and their ticks' losses are shared out among them.",
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
    blocks.push(of("flow", &victims.flows));
    blocks.push(of("source", &victims.sources));
    blocks.push(of("process", &victims.processes));
    blocks
}

fn occupants(host: &Host, clock: &Clock) -> Vec<Block> {
    let Some(worst) = &host.worst else {
        return vec![Block::Text("The recording has no table in this span.".to_owned())];
    };
    let lost =
        if worst.lost_per_s > 0.0 { format!(", losing {}/s", rate(worst.lost_per_s)) } else { String::new() };
    let mut blocks = vec![Block::Text(format!(
        "Worst moment: {}, {} in {}{lost}.",
        clock.time(worst.time),
        entries_of(worst),
        worst.netns
    ))];
    let others = others(host, clock);
    if worst.occupants.is_empty() {
        blocks.push(Block::Text(
            "What filled it is unknown: this run of the recording has no listing of that table, neither before \
             nor after."
                .to_owned(),
        ));
        blocks.extend(others);
        return blocks;
    }
    let rows = worst
        .occupants
        .iter()
        .map(|one| {
            vec![
                thousands(one.entries),
                percent(one.share),
                time_wait(one, worst),
                one.port.map_or_else(|| "all others".to_owned(), ServicePort::with_service),
            ]
        })
        .collect();
    blocks.push(Block::Table(TextTable::new(&[">entries", ">of the table", ">TIME_WAIT", "service"], rows)));
    blocks.push(Block::Text(listed(worst, clock)));
    if let Some(Unevictable { entries, of, at }) = &worst.unevictable {
        blocks.push(Block::Text(format!(
            "{} when counted at {}: a full table could evict only the others.",
            assured(*entries, *of),
            clock.time(*at)
        )));
    }
    if !worst.exact && !worst.as_listed {
        blocks.push(Block::Text(
            "Entries are estimates: the table changed while it was listed, or some inserts went uncounted."
                .to_owned(),
        ));
    }
    blocks.extend(others);
    blocks
}

/// "400 of 2,000 entries", "400 entries, no limit"
fn entries_of(worst: &Worst) -> String {
    let number =
        |number: Option<u32>| number.map_or_else(|| "?".to_owned(), |number| thousands(number.into()));
    match worst.max {
        Some(0) if worst.count == Some(1) => "1 entry, no limit".to_owned(),
        Some(0) => format!("{} entries, no limit", number(worst.count)),
        max => format!("{} of {} entries", number(worst.count), number(max)),
    }
}

/// The other tables that lost something or were at least half full.
fn others(host: &Host, clock: &Clock) -> Vec<Block> {
    let worst = host.worst.as_ref().map(|worst| &worst.netns);
    let others: Vec<&Worst> = host.tables.iter().filter(|table| Some(&table.netns) != worst).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let row = |table: &&Worst| {
        let lost = if table.lost_per_s > 0.0 { rate(table.lost_per_s) } else { "0".to_owned() };
        vec![table.netns.to_string(), clock.time(table.time), entries_of(table), lost, held_by(table, clock)]
    };
    let more = match host.more_tables {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let text = format!(
        "Other tables that lost something or were at least half full, each at its worst moment{more}:"
    );
    let columns = ["netns", "worst at", "entries", ">lost/s", "largest services"];
    vec![Block::Text(text), Block::Table(TextTable::new(&columns, others.iter().map(row).collect()))]
}

/// Whose the entries were, in a few words.
fn held_by(table: &Worst, clock: &Clock) -> String {
    let named = table.occupants.iter().filter(|one| one.port.is_some()).take(2);
    let shares: Vec<String> = named
        .map(|one| {
            format!("{} {}", one.port.map_or_else(String::new, |port| port.to_string()), percent(one.share))
        })
        .collect();
    match (shares.as_slice(), table.listed_at.filter(|_| table.as_listed)) {
        ([], _) => "unknown: never listed".to_owned(),
        (shares, Some(at)) => format!("{} (listed {})", shares.join(", "), clock.time(at)),
        (shares, None) => shares.join(", "),
    }
}

/// What part of its entries is in TIME_WAIT, or why there is no number.
fn time_wait(one: &Occupant, worst: &Worst) -> String {
    match (one.time_wait, one.port) {
        (Some(part), _) => percent(part),
        (None, Some(port)) if !port.is_tcp() => "not TCP".to_owned(),
        (None, None) if worst.listed_at.is_some() => "no TCP".to_owned(),
        (None, Some(_)) if worst.listed_at.is_some() => "not listed".to_owned(),
        (None, _) => "unknown".to_owned(),
    }
}

/// Where the states come from, and how near that is.
fn listed(worst: &Worst, clock: &Clock) -> String {
    let (Some(at), Some(before_s)) = (worst.listed_at, worst.listed_s_before) else {
        return "TIME_WAIT is unknown: this run of the recording has no listing of that table.".to_owned();
    };
    let near = match before_s {
        ..-0.05 => format!("{} after", duration(-before_s)),
        0.05.. => format!("{} before", duration(before_s)),
        _ => "at".to_owned(),
    };
    let what = if worst.as_listed { "Entries and TIME_WAIT are" } else { "TIME_WAIT is" };
    format!("{what} as listed at {}, {near} the worst moment.", clock.time(at))
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
            "{} of the losses came while a table was full, {} while one was at least 90 % full.",
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
        .chain(host.no_fill.as_ref().map(|none| {
            vec![
                if host.story.unlimited.is_some() { "no limit" } else { "unknown" }.to_owned(),
                duration(none.seconds),
                thousands(none.packets_lost),
                thousands(none.entries_lost),
            ]
        }))
        .collect();
    blocks.push(Block::Table(TextTable::new(&["fill", ">time", ">packets lost", ">entries evicted"], rows)));
    blocks
}

fn changed(host: &Host, clock: &Clock) -> Vec<Block> {
    let mut blocks = Vec::new();
    if host.changes.is_empty() {
        blocks.push(Block::Text("No conntrack setting changed.".to_owned()));
    } else {
        let value =
            |value: &Option<Foreign>| value.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let rows = host.changes.iter().enumerate().map(|(index, one)| {
            vec![
                format!("#{}", index + 1),
                clock.time(one.at.time),
                one.name.to_string(),
                value(&one.before),
                value(&one.value),
            ]
        });
        let columns = ["", "time", "setting", "before", "after"];
        blocks.push(Block::Table(TextTable::new(&columns, rows.collect())));
    }
    if !host.certainty.counts_flows {
        blocks.push(Block::Text("New entries were not counted.".to_owned()));
    } else if !host.arrivals.is_empty() {
        let shown = |per_s: Option<f64>| per_s.map_or_else(|| "-".to_owned(), rate);
        let rows = host.arrivals.iter().map(|row| {
            let change = match (row.before_per_s, row.during_per_s) {
                (Some(before), Some(during)) if before > 0.0 => format!("x {:.1}", during / before),
                _ => String::new(),
            };
            vec![row.port.with_service(), shown(row.before_per_s), shown(row.during_per_s), change]
        });
        blocks.push(Block::Text(
            "New entries per second, before onset and from the first loss to the last:".to_owned(),
        ));
        blocks.push(Block::Table(TextTable::new(
            &["service", ">before", ">during", ">change"],
            rows.collect(),
        )));
    }
    blocks
}

/// "1 of 2 entries was assured"
fn assured(entries: u64, of: u64) -> String {
    let were = if entries == 1 { "was" } else { "were" };
    format!("{} of {} {were} assured", thousands(entries), counted(of, "entry", "entries"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!(assured(1, 1), "1 of 1 entry was assured");
        assert_eq!(assured(1, 2), "1 of 2 entries was assured");
        assert_eq!(assured(1_000, 2_000), "1,000 of 2,000 entries were assured");
    }
}
