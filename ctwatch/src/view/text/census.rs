//! The output of `ctwatch table`: each table's fill, then its rows, then any discrepancy with the kernel's count.
//! Addresses are never cut off: a key too long for its column gets a line of its own.

use crate::contract::breakdown::{Hidden, HiddenService, Reason, Row, TableBreakdown, TableReport};
use crate::foreign::Foreign;
use crate::model::{ServicePort, is_home_netns};
use crate::text::{
    ALERT, COLUMNS, FAINT, PLAIN, Paint, WARN, counted, left, percent, short_duration, shorten, thousands,
    took, width, wrap,
};

/// Widths of the columns; the key gets what they leave of 80.
const ENTRIES: usize = 10;
const SHARE: usize = 5;
const ASSURED: usize = 7;
const TIME_WAIT: usize = 6;
const LEFT: usize = 5;
/// Shown only if a row needs it.
const AGE: usize = 5;
const ERROR: usize = 8;

/// Column where the key starts.
const KEY_AT: usize = ENTRIES + 2 * SHARE + 3;
/// Tables without rows that get a line each.
const FEW: usize = 3;
/// Namespaces that could not be listed and are named.
const NAMED: usize = 3;
const NAME: usize = 30;

pub(super) fn lines(report: &TableReport, clock: &str, paint: Paint) -> Vec<String> {
    let columns = Columns::of(&report.rows);
    let mut lines = Vec::new();
    let rows_of = |table: &TableBreakdown| {
        report.rows.iter().filter(|row| row.netns == table.netns).collect::<Vec<_>>()
    };
    let has_rows = |table: &&TableBreakdown| !rows_of(table).is_empty();
    let (mut shown, mut others): (Vec<&TableBreakdown>, Vec<&TableBreakdown>) =
        report.tables.iter().partition(has_rows);
    shown.sort_by_key(|table| std::cmp::Reverse(table.listed));
    others.sort_by_key(|table| !is_home_netns(table.name.as_ref()));
    // All are empty, or no entry matches the filter: show the tables themselves.
    let quiet = if shown.is_empty() { others.len() } else { 0 };
    let (quiet, others) = others.split_at(quiet.min(FEW));
    shown.extend(quiet);
    for table in shown {
        lines.push(table_line(table, clock, paint));
        let rows = rows_of(table);
        let each_at_most = rows.iter().find_map(|row| row.each_at_most);
        if !rows.is_empty() {
            lines.push(columns.header(&report.by, paint));
        }
        for row in rows {
            lines.extend(columns.row(row, &report.by));
        }
        lines.extend(unevictable_in_words(table.unevictable));
        lines.extend(discrepancy(table, paint));
        lines.extend(remarks(table, each_at_most));
    }
    lines.extend(without_rows(others));
    lines.extend(unlisted(report).iter().map(|line| paint.on(WARN, line)));
    lines
}

/// Entries that early_drop leaves alone; nothing is said where there are none.
pub(super) fn unevictable_in_words(entries: u64) -> Option<String> {
    let are = match entries {
        0 => return None,
        1 => "is",
        _ => "are",
    };
    Some(format!("{} {are} assured or offloaded and can't be evicted", counted(entries, "entry", "entries")))
}

fn name(table: &TableBreakdown) -> String {
    table.name.as_ref().map_or_else(|| table.netns.to_string(), |name| name.within(NAME))
}

fn table_line(table: &TableBreakdown, clock: &str, paint: Paint) -> String {
    let number = |number: Option<u32>| number.map_or("?".to_owned(), |number| thousands(number.into()));
    let style = match table.fill {
        Some(fill) if fill >= 1.0 => ALERT,
        Some(fill) if fill >= 0.9 => WARN,
        _ => PLAIN,
    };
    let fill = match (table.fill, table.max) {
        (Some(fill), _) => format!(" {}", paint.on(style, &percent(fill))),
        (None, Some(0)) => ", no limit".to_owned(),
        (None, _) => ", limit unknown".to_owned(),
    };
    let max = table.max.filter(|max| *max > 0).map(|max| format!("/{}", thousands(max.into())));
    format!(
        "{clock} {}  {}{}{fill}, {} listed in {}",
        name(table),
        number(table.count),
        max.unwrap_or_default(),
        thousands(table.listed),
        took(table.took_s)
    )
}

