//! Advice for a terminal: what is wrong in two lines, which services need the table, then each item with its numbers.
//! Commands are never wrapped: they are to be copied.

use super::census::unevictable_in_words;
use crate::advise::demand::{Basis, Outcome};
use crate::advise::items::{Item, Level, TARGET_FILL};
use crate::advise::report::{Advice, ServiceLine, TableDemand, WhatIf};
use crate::foreign::joined;
use crate::model::ServicePort;
use crate::text::shell::one_line;
use crate::text::{
    ALERT, COLUMNS, FAINT, OK, PLAIN, Paint, WARN, counted, mib, rate, shorten, thousands, width, wrap,
};

const INDENT: usize = 4;
/// Column where the text beside a label starts.
const TEXT_AT: usize = 14;

pub(super) fn lines(report: &Advice, paint: Paint) -> Vec<String> {
    let mut lines = head(report, paint);
    lines.extend(services(report, paint));
    if let Some(what_if) = &report.what_if {
        lines.extend(answer(what_if, report.table.times, paint));
    }
    if report.items.is_empty() {
        lines.push(String::new());
        lines.push(if report.table.earlier.is_some() {
            "nothing to advise for now".to_owned()
        } else {
            "nothing to advise: the table has room for the present load".to_owned()
        });
    }
    for (number, item) in report.items.iter().enumerate() {
        lines.extend(item_lines(number + 1, item, report.table.times, paint));
    }
    if let Some(both) = &report.together {
        lines.push(String::new());
        let text = format!("{} together: {}", both.ids.join(" and "), outcome(&both.after));
        lines.extend(wrap(&text, INDENT));
    }
    let TableDemand { kernel_default_max, old_rule_max, old_rule_buckets, .. } = &report.table;
    if let (Some(new), Some(old), Some(buckets)) = (kernel_default_max, old_rule_max, old_rule_buckets) {
        lines.push(String::new());
        let text = format!(
            "(With this much memory this kernel defaults to max {}; older kernels to RAM/16384/(ARCH/32) = {} and max/8 = {} \
             buckets. Neither takes the load into account.)",
            thousands(*new),
            thousands(*old),
            thousands(*buckets)
        );
        lines.extend(wrap(&text, 0).iter().map(|line| paint.on(FAINT, line)));
    }
    for note in &report.notes {
        lines.extend(wrap(&format!("note: {note}"), 6).iter().map(|line| paint.on(FAINT, line)));
    }
    lines
}

fn head(report: &Advice, paint: Paint) -> Vec<String> {
    let TableDemand { count, max, refused_packets_per_s, offered_per_s, admitted_per_s, demand, .. } =
        &report.table;
    let TableDemand { basis, earlier, at_times, times, .. } = &report.table;
    let name = report.name.as_ref().map_or_else(|| report.netns.to_string(), ToString::to_string);
    let style = if demand.overflows() { ALERT } else { PLAIN };
    let size = if *max == 0 { ", no limit".to_owned() } else { format!(" of {}", thousands((*max).into())) };
    let mut lines = vec![format!(
        "{name}: {}{size}; {} new flows/s over {:.0} s",
        counted((*count).into(), "entry", "entries"),
        rate(*admitted_per_s),
        report.window_s
    )];
    if *count > 0 {
        lines.extend(report.table.unevictable.and_then(|entries| unevictable_in_words(entries.into())));
    }
    if *refused_packets_per_s > 0.0 {
        let text = format!(
            "dropping {} packets/s; offered load is {} new flows/s",
            rate(*refused_packets_per_s),
            rate(*offered_per_s)
        );
        lines.extend(wrap(&text, 0).iter().map(|line| paint.on(ALERT, line)));
    }
    if let Some(earlier) = earlier {
        let who = if *offered_per_s > 0.0 {
            "entries of services with few new flows"
        } else {
            "the entries that are there"
        };
        let text = format!(
            "{who} came before these {:.0} s and go as their timeouts end; had they kept coming, they would need {} \
             entries. For the time when they came: `ctwatch record`, then `ctwatch advise --recording`",
            report.window_s,
            thousands(earlier.round() as u64)
        );
        if *offered_per_s == 0.0 && *refused_packets_per_s == 0.0 {
            lines.push(paint.on(OK, "nothing is wrong now: nothing new comes"));
        }
        lines.extend(wrap(&text, 0));
    } else if *refused_packets_per_s == 0.0
        && *max > 0
        && at_times.fits_for_certain()
        && at_times.peak <= TARGET_FILL * f64::from(*max)
    {
        lines
            .push(paint.on(OK, &format!("nothing is wrong now: the table has room for {times} x this load")));
    }
    let needs = format!(
        "this load needs {}{} entries on average, {} just before garbage collection{}",
        basis.word(),
        thousands(demand.needed as u64),
        thousands(demand.peak as u64),
        match demand.full_at_times {
            Some(times) if times < 1.0 => String::new(),
            Some(times) => format!("; the table overflows at {times:.1} x this load"),
            None => String::new(),
        }
    );
    lines.extend(wrap(&needs, 0).iter().map(|line| paint.on(style, line)));
    if let Some(idle) = after_idle(demand) {
        lines.extend(wrap(&idle, 0));
    }
    lines
}

