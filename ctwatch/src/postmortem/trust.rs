//! The sections that judge: the kernel's counters beside ours, what would have prevented it, how sure all this is.
//! Doubts are listed one by one, and so is that there are none.

use super::document::{Block, Clock, TextTable};
use super::model::{Certainty, Host};
use crate::advise::items::Item;
use crate::text::{duration, rate, signed, thousands};
use crate::view::text::advice::outcome;

/// Pieces of advice shown with their commands.
const PIECES: usize = 4;
/// Gaps and the like that are named one by one.
const NAMED: usize = 5;

pub(super) fn reconciliation(host: &Host) -> Vec<Block> {
    let (kernel, ours, left) = (&host.kernel_counters, &host.in_kernel_terms, &host.unexplained);
    let row = |name: &str, kernel: u64, ours: u64, left: i64| {
        let verdict = match (left, kernel == ours) {
            (0, true) => "agree".to_owned(),
            (0, false) => "agree, as far as they can be read at once".to_owned(),
            (left, _) => format!("differ by {}", signed(left)),
        };
        vec![name.to_owned(), thousands(kernel), thousands(ours), verdict]
    };
    if host.backend.as_deref() == Some("counters") {
        return vec![Block::Text(
            "Only the kernel counted: there was no program to set beside it.".to_owned(),
        )];
    }
    vec![Block::Table(TextTable::new(
        &["counter", ">kernel", ">ctwatch", "verdict"],
        vec![
            row("drop", kernel.drop, ours.drop, left.drop),
            row("early_drop", kernel.early_drop, ours.early_drop, left.early_drop),
            row("insert_failed", kernel.insert_failed, ours.insert_failed, left.insert_failed),
            row("chaintoolong", kernel.chaintoolong, ours.chaintoolong, left.chaintoolong),
        ],
    ))]
}

pub(super) fn prevention(host: &Host) -> Vec<Block> {
    if let Some(why) = &host.no_advice {
        return vec![Block::Text(format!("It can't be reckoned: {why}."))];
    }
    let Some(advice) = &host.advice else { return Vec::new() };
    let demand = &advice.table.demand;
    let mut blocks = vec![Block::Text(format!(
        "At its worst {} flows/s wanted in; that needs {} entries on average and {} before gc comes by, of {}.",
        rate(advice.table.offered_per_s),
        thousands(demand.needed as u64),
        thousands(demand.peak as u64),
        thousands(advice.table.max.into())
    ))];
    if advice.items.is_empty() {
        blocks.push(Block::Text("Nothing to advise: the table had room for what came.".to_owned()));
    }
    for item in advice.items.iter().take(PIECES) {
        blocks.push(Block::Text(piece(item)));
        if !item.commands.now.is_empty() {
            blocks.push(Block::Code(item.commands.now.clone()));
        }
    }
    blocks.push(Block::List(advice.notes.clone()));
    blocks.push(Block::Text(format!("All of it, with undo: ctwatch advise --recording {}", host.file)));
    blocks
}

fn piece(item: &Item) -> String {
    let refused =
        item.refused.first().map_or_else(String::new, |one| format!(" Not without a look: {}.", one.text));
    format!("[{}] {}: {}. Risk: {}.{refused}", item.id, item.title, outcome(&item.after), item.risk_text)
}

pub(super) fn data_quality(host: &Host, clock: &Clock) -> Vec<Block> {
    let mut list = caveats(&host.certainty);
    let certainty = &host.certainty;
    let more = |all: usize| {
        if all > NAMED { format!(" and {} more", all - NAMED) } else { String::new() }
    };
    if !certainty.gaps.is_empty() {
        let named: Vec<String> = certainty
            .gaps
            .iter()
            .take(NAMED)
            .map(|gap| format!("{} for {}", clock.time(gap.from), duration(gap.seconds)))
            .collect();
        list.push(format!("Nobody watched from {}{}.", named.join(", "), more(certainty.gaps.len())));
    }
    for step in certainty.clock_steps.iter().take(NAMED) {
        list.push(format!(
            "The wall clock stepped by {:+.1} s before {}.",
            step.seconds,
            clock.time(step.time)
        ));
    }
    list.extend(
        certainty.unfinished_runs.iter().chain(&certainty.broken_runs).map(|text| format!("{text}.")),
    );
    for notice in certainty.notices.iter().take(NAMED) {
        list.push(format!("{}: {} ({})", clock.time(notice.time), notice.text, notice.code));
    }
    if list.is_empty() {
        list.push("Nothing was lost on the way, and no tick is missing: counts are exact.".to_owned());
    }
    vec![Block::List(list)]
}

fn caveats(certainty: &Certainty) -> Vec<String> {
    let mut list = Vec::new();
    if certainty.inferred {
        list.push("Causes are inferred, not seen.".to_owned());
    }
    if certainty.lost_events > 0 {
        list.push(format!(
            "{} events did not fit the ring buffer; totals by port and cause have them, flows and processes lack them.",
            thousands(certainty.lost_events)
        ));
    }
    if certainty.without_port > 0 {
        list.push(format!(
            "{} losses have a cause but no port of their own.",
            thousands(certainty.without_port)
        ));
    }
    if certainty.ambiguous > 0 {
        list.push(format!("{} drops can't be told from a firewall's.", thousands(certainty.ambiguous)));
    }
    if certainty.thinned_ticks > 0 {
        list.push(format!(
            "{} ticks were made coarser for room: totals are right, times are blurred.",
            thousands(certainty.thinned_ticks)
        ));
    }
    if certainty.dropped_ticks > 0 {
        list.push("The oldest ticks are only a sum: their times are unknown.".to_owned());
    }
    list
}