/// Which columns there are, and how much of a line the key gets.
struct Columns {
    age: bool,
    error: bool,
}

impl Columns {
    fn of(rows: &[Row]) -> Self {
        Self {
            age: rows.iter().any(|row| row.age_median_s.is_some()),
            error: rows.iter().any(|row| row.error > 0),
        }
    }

    fn key(&self) -> usize {
        let age = if self.age { AGE + 1 } else { 0 };
        let error = if self.error { ERROR + 1 } else { 0 };
        COLUMNS - KEY_AT - 4 - ASSURED - TIME_WAIT - 2 * LEFT - age - error
    }

    fn header(&self, by: &[&'static str], paint: Paint) -> String {
        let keys = title(by);
        let keys = shorten(&keys, self.key());
        let tail = self.tail(["assured", "t_wait", "left", "p90", "age", "up to"].map(str::to_owned));
        let head = format!("{:>ENTRIES$} {:>SHARE$} {:>SHARE$} ", "entries", "table", "max");
        paint.on(FAINT, &format!("{head}{keys:<0$}{tail}", self.key()))
    }

    fn tail(&self, [assured, time_wait, left, p90, age, error]: [String; 6]) -> String {
        let mut tail = format!(" {assured:>ASSURED$} {time_wait:>TIME_WAIT$} {left:>LEFT$} {p90:>LEFT$}");
        if self.age {
            tail += &format!(" {age:>AGE$}");
        }
        if self.error {
            tail += &format!(" {error:>ERROR$}");
        }
        tail.trim_end().to_owned()
    }

    fn row(&self, row: &Row, by: &[&'static str]) -> Vec<String> {
        let share = |share: Option<f64>| share.map(percent).unwrap_or_default();
        let is_exact = row.error == 0;
        let bound = if is_exact { "" } else { "≥" };
        // Of what is rounded down to nothing, that it is at least so much says nothing.
        let bounded = |part: Option<f64>| match part {
            Some(part) if (0.01..1.0).contains(&part) => format!("{bound}{}", percent(part)),
            part => share(part),
        };
        // Empty for an exact count among inexact ones.
        let error = if is_exact { String::new() } else { format!("+{}", thousands(row.error)) };
        let least = row.entries;
        let entries = format!("{bound}{}", thousands(least));
        let tail = self.tail([
            share(row.assured_share),
            share(row.time_wait_share),
            row.timeout_left_median_s.map(short_duration).unwrap_or_default(),
            row.timeout_left_p90_s.map(short_duration).unwrap_or_default(),
            row.age_median_s.map(short_duration).unwrap_or_default(),
            error,
        ]);
        let head = format!(
            "{:>ENTRIES$} {:>SHARE$} {:>SHARE$}",
            if width(&entries) > ENTRIES { format!("{bound}{least}") } else { entries },
            bounded(Some(row.share)),
            bounded(row.share_of_max)
        );
        let key = key(row, by);
        if width(&key) <= self.key() {
            return vec![format!("{head} {}{tail}", left(&key, self.key())).trim_end().to_owned()];
        }
        let indent = " ".repeat(KEY_AT);
        let mut keys = broken(&key, COLUMNS - KEY_AT).into_iter();
        let mut lines = vec![format!("{head} {}", keys.next().unwrap_or_default())];
        lines.extend(keys.map(|key| format!("{indent}{key}")));
        if !tail.is_empty() {
            lines.push(format!("{indent}{:<1$}{tail}", "", self.key()));
        }
        lines
    }
}

/// Text in lines of so many columns.
fn broken(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let line = lines.last_mut().expect("it starts with one line");
        if !line.is_empty() && width(line) + 1 + width(word) > room {
            lines.push(shorten(word, room));
        } else {
            *line += if line.is_empty() { "" } else { " " };
            *line += &shorten(word, room);
        }
    }
    lines
}

/// Where remarks on a table begin.
const REMARK: &str = "    ";

fn remark(text: &str) -> Vec<String> {
    let lines = broken(text, COLUMNS - REMARK.len());
    lines.iter().map(|line| format!("{REMARK}{line}")).collect()
}

/// The heading of keys, in the order of [`key`].
fn title(by: &[&'static str]) -> String {
    let has = |key| by.contains(&key);
    let mut titles = Vec::new();
    if has("port") {
        titles.push("proto   port service");
    } else if has("state") || has("proto") {
        titles.push("proto ");
    }
    titles.extend(by.iter().filter(|key| !matches!(**key, "port" | "proto" | "src" | "dst")));
    titles.extend(match (has("src"), has("dst")) {
        (true, true) => Some("source -> destination"),
        (true, false) => Some("source"),
        (false, true) => Some("destination"),
        (false, false) => None,
    });
    titles.join(" ")
}

fn key(row: &Row, by: &[&'static str]) -> String {
    if row.rest {
        return "others".to_owned();
    }
    let mut parts = Vec::new();
    if let Some(proto) = row.proto {
        parts.push(format!("{proto:<6}"));
    }
    match (row.port, row.icmp_type, row.icmp_code) {
        (Some(port), ..) => {
            parts.push(format!("{port:>5}"));
            parts.extend(row.service.flatten().map(str::to_owned));
        }
        (None, Some(kind), Some(code)) => parts.push(format!("type {kind} code {code}")),
        _ => {}
    }
    let name = |name: &Option<Option<Foreign>>, unnamed: String| {
        name.as_ref().map(|name| name.as_ref().map_or(unnamed, ToString::to_string))
    };
    for one in by {
        match *one {
            "state" => parts.extend(row.state.map(str::to_owned)),
            "direction" => parts.extend(row.direction.map(|direction| direction.name().to_owned())),
            "netns" => parts.extend(name(&row.name, row.netns.to_string())),
            "container" => parts.extend(name(&row.container, "no container".to_owned())),
            "zone" => parts.extend(row.zone.map(|zone| format!("zone {zone}"))),
            "mark" => parts.extend(row.mark.map(|mark| format!("mark {mark:#x}"))),
            _ => {}
        }
    }
    match (row.src, row.dst) {
        (Some(src), Some(dst)) => parts.push(format!("{src} -> {dst}")),
        (Some(address), None) | (None, Some(address)) => parts.push(address.to_string()),
        (None, None) => {}
    }
    parts.join(" ").trim_end().to_owned()
}

/// How far the listing and the kernel's count differ, and what that can come from.
fn discrepancy(table: &TableBreakdown, paint: Paint) -> Vec<String> {
    if table.unlisted == 0 {
        return Vec::new();
    }
    if let Some(hidden) = table.hidden.as_ref().filter(|hidden| names(hidden) > 0) {
        let texts = [of_hidden(table, hidden), services(hidden)];
        return texts.iter().flat_map(|text| remark(text)).map(|line| paint.on(WARN, &line)).collect();
    }
    let reasons: Vec<&str> = table.reasons.iter().map(|reason| words(*reason)).collect();
    let reasons = match reasons.split_last() {
        Some((last, [])) => format!("; they may be {last}"),
        Some((last, others)) => format!("; they may be {} or {last}", others.join(", ")),
        None => String::new(),
    };
    let difference = thousands(table.unlisted.unsigned_abs());
    let text = if table.unlisted > 0 {
        format!("the kernel counts {difference} more than were listed{reasons}")
    } else {
        format!("{difference} more were listed than the kernel counts{reasons}")
    };
    let unasked = table.hidden.as_ref().filter(|hidden| !hidden.complete).map(|_| NOT_READABLE);
    let texts = [Some(text.as_str()), unasked];
    texts.into_iter().flatten().flat_map(remark).map(|line| paint.on(WARN, &line)).collect()
}

const NOT_READABLE: &str =
    "which of them are unconfirmed or dying is not readable: this kernel has no list of them";

/// How many of what was not listed the kernel names.
fn names(hidden: &Hidden) -> u64 {
    hidden.dying.unwrap_or(0) + hidden.unconfirmed.unwrap_or(0)
}

fn of_hidden(table: &TableBreakdown, hidden: &Hidden) -> String {
    let sorts = [(hidden.dying, Reason::Dying), (hidden.unconfirmed, Reason::Unconfirmed)];
    let mut sorts: Vec<String> = sorts
        .into_iter()
        .filter_map(|(entries, sort)| Some((entries.filter(|entries| *entries > 0)?, sort)))
        .map(|(entries, sort)| format!("{} {}", thousands(entries), words(sort)))
        .collect();
    if hidden.others > 0 {
        let may_be = if hidden.complete { "" } else { ", which may be such, too" };
        sorts.push(format!(
            "{} {} or {}{may_be}",
            thousands(hidden.others),
            words(Reason::Expired),
            words(Reason::ReplyOnly)
        ));
    }
    let difference = thousands(table.unlisted.unsigned_abs());
    format!("the kernel counts {difference} more than were listed: {}", sorts.join(", "))
}

fn services(hidden: &Hidden) -> String {
    let name = |one: &HiddenService| {
        let what = ServicePort::of_parts(one.proto, one.port, one.icmp_type.zip(one.icmp_code));
        let sort = if one.sort == Reason::Dying { "dying" } else { "unconfirmed" };
        format!("{} {sort} of {what}", thousands(one.entries))
    };
    hidden.services.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ")
}

const fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::Unconfirmed => "unconfirmed (first packet still in flight)",
        Reason::Dying => "dying (removed from the table, still referenced)",
        Reason::Expired => "expired but not yet collected",
        Reason::ReplyOnly => "reachable only by reply tuple (after a clash)",
        Reason::Churn => "created or deleted during the listing",
        Reason::Resize => "moved by a resize during the listing",
        Reason::Interrupted => "missed (the kernel reported an inconsistent dump)",
    }
}

fn remarks(table: &TableBreakdown, each_at_most: Option<u64>) -> Vec<String> {
    let mut remarks = Vec::new();
    if table.duplicates > 0 {
        let entries = counted(table.duplicates, "entry was", "entries were");
        remarks.push(format!("{entries} listed twice, counted once"));
    }
    if table.resized {
        remarks.push(
            "the table kept being resized during the listing: entries may be missing or counted twice"
                .to_owned(),
        );
    } else if table.restarts > 0 {
        remarks.push("the table was resized during the listing; listing restarted".to_owned());
    }
    // It isn't empty if there is something that can't be listed.
    match table.tracks.filter(|_| table.unlisted <= 0) {
        Some(Some(true)) => remarks.push("the table is empty, though rules here enable conntrack".to_owned()),
        Some(Some(false)) => remarks.push("the table is empty: no rule here enables conntrack".to_owned()),
        Some(None) => remarks
            .push("the table is empty; this kernel can't tell whether rules enable conntrack".to_owned()),
        None => {}
    }
    if let Some(most) = each_at_most {
        let entries = counted(most, "entry", "entries");
        remarks.push(format!("too many keys to count each: one that isn't shown has at most {entries}"));
    }
    if table.listed > 0 && table.matched == Some(0) {
        remarks.push("no entries match the filters".to_owned());
    }
    remarks.iter().flat_map(|text| remark(text)).collect()
}

/// Tables without rows, in one line.
fn without_rows(others: &[&TableBreakdown]) -> Option<String> {
    let entries: u64 = others.iter().map(|table| table.listed).sum();
    let netns = others.len();
    (netns > 0).then(|| format!("{netns} more netns with {} in total", counted(entries, "entry", "entries")))
}

/// Namespaces that were not listed.
fn unlisted(report: &TableReport) -> Vec<String> {
    let mut texts = Vec::new();
    if report.own_netns_only {
        texts.push(
            "Only this netns: listing others needs CAP_SYS_ADMIN and CAP_SYS_PTRACE (`ctwatch check` says how to get them)"
                .to_owned(),
        );
    }
    for skipped in report.skipped.iter().take(NAMED) {
        let name = skipped.name.as_ref().map_or_else(|| skipped.netns.to_string(), |name| name.within(NAME));
        texts.push(format!("Not listed: {name}: {}", skipped.reason.sentence()));
    }
    if report.skipped.len() > NAMED {
        texts.push(format!("Not listed: {} more netns", report.skipped.len() - NAMED));
    }
    texts.iter().flat_map(|text| wrap(text, 2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Direction, NetnsId, Protocol};
    use proptest::prelude::*;

    fn row() -> impl Strategy<Value = Row> {
        // A hundred million entries are 38 GB of kernel memory.
        let numbers = (0..100_000_000u32, 0..1_000_000u64, any::<u16>(), any::<u8>(), any::<u32>());
        let shares = prop::option::of(0.0..=1.0f64);
        let seconds = prop::option::of(0.0..1e9f64);
        let addresses = prop::option::of(any::<(u128, u128)>());
        (numbers, shares, seconds, addresses, any::<[bool; 6]>()).prop_map(
            |((entries, error, port, proto, mark), share, seconds, addresses, has)| Row {
                netns: NetnsId::from_packed(4_026_532_299),
                proto: has[0].then_some(Protocol(proto)),
                port: has[1].then_some(port),
                service: has[1].then_some(Some("etcd-client")),
                state: has[2].then_some("SHUTDOWN_ACK_SENT"),
                direction: has[3].then_some(Direction::Forwarded),
                zone: has[4].then_some(port),
                mark: has[4].then_some(mark),
                src: addresses.map(|(src, _)| std::net::IpAddr::V6(src.into())),
                dst: addresses.map(|(_, dst)| std::net::IpAddr::V6(dst.into())),
                entries: entries.into(),
                error: error.min(entries.into()),
                entries_min: (error > 0).then_some(entries.into()),
                entries_max: (error > 0).then(|| u64::from(entries) + error.min(entries.into())),
                share: share.unwrap_or(0.0),
                share_of_max: share,
                assured_share: share,
                time_wait_share: share,
                timeout_left_median_s: seconds,
                timeout_left_p90_s: seconds,
                age_median_s: seconds.filter(|_| has[5]),
                ..Row::default()
            },
        )
    }

    #[test]
    fn a_bound_is_shown_as_one() {
        let row = Row {
            entries: 1_000,
            error: 4,
            entries_min: Some(1_000),
            entries_max: Some(1_004),
            share: 0.25,
            share_of_max: Some(0.001),
            ..Row::default()
        };
        let shown = Columns::of(std::slice::from_ref(&row)).row(&row, &["dst"]).join("\n");
        assert!(shown.starts_with("    ≥1,000 ≥25 %   0 %") && shown.ends_with("+4"), "{shown}");
    }

    #[test]
    fn entries_that_are_not_listed_are_named_and_the_table_is_not_called_empty() {
        let hidden = Hidden {
            dying: Some(78),
            unconfirmed: Some(0),
            complete: true,
            others: 2,
            services: vec![HiddenService {
                sort: Reason::Dying,
                proto: Protocol::ICMPV6,
                port: None,
                service: None,
                icmp_type: Some(128),
                icmp_code: Some(0),
                entries: 78,
            }],
        };
        let table = |hidden: Option<Hidden>| TableBreakdown {
            netns: NetnsId::from_packed(4_026_532_299),
            name: None,
            container: None,
            count: Some(80),
            count_before: Some(80),
            max: Some(1_000),
            fill: Some(0.08),
            listed: 0,
            unevictable: 0,
            matched: None,
            duplicates: 0,
            restarts: 0,
            resized: false,
            unlisted: 80,
            reasons: vec![Reason::Dying],
            hidden,
            tracks: Some(None),
            took_s: 0.0,
        };
        let shown = |table: &TableBreakdown| {
            let lines = [discrepancy(table, Paint(false)), remarks(table, None)].concat();
            lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
        };
        let named = shown(&table(Some(hidden)));
        assert_eq!(
            named,
            "the kernel counts 80 more than were listed: 78 dying (removed from the table, still referenced), 2 expired but not \
             yet collected or reachable only by reply tuple (after a clash) 78 dying of type 128 code 0/icmpv6"
        );
        let unknown = shown(&table(Some(Hidden { others: 80, ..Hidden::default() })));
        assert!(unknown.contains("not readable") && !unknown.contains("empty"), "{unknown}");
    }

    proptest! {
        #[test]
        fn rows_fit_whatever_is_in_them(rows in prop::collection::vec(row(), 1..5)) {
            let by = ["state", "direction", "zone", "mark", "src", "dst", "port"];
            let columns = Columns::of(&rows);
            for row in &rows {
                for line in columns.row(row, &by) {
                    prop_assert!(width(&line) <= COLUMNS, "{} columns: {line}", width(&line));
                }
            }
            prop_assert!(width(&columns.header(&by, Paint(false))) <= COLUMNS);
        }
    }
}