fn services(report: &Advice, paint: Paint) -> Vec<String> {
    let has_then = report.what_if.is_some();
    let what_if = |text: &str| if has_then { format!(" {text:>9}") } else { String::new() };
    let header = format!(
        "{:>9} {:>9}{} {:>8} {:>8}  {}",
        "entries",
        "needs",
        what_if("what-if"),
        "flows/s",
        "lifetime",
        "service"
    );
    let mut lines = vec![String::new(), paint.on(FAINT, &header)];
    for service in &report.services {
        let sign = match (service.assumed_lifetime_s, service.basis) {
            (None, _) => "",
            (_, Basis::AtLeast) => "≥",
            _ => "~",
        };
        let lifetime =
            service.lifetime_s.map_or_else(|| "?".to_owned(), |seconds| format!("{sign}{seconds:.0} s"));
        let numbers = format!(
            "{:>9} {:>9}{} {:>8} {lifetime:>8}  ",
            thousands(service.entries.into()),
            thousands(service.needs.round() as u64),
            what_if(&service.then.map_or_else(String::new, |then| thousands(then.round() as u64))),
            rate(service.offered_per_s),
        );
        let room = COLUMNS.saturating_sub(width(&numbers));
        lines.push(numbers + &shorten(&description(service), room));
    }
    lines
}

fn description(service: &ServiceLine) -> String {
    let server = service.server.as_ref().map(ToString::to_string);
    let name = server.as_deref().or(service.service).unwrap_or_default();
    let what = ServicePort::of_parts(service.proto, service.port, service.icmp_type.zip(service.icmp_code));
    let mut text = format!("{what} {} {name}", service.direction.name());
    if !service.clients.is_empty() {
        text += &format!(" from {}", joined(&service.clients));
    }
    if let Some(mostly) = service.mostly {
        text += &format!(", {:.0} % {}", mostly.share * 100.0, mostly.state);
    }
    text.trim_end().to_owned()
}

fn answer(what_if: &WhatIf, times: f64, paint: Paint) -> Vec<String> {
    let mut lines = vec![String::new()];
    lines.extend(wrap(&format!("what if {}", what_if.change), INDENT));
    lines.extend(labelled("effect", &outcome(&what_if.after)));
    lines.extend(after_idle(&what_if.after).iter().flat_map(|idle| labelled("", idle)));
    lines.extend(labelled(&format!("at {times} x"), &outcome(&what_if.at_times)));
    if what_if.after.max > 0 {
        lines.extend(labelled("memory", &format!("{} at most when full", mib(what_if.memory_bytes))));
    }
    for warning in &what_if.warnings {
        lines.extend(labelled("warning", warning).iter().map(|line| paint.on(WARN, line)));
    }
    lines
}

