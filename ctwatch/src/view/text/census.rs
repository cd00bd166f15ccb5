//! The output of `ctwatch table`: each table's fill, then its rows, then any discrepancy with the kernel's count.
//! Addresses are never cut off: a key too long for its column gets a line of its own.

use crate::contract::breakdown::{Reason, Row, TableBreakdown, TableReport};
use crate::foreign::Foreign;
use crate::model::is_home_netns;
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
        if !rows.is_empty() {
            lines.push(columns.header(&report.by, paint));
        }
        for row in rows {
            lines.extend(columns.row(row, &report.by));
        }
        lines.extend(evictable(table));
        lines.extend(discrepancy(table, paint));
        lines.extend(remarks(table));
    }
    lines.extend(without_rows(others));
    lines.extend(unlisted(report).iter().map(|line| paint.on(WARN, line)));
    lines
}

/// Of how many a full table could make room.
fn evictable(table: &TableBreakdown) -> Vec<String> {
    if table.listed == 0 {
        return Vec::new();
    }
    let others = table.listed.saturating_sub(table.unevictable);
    let text = format!(
        "{} can't be evicted: a full table could make room of {} only",
        thousands(table.unevictable),
        thousands(others)
    );
    wrap(&text, 2)
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
        let tail = self.tail(["assured", "t_wait", "left", "p90", "age", "error"].map(str::to_owned));
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
        // Empty for an exact count among inexact ones.
        let error = match row.error {
            0 => String::new(),
            error if row.rest => format!("+{}", thousands(error)),
            error => format!("-{}", thousands(error)),
        };
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
            thousands(row.entries),
            percent(row.share),
            share(row.share_of_max)
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
    remark(&text).iter().map(|line| paint.on(WARN, line)).collect()
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

fn remarks(table: &TableBreakdown) -> Vec<String> {
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
    match table.tracks {
        Some(Some(true)) => remarks.push("the table is empty, though rules here enable conntrack".to_owned()),
        Some(Some(false)) => remarks.push("the table is empty: no rule here enables conntrack".to_owned()),
        Some(None) => remarks
            .push("the table is empty; this kernel can't tell whether rules enable conntrack".to_owned()),
        None => {}
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
                error,
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
