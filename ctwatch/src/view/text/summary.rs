//! The end of a run: what was counted, beside what the kernel counted, and how far both can be trusted.
//! A difference is shown next to the numbers it concerns.

use ctwatch_common::Cause;
use ctwatch_common::cause::Unit;

use crate::contract::{Agreement, Certainty, Counted, CounterLine, End, Unexplained, reconciliation};
use crate::model::{Backend, KernelCounters};
use crate::text::{ALERT, OK, Paint, WARN, counted, signed, thousands, wrap};

pub(super) fn lines(end: &End, backend: Option<Backend>, paint: Paint) -> Vec<String> {
    let mut lines = counters(end, backend, paint);
    lines.push(String::new());
    lines.extend(causes(end));
    lines.extend(trust(end, backend).iter().flat_map(|text| wrap(text, 2)));
    lines
}

/// The kernel's counters and ours, side by side.
fn counters(end: &End, backend: Option<Backend>, paint: Paint) -> Vec<String> {
    let counts_nothing = backend == Some(Backend::Counters);
    let mut lines = vec![if counts_nothing {
        format!("{:<14} {:>13}", "counter", "kernel")
    } else {
        format!("{:<14} {:>13} {:>13}", "counter", "kernel", "ctwatch")
    }];
    let ours = end.counted.in_kernel_terms();
    let compared = reconciliation(&end.kernel_counters, &ours, &end.unexplained, &end.agreement);
    lines.extend(compared.iter().map(|line| {
        let kernel_part = format!("{:<14} {:>13}", line.name, thousands(line.kernel));
        if counts_nothing {
            return kernel_part;
        }
        let style = match line.agreement {
            Agreement::Agree => OK,
            Agreement::NotReadable => WARN,
            Agreement::Differ => ALERT,
        };
        let words = paint.on(style, &agreement_in_words(line));
        format!("{kernel_part} {:>13}  {words}", thousands(line.ours))
    }));
    lines
}

/// What an agreement is called.
pub(crate) fn agreement_in_words(line: &CounterLine) -> String {
    match line.agreement {
        Agreement::Agree if line.kernel == line.ours => "agree".to_owned(),
        // Counters moved between the two reads.
        Agreement::Agree => "agree within read skew".to_owned(),
        Agreement::NotReadable => "not readable".to_owned(),
        Agreement::Differ => format!("differ by {}", signed(line.unexplained)),
    }
}

/// What was counted by cause.
fn causes(end: &End) -> Vec<String> {
    [("Packets", Unit::Packets), ("Entries", Unit::Entries)]
        .into_iter()
        .map(|(name, unit)| (name, by_cause(&end.counted, |cause| cause.unit() == unit)))
        .filter(|(_, causes)| !causes.is_empty())
        .flat_map(|(name, causes)| wrap(&format!("{name}: {}", causes.join(", ")), 2))
        .collect()
}

/// "table_full 1,204" for each cause that lost something.
fn by_cause(counted: &Counted, asked: impl Fn(Cause) -> bool) -> Vec<String> {
    Cause::ALL
        .into_iter()
        .filter(|cause| asked(*cause) && counted.of(*cause) > 0)
        .map(|cause| format!("{} {}", cause.name(), thousands(counted.of(cause))))
        .collect()
}

/// How far the numbers can be trusted.
fn trust(end: &End, backend: Option<Backend>) -> Vec<String> {
    let mut texts = Vec::new();
    if backend == Some(Backend::Counters) {
        texts.extend(not_readable(end));
        return texts;
    }
    if end.lost_events > 0 {
        let lost = counted(end.lost_events, "event", "events");
        texts.push(format!(
            "{lost} did not fit into the ring buffer; totals by port, cause and counter include them."
        ));
    }
    if let Some(overflow) = &end.overflow {
        let causes = by_cause(overflow, |_| true).join(", ");
        texts.push(format!(
            "No counter was free for {causes}: their ports are unknown, but totals include them."
        ));
    }
    if let Some(summed_up) = &end.summed_up {
        let causes = by_cause(summed_up, |_| true).join(", ");
        texts.push(format!("Too many to list one by one: the smallest are summed up, {causes}."));
    }
    let inexact = |certainty| end.rows.iter().any(|row| !row.exact && row.certainty == certainty);
    if inexact(Certainty::Exact) {
        texts.push("≥ marks lower bounds: these keys may have lost more.".to_owned());
    }
    if inexact(Certainty::Inferred) {
        texts.push("~ marks estimates: these keys may have lost more or less.".to_owned());
    }
    if let Some(ambiguous) = end.ambiguous.filter(|ambiguous| *ambiguous > 0) {
        let ambiguous = counted(ambiguous, "drop", "drops");
        texts.push(format!("{ambiguous} can't be told from firewall drops: their tuples may be wrong."));
    }
    if backend == Some(Backend::Tracepoint) {
        texts.push("Causes are inferred, not observed.".to_owned());
    }
    texts.extend(not_readable(end));
    if end.netns_gone > 0 && end.kernel_counters != end.counted.in_kernel_terms() {
        let gone = counted(end.netns_gone, "netns was deleted; its", "netns were deleted; their");
        texts.push(format!("{gone} final kernel counts are missing."));
    }
    let differences = differences(&end.unexplained);
    if !differences.is_empty() {
        texts.push(format!("Unexplained: {}.", differences.join(", ")));
    }
    if texts.is_empty() {
        texts.push("No events were lost; all numbers are exact.".to_owned());
    }
    if let Some(source) = end.kernel_counters_from {
        texts.push(format!("Kernel counters: {}.", source.title()));
    }
    texts
}

fn not_readable(end: &End) -> Option<String> {
    (end.netns_not_readable > 0).then(|| {
        format!(
            "{} netns can't be read: what the kernel counted there is unknown; `ctwatch check` says what would help.",
            thousands(end.netns_not_readable)
        )
    })
}

/// Each counter that differs, in words.
pub(super) fn differences(unexplained: &Unexplained) -> Vec<String> {
    let left = unexplained.as_array();
    KernelCounters::NAMES
        .iter()
        .zip(left)
        .filter(|(_, left)| *left != 0)
        .map(|(name, left)| {
            let side = if left > 0 { "more in the kernel" } else { "more in ctwatch" };
            format!("{name} {} {side}", thousands(left.unsigned_abs()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{State, StateConfig};
    use jiff::Timestamp;

    #[test]
    fn one_netns_that_was_deleted_is_one() {
        let mut end = State::new(StateConfig::totals(Backend::Kprobe, false)).end(Timestamp::UNIX_EPOCH);
        end.kernel_counters.drop = 4;
        let said = |gone| trust(&End { netns_gone: gone, ..end.clone() }, Some(Backend::Kprobe)).join("\n");
        assert!(said(1).contains("1 netns was deleted; its final kernel counts are missing."), "{}", said(1));
        assert!(said(2).contains("2 netns were deleted; their final kernel counts are"), "{}", said(2));
    }
}