/// An outcome in words.
pub(crate) fn outcome(outcome: &Outcome) -> String {
    let peak = thousands(outcome.peak as u64);
    if outcome.max == 0 {
        return format!("{} entries, up to {peak}; no limit", thousands(outcome.needed as u64));
    }
    let of = format!("of {}", thousands(outcome.max.into()));
    if outcome.needed > f64::from(outcome.max) {
        return format!(
            "full: needs {} {of}; drops {} new flows/s",
            thousands(outcome.needed as u64),
            rate(outcome.refused_per_s)
        );
    }
    let fits = match (outcome.overflows(), outcome.fits_for_certain()) {
        (true, _) => ", drops at the peak",
        (false, true) => ", no drops",
        (false, false) => ", enough if refused flows last as assumed",
    };
    let room = match outcome.full_at_times {
        Some(times) if times >= 1.0 => format!("; full at {times:.1} x"),
        _ => String::new(),
    };
    format!("{} entries {of}, up to {peak}{fits}{room}", thousands(outcome.needed as u64))
}

/// The peak after an idle minute, where it is higher.
pub(crate) fn after_idle(outcome: &Outcome) -> Option<String> {
    let entries = thousands(outcome.after_idle? as u64);
    let but = match (outcome.overflows_after_idle(), outcome.overflows()) {
        (true, false) => "; too many until the first garbage collection",
        _ => "",
    };
    Some(format!("after an idle minute: up to {entries} entries{but}"))
}

fn item_lines(number: usize, item: &Item, times: f64, paint: Paint) -> Vec<String> {
    let mut lines = vec![String::new()];
    let style = match (item.refused.is_empty(), item.solves) {
        (false, _) => FAINT,
        (true, true) => OK,
        (true, false) => PLAIN,
    };
    let title = format!("{number:>2}. {} [{}]", item.title, item.id);
    lines.extend(wrap(&title, INDENT).iter().map(|line| paint.on(style, line)));
    lines.extend(labelled("why", &item.evidence));
    for objection in &item.refused {
        let text = format!("{}: {}", objection.text, objection.located_rule());
        lines.extend(labelled("blocked", &text).iter().map(|line| paint.on(WARN, line)));
        if let Some(remedy) = &objection.remedy {
            lines.push(verbatim("unblock", &one_line(remedy)));
        }
    }
    lines.extend(labelled("effect", &outcome(&item.after)));
    lines.extend(after_idle(&item.after).iter().flat_map(|idle| labelled("", idle)));
    lines.extend(labelled(&format!("at {times} x"), &outcome(&item.at_times)));
    if item.memory_bytes > 0 {
        lines.extend(labelled("memory", &format!("{} more than now", mib(item.memory_bytes.unsigned_abs()))));
    }
    let risk = match item.risk {
        Level::Low => "low",
        Level::Medium => "medium",
        Level::High => "high",
    };
    lines.extend(labelled("risk", &format!("{risk}: {}", item.risk_text)));
    for (label, commands) in
        [("now", &item.commands.now), ("keep", &item.commands.keep), ("undo", &item.commands.undo)]
    {
        lines.extend(
            commands
                .iter()
                .flat_map(|command| command.lines())
                .enumerate()
                .map(|(index, line)| verbatim(if index == 0 { label } else { "" }, line)),
        );
    }
    for (index, setting) in item.settings.iter().enumerate() {
        lines.push(verbatim(if index == 0 { "set" } else { "" }, &one_line(setting)));
    }
    for note in &item.notes {
        lines.extend(labelled("note", note));
    }
    lines
}

/// A label, and text that wraps beside it.
fn labelled(label: &str, text: &str) -> Vec<String> {
    // A word without spaces reserves the label's place.
    let place = "\u{1}".repeat(TEXT_AT);
    let mut lines = wrap(&format!("{place}{text}"), TEXT_AT);
    lines[0] = lines[0].replacen(&place, &verbatim(label, ""), 1);
    lines
}

/// A label, and text that must not be wrapped.
fn verbatim(label: &str, text: &str) -> String {
    format!("{:INDENT$}{label:<width$}{text}", "", width = TEXT_AT - INDENT)
}
