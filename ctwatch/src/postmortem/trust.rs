//! The sections that judge: reconciliation with the kernel's counters, prevention, data quality.
//! Caveats are listed one by one, and so is that there are none.

use super::clock::Clock;
use super::document::{Block, TextTable};
use super::model::{Certainty, Gap, Host};
use crate::advise::items::Item;
use crate::contract;
use crate::model::Backend;
use crate::text::{counted, duration, rate, thousands};
use crate::view::text::advice::outcome;
use crate::view::text::summary::agreement_in_words;

/// Pieces of advice shown with their commands.
const PIECES: usize = 4;
/// Gaps and the like that are named one by one.
const NAMED: usize = 5;

pub(super) fn reconciliation(host: &Host) -> Vec<Block> {
    let kernel = &host.kernel_counters;
    if host.backend == Some(Backend::Counters) {
        let counts = kernel.named().map(|(name, count)| format!("{name} {}", thousands(count)));
        let text = format!(
            "Only the kernel's counters were recorded, without probes to compare them with: {}.",
            counts.join(", ")
        );
        return vec![Block::Text(text)];
    }
    let lines = contract::reconciliation(kernel, &host.in_kernel_terms, &host.unexplained, &host.agreement);
    let rows = lines.iter().map(|line| {
        vec![line.name.to_owned(), thousands(line.kernel), thousands(line.ours), agreement_in_words(line)]
    });
    vec![Block::Table(TextTable::new(&["counter", ">kernel", ">ctwatch", "verdict"], rows.collect()))]
}

pub(super) fn prevention(host: &Host) -> Vec<Block> {
    if let Some(why) = &host.no_advice {
        return vec![Block::Text(format!("Not available: {why}."))];
    }
    let Some(advice) = &host.advice else { return Vec::new() };
    let demand = &advice.table.demand;
    let mut blocks = vec![Block::Text(format!(
        "Peak offered load: {} flows/s, needing {} entries on average and {} just before garbage collection; the table {}.",
        rate(advice.table.offered_per_s),
        thousands(demand.needed as u64),
        thousands(demand.peak as u64),
        match advice.table.max {
            0 => "has no limit".to_owned(),
            max => format!("holds {}", thousands(max.into())),
        }
    ))];
    if advice.items.is_empty() {
        blocks.push(Block::Text("Nothing to recommend: the table had room for this load.".to_owned()));
    }
    for item in advice.items.iter().take(PIECES) {
        blocks.push(Block::Text(piece(item)));
        if !item.commands.now.is_empty() {
            blocks.push(Block::Code(item.commands.now.clone()));
        }
    }
    blocks.push(Block::List(advice.notes.clone()));
    blocks.push(Block::Text(format!(
        "In full, with commands to undo: ctwatch advise --recording {}",
        host.file
    )));
    blocks
}

fn piece(item: &Item) -> String {
    let refused = item.refused.first().map_or_else(String::new, |one| format!(" Blocked: {}.", one.text));
    format!("[{}] {}: {}. Risk: {}.{refused}", item.id, item.title, outcome(&item.after), item.risk_text)
}

pub(super) fn data_quality(host: &Host, clock: &Clock) -> Vec<Block> {
    let mut list = caveats(&host.certainty);
    if host.certainty.kernel_only {
        list.push("Part of this was recorded from the kernel's counters alone: causes and services are unknown there.".to_owned());
    } else if !host.unexplained.is_zero() {
        list.push(
            "The kernel's counters and ctwatch's differ: see Reconciliation with kernel counters.".to_owned(),
        );
    }
    let certainty = &host.certainty;
    let more = |all: usize| {
        if all > NAMED { format!(" and {} more", all - NAMED) } else { String::new() }
    };
    if !certainty.gaps.is_empty() {
        let gap = |gap: &Gap| format!("{} for {}", clock.time(gap.from.time), duration(gap.seconds));
        let named: Vec<String> = certainty.gaps.iter().take(NAMED).map(gap).collect();
        list.push(format!("Recording gaps: {}{}.", named.join(", "), more(certainty.gaps.len())));
    }
    for step in certainty.clock_steps.iter().take(NAMED) {
        list.push(format!(
            "The wall clock was stepped by {:+.1} s before {}.",
            step.seconds,
            clock.time(step.time)
        ));
    }
    list.extend(
        certainty.unfinished_runs.iter().chain(&certainty.broken_runs).map(|text| format!("{text}.")),
    );
    for notice in certainty.notices.iter().take(NAMED) {
        list.push(format!("{}: {} ({})", clock.time(notice.time), notice.text.sentence(), notice.code));
    }
    if list.is_empty() {
        list.push("Counts are exact: no event was missed, and the recording has no gaps.".to_owned());
    }
    vec![Block::List(list)]
}

fn caveats(certainty: &Certainty) -> Vec<String> {
    let mut list = Vec::new();
    if certainty.inferred {
        list.push("Causes are inferred from circumstances, not observed.".to_owned());
    }
    if certainty.lost_events > 0 {
        list.push(format!(
            "{} did not fit the ring buffer: in totals by port and cause, but not in flows, sources and processes.",
            counted(certainty.lost_events, "event", "events")
        ));
    }
    if certainty.without_port > 0 {
        let losses = counted(certainty.without_port, "loss has", "losses have");
        list.push(format!("{losses} a cause but no known port."));
    }
    if certainty.ambiguous > 0 {
        list.push(format!(
            "{} can't be told apart from the firewall's: ports may be wrong.",
            counted(certainty.ambiguous, "drop", "drops")
        ));
    }
    if certainty.thinned_ticks > 0 {
        list.push(format!(
            "{} downsampled to save space: totals are exact, timing is coarser.",
            counted(certainty.thinned_ticks, "tick was", "ticks were")
        ));
    }
    if certainty.dropped_ticks > 0 {
        list.push(
            "The oldest ticks were merged into one sum to save space: their times are unknown.".to_owned(),
        );
    }
    list
}
