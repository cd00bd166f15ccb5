//! The line that shows how full one netns's table is.
//! It fits 80 columns: the least important parts are dropped first.

use crate::contract::TableStatus;
use crate::model::is_home_netns;
use crate::text::{ALERT, COLUMNS, PLAIN, Paint, WARN, left, percent, rate, thousands, width};

/// Forecasts further ahead are not shown in a line per second.
const SOON_S: f64 = 3_600.0;
/// From this fill on the table is shown as a warning.
const NEARLY_FULL: f64 = 0.9;

/// Longest name shown.
const NAME: usize = 14;

pub(super) fn name(table: &TableStatus) -> String {
    table.name.as_ref().map_or_else(|| table.netns.to_string(), |name| name.within(NAME))
}

pub(super) fn is_host(table: &TableStatus) -> bool {
    is_home_netns(table.name.as_ref())
}

pub(super) fn loses(table: &TableStatus) -> bool {
    table.packets_lost > 0 || table.entries_lost > 0
}

pub(super) fn is_filling(table: &TableStatus) -> bool {
    table.fill.is_some_and(|fill| fill >= TableStatus::FILLING)
}

/// `names` is the width of the widest name in this tick.
pub(super) fn line(clock: &str, table: &TableStatus, names: usize, paint: Paint) -> String {
    let head = format!("{clock} {}  ", left(&name(table), names));
    if table.gone {
        let entries = entries(table);
        return format!("{head}{entries}  netns deleted; its totals are kept{}", lost(table));
    }
    if table.not_readable {
        return format!("{head}not readable{}", paint.on(ALERT, &lost(table))).trim_end().to_owned();
    }
    let style = match table.fill {
        Some(fill) if fill >= 1.0 => ALERT,
        Some(fill) if fill >= NEARLY_FULL => WARN,
        _ => PLAIN,
    };
    let fill = match table.fill {
        Some(fill) => format!("{:>5}", percent(fill)),
        None => " ".repeat(5),
    };
    let word = if style == ALERT { " full" } else { "     " };
    let rates = rates(table);
    let soon = soon(table);
    let lost = lost(table) + &soon;
    let packets_lost = lost.split_inclusive("lost").next().unwrap_or_default();
    let forecast_only = if table.packets_lost == 0 { soon.as_str() } else { packets_lost };
    let entries = entries(table);
    let body = |word: &str, rates: &str, lost: &str| {
        width(&entries) + 1 + width(&fill) + width(word) + width(rates) + width(lost)
    };
    // The least important is dropped first: the word "full", the rates, the evictions (their rows are below).
    let choices = [
        (word, rates.as_str(), lost.as_str()),
        ("", &rates, &lost),
        ("", "", &lost),
        ("", "", forecast_only),
    ];
    let room = COLUMNS.saturating_sub(width(&head));
    let (word, rates, lost) = choices
        .into_iter()
        .find(|(word, rates, lost)| body(word, rates, lost) <= room)
        .unwrap_or(choices[choices.len() - 1]);
    let state = paint.on(style, &format!("{entries} {fill}{}", word.trim_end()));
    let padding = if word.trim().is_empty() { word } else { "" };
    let lost = paint.on(if table.packets_lost > 0 { ALERT } else { PLAIN }, lost);
    format!("{head}{state}{padding}{rates}{lost}").trim_end().to_owned()
}

fn entries(table: &TableStatus) -> String {
    let number =
        |number: Option<u32>| number.map_or_else(|| "?".to_owned(), |number| thousands(number.into()));
    let count = number(table.count);
    match table.max {
        Some(0) => format!("{count}, no limit"),
        max => {
            let max = number(max);
            format!("{count:>0$}/{max}", width(&max))
        }
    }
}

fn rates(table: &TableStatus) -> String {
    match (table.new_per_s, table.gone_per_s) {
        (Some(new), Some(gone)) => {
            format!(" {:>9} {:>9}", format!("+{}/s", rate(new)), format!("-{}/s", rate(gone)))
        }
        _ => String::new(),
    }
}

/// When it will be full, unless it is already or that is far off.
fn soon(table: &TableStatus) -> String {
    match table.full_in_s {
        Some(seconds) if seconds > 0.0 && seconds < SOON_S => {
            let time = if seconds < 90.0 {
                format!("{} s", seconds.ceil())
            } else {
                format!("{} min", (seconds / 60.0).round())
            };
            format!("  full in {time}")
        }
        _ => String::new(),
    }
}

fn lost(table: &TableStatus) -> String {
    let mut text = String::new();
    if table.packets_lost > 0 {
        text += &format!("  {} lost", thousands(table.packets_lost));
    }
    if table.entries_lost > 0 {
        text += &format!("  {} evicted", thousands(table.entries_lost));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetnsId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_fits_whatever_the_numbers(
            name in proptest::option::of("[a-z0-9-]{1,40}"),
            count in proptest::option::of(0..20_000_000u32),
            max in proptest::option::of(0..20_000_000u32),
            rates in proptest::option::of((0.0..2e6, 0.0..2e6)),
            full_in_s in proptest::option::of(0.0..1e5),
            (packets_lost, entries_lost) in (0..9_999_999u64, 0..9_999_999u64),
        ) {
            let table = TableStatus {
                netns: NetnsId::from_packed(4_026_532_299),
                name: name.map(Into::into),
                container: None,
                count,
                max,
                fill: Some(0.5),
                new_per_s: rates.map(|(new, _)| new),
                gone_per_s: rates.map(|(_, gone)| gone),
                full_in_s,
                occupants: None,
                occupancy_exact: None,
                packets_lost,
                entries_lost,
                gone: false,
                not_readable: false,
                unexplained: None,
            };
            let line = line("12:03:04", &table, width(&super::name(&table)), Paint(false));
            prop_assert!(width(&line) <= COLUMNS, "{} columns: {}", width(&line), line);
        }
    }
}
